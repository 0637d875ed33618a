//! Cartridges: a document's keys and values, trained, with the first ones frozen.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{
    Adapter, CheckpointKey, Common, KeyValueAdapter, Layout, Method, MethodConfig as _, Plan,
    method_config,
};

use crate::key_value::{alike_sites, check_submodules, halves, of_text, record};

/// The cartridge of one attention layer: keys and values of virtual tokens. Keys are the first half of a row.
#[derive(Module, Debug)]
pub struct Cartridge {
    /// Of the first tokens, which are not trained, `[num_frozen_tokens, 2 · kv]`. None where all are.
    pub frozen: Option<Param<Tensor<2>>>,
    /// Of the others, `[tokens, 2 · kv]`.
    pub trained: Param<Tensor<2>>,
    /// The layer's number among those with a cartridge.
    pub layer: usize,
    /// How many of those there are.
    pub layers: usize,
    /// Whether the tensors are called as in a file, where both are one.
    #[module(skip)]
    pub stored: bool,
}

impl Cartridge {
    fn frozen_tokens(&self) -> usize {
        self.frozen
            .as_ref()
            .map_or(0, |frozen| frozen.lazy_shape()[0])
    }
}

impl Adapter for Cartridge {
    fn tensors(&self) -> Vec<CheckpointKey> {
        // Not `dims`, which would draw the values: a file may declare any number of them.
        let width = self.trained.lazy_shape()[1];
        let (frozen, tokens) = (self.frozen_tokens(), self.virtual_tokens());
        let key = |field: &str, stored: &str, from: usize| {
            let key = if self.stored {
                CheckpointKey::root(field, "prompt_embeddings").rows(from, tokens)
            } else {
                CheckpointKey::root(field, &format!("prompt_encoder.{stored}"))
            };
            key.columns(self.layer * width, self.layers * width)
        };
        let mut tensors = vec![key("trained", "trainable_embedding", frozen)];
        if self.frozen.is_some() {
            tensors.push(key("frozen", "frozen_embedding", 0));
        }
        tensors
    }

    fn for_checkpoint(&self) -> Self {
        Self {
            stored: true,
            ..self.valid()
        }
    }
}

impl KeyValueAdapter for Cartridge {
    fn virtual_tokens(&self) -> usize {
        self.frozen_tokens() + self.trained.lazy_shape()[0]
    }

    fn key_value(&self) -> (Tensor<2>, Tensor<2>) {
        let frozen = self.frozen.as_ref().map(Param::val);
        let parts = frozen.into_iter().chain([self.trained.val()]);
        halves(&Tensor::cat(parts.collect(), 0)).into()
    }
}

/// Cartridge's configuration. Fields are called as in Hugging Face PEFT's `CartridgeConfig`.
///
/// A cartridge begins as a text's keys and values if it is attached with those
/// ([`attach_with`](peft_core::calibration::Calibrate::attach_with)), and at random otherwise: normal with mean 0 and
/// standard deviation 1.
#[method_config(
    CARTRIDGE, peft_type = "CARTRIDGE", title = "Cartridge", family = SoftPrompt, new(num_virtual_tokens),
    reference = "Eyuboglu et al. 2025, Cartridges: Lightweight and general-purpose long context representations via self-study, section 3"
)]
pub struct CartridgeConfig {
    /// How many virtual tokens. At least 1; each takes one of the model's positions. Without
    /// a default: 0 is refused.
    #[field(at_least = 1)]
    pub num_virtual_tokens: usize,
    /// How many of the first virtual tokens are not trained, fewer than there are. Default: 1, as texts' first tokens
    /// gather much attention, and training is unstable where they change.
    #[field(default = 1, any)]
    pub num_frozen_tokens: usize,
    /// Features of the keys of one layer; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Heads of keys and values; recorded when attached.
    #[field(any)]
    pub num_attention_heads: Option<usize>,
    /// Attention layers; recorded when attached.
    #[field(any)]
    pub num_layers: Option<usize>,
    /// Encoders or decoders with cartridges; recorded when attached, always 1.
    #[field(any)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl Method for CartridgeConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if self.num_frozen_tokens >= self.num_virtual_tokens {
            let expected = format!(
                "below num_virtual_tokens, which is {}: something must be trained",
                self.num_virtual_tokens
            );
            return Err(CARTRIDGE.refusal("num_frozen_tokens", self.num_frozen_tokens, expected));
        }
        check_submodules(&CARTRIDGE, self.num_transformer_submodules, "cartridges")
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let tokens = self.num_virtual_tokens;
        let frozen = self.num_frozen_tokens;
        let sites = alike_sites(layout, &CARTRIDGE, tokens)?;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        for (layer, site) in sites.iter().enumerate() {
            let text = of_text(site, plan, &CARTRIDGE, tokens, like)?;
            let mut part = |from: usize, count: usize| match &text {
                Some(text) => Param::from_tensor(text.clone().narrow(0, from, count)),
                None => plan.init().normal([count, 2 * site.width], 1.0, like),
            };
            let first = (frozen > 0).then(|| part(0, frozen).set_require_grad(false));
            let trained = part(frozen, tokens - frozen);
            let cartridge = Cartridge {
                frozen: first,
                trained,
                layer,
                layers: sites.len(),
                stored: !plan.is_new(),
            };
            plan.add_prefix(*site, cartridge);
        }
        record(&sites, plan);
        Ok(())
    }
}
