//! A model small enough for tests.

use burn::module::Module;
use burn::tensor::Device;

use super::rope::{Rope, RopeScaling};
use super::{Llama, LlamaConfig};
use crate::bert::Scramble;

impl LlamaConfig {
    /// A configuration for tests: width 32, 2 layers, 4 heads of 8 features, 2 of keys and values, feed-forward
    /// width 48, 101 tokens, 64 positions, the head tied to the embeddings.
    pub fn tiny() -> Self {
        Self {
            vocab_size: 101,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-6,
            rope: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::Default,
            },
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            tie_word_embeddings: true,
            initializer_range: 0.2,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            model_type: "llama".to_string(),
        }
    }
}

impl Llama {
    /// A model for tests in which every parameter matters, of [`LlamaConfig::tiny`]'s shape: norms are not 1.
    ///
    /// The values come from a generator of our own: they are the same on every device, whatever its seed and
    /// whatever other threads draw.
    pub fn tiny(device: &Device) -> Self {
        Self::scrambled(&LlamaConfig::tiny(), device)
    }

    /// The same of another shape.
    pub fn scrambled(config: &LlamaConfig, device: &Device) -> Self {
        config.build(device).map(&mut Scramble(0x5eed))
    }
}
