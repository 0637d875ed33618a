//! The small network that gives the first shadow state.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module::embedding;
use peft_core::method::CheckpointKey;
use peft_core::nn::{ForwardContext, Lane};
use peft_core::ops::{Rotary, linear, rms_norm, rotary, swiglu};

use crate::Activation;
use crate::attend::Attend;

/// Where the network's tensors are in a file. Upstream writes `default` in place of every adapter's name.
pub(super) const BACKBONE: &str = "base_model.shadow_backbone.default";
const PROJECTION: &str = "base_model.shadow_projection.default.weight";

/// Where the number of tokens so far lies in the memory of a text, beside the blocks' keys and values.
const TOKENS: usize = usize::MAX;

/// A linear layer.
#[derive(Module, Debug)]
pub struct Affine {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`, where there is one.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Affine {
    pub(super) fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let bias = self.bias.as_ref().map(Param::val);
        linear(input, self.weight.val(), bias, None)
    }

    /// `key` makes the key of a field.
    pub(super) fn keys(
        field: &str,
        name: &str,
        key: impl Fn(&str, &str) -> CheckpointKey,
    ) -> [CheckpointKey; 2] {
        let of = |part: &str| key(&format!("{field}.{part}"), &format!("{name}.{part}"));
        [of("weight").transposed(), of("bias")]
    }
}

/// A decoder block: normalisation before attention and before the feed-forward part. w is the network's width.
#[derive(Module, Debug)]
pub struct ShadowBlock {
    /// `[w]`.
    pub input_layernorm: Param<Tensor<1>>,
    /// Queries, w to `heads · head`.
    pub q_proj: Affine,
    /// Keys, w to `kv_heads · head`.
    pub k_proj: Affine,
    /// Values, as the keys.
    pub v_proj: Affine,
    /// The way back.
    pub o_proj: Affine,
    /// `[w]`.
    pub post_attention_layernorm: Param<Tensor<1>>,
    /// The gate of the feed-forward part, where the model's has one.
    pub gate_proj: Option<Affine>,
    /// Into the feed-forward part.
    pub up_proj: Affine,
    /// Out of it.
    pub down_proj: Affine,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
}

impl ShadowBlock {
    fn forward(
        &self,
        x: Tensor<3>,
        epsilon: f64,
        angles: Option<&Rotary>,
        attend: &Attend<'_>,
    ) -> Tensor<3> {
        let normed = rms_norm(x.clone(), self.input_layernorm.val(), epsilon);
        let turned = |layer: &Affine, heads: usize| {
            let projected = layer.forward(normed.clone());
            match angles {
                None => projected,
                Some(angles) => rotary(projected, angles, heads),
            }
        };
        let query = turned(&self.q_proj, self.heads);
        let key = turned(&self.k_proj, self.kv_heads);
        let value = self.v_proj.forward(normed.clone());
        let attended = attend.attention([query, key, value], [self.heads, self.kv_heads]);
        let x = x + self.o_proj.forward(attended);
        let normed = rms_norm(x.clone(), self.post_attention_layernorm.val(), epsilon);
        let up = self.up_proj.forward(normed.clone());
        let inner = match &self.gate_proj {
            None => Activation::Gelu.apply(up),
            Some(gate) => swiglu(gate.forward(normed), up),
        };
        x + self.down_proj.forward(inner)
    }

    fn keys(index: usize) -> Vec<CheckpointKey> {
        let key = |field: &str, name: &str| {
            let name = format!("{BACKBONE}.layers.{index}.{name}");
            CheckpointKey::root(field, &name).within(&format!("layers.{index}"))
        };
        let mut keys = vec![
            key("input_layernorm", "input_layernorm.weight"),
            key(
                "post_attention_layernorm",
                "post_attention_layernorm.weight",
            ),
        ];
        for field in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            keys.extend(Affine::keys(field, &format!("self_attn.{field}"), key));
        }
        for field in ["gate_proj", "up_proj", "down_proj"] {
            keys.extend(Affine::keys(field, &format!("mlp.{field}"), key));
        }
        keys
    }
}

/// The network: embeddings, blocks, a last normalisation, and the way to the model's width.
#[derive(Module, Debug)]
pub struct ShadowBackbone {
    /// A table of its own, `[vocabulary, w]`; without one it reads the model's embeddings.
    pub embed_tokens: Option<Param<Tensor<2>>>,
    /// Its blocks.
    pub layers: Vec<ShadowBlock>,
    /// `[w]`.
    pub norm: Param<Tensor<1>>,
    /// `[w, d]`, where w is another width than the model's.
    pub projection: Option<Param<Tensor<2>>>,
    /// Added to the mean square of normalisations.
    pub norm_epsilon: f64,
    /// By which positions turn queries and keys, if they do.
    #[module(skip)]
    pub frequencies: Option<Vec<f64>>,
    /// How much of the network's own loss is added to the model's in training.
    pub auxiliary_loss_weight: f64,
}

impl ShadowBackbone {
    pub(super) fn keys(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, name: &str| CheckpointKey::root(field, name);
        let mut keys = vec![
            key("embed_tokens", &format!("{BACKBONE}.embed_tokens.weight")),
            key("norm", &format!("{BACKBONE}.norm.weight")),
            key("projection", PROJECTION).transposed(),
        ];
        keys.extend((0..self.layers.len()).flat_map(ShadowBlock::keys));
        keys
    }

    /// The first shadow state `[batch, seq, d]`, for the model's embeddings of the same shape. Virtual tokens have the state
    /// 0 where the network has a table of its own: they have no row in it.
    pub(super) fn first_state(
        &self,
        embedded: Tensor<3>,
        context: &ForwardContext,
        lane: &Lane,
    ) -> Tensor<3> {
        let tokens = embedded.dims()[1];
        let mut x = match &self.embed_tokens {
            None => embedded,
            Some(table) => {
                let ids = context.token_ids().expect(
                    "the shadow network has a table of its own, so the model has to say which tokens it runs: \
                     `ForwardContext::with_token_ids`",
                );
                embedding(table.val(), ids)
            }
        };
        let angles = self.angles(x.dims()[1], context, lane, &x);
        for (index, layer) in self.layers.iter().enumerate() {
            let attend = Attend {
                context,
                lane,
                index,
            };
            x = layer.forward(x, self.norm_epsilon, angles.as_ref(), &attend);
        }
        let mut state = rms_norm(x, self.norm.val(), self.norm_epsilon);
        if let Some(projection) = &self.projection {
            state = linear(state, projection.val(), None, None);
        }
        let state = with_zeros_in_front(state, tokens);
        if self.auxiliary_loss_weight > 0.0 && state.is_tracked() && context.rows().is_none() {
            context.score_too(state.clone(), self.auxiliary_loss_weight);
        }
        state
    }

    /// The angles of the pass's tokens, which follow those that the network has seen of this text.
    fn angles(
        &self,
        count: usize,
        context: &ForwardContext,
        lane: &Lane,
        like: &Tensor<3>,
    ) -> Option<Rotary> {
        let frequencies = self.frequencies.as_ref()?;
        let mut first = 0;
        if let Some(memory) = context.memory() {
            first = memory.take::<usize>(lane, TOKENS).unwrap_or_default();
            memory.put(lane, TOKENS, first + count);
        }
        let positions: Vec<usize> = (first..first + count).collect();
        Some(Rotary::new(&positions, 1, frequencies, 1.0, &like.device()))
    }
}

/// The state of `tokens` tokens, of which it knows the last: the others are virtual ones in front.
pub(super) fn with_zeros_in_front(state: Tensor<3>, tokens: usize) -> Tensor<3> {
    let [batch, known, width] = state.dims();
    if known >= tokens {
        return state;
    }
    let like = (&state.device(), state.dtype());
    let zeros = Tensor::zeros([batch, tokens - known, width], like);
    Tensor::cat(vec![zeros, state], 1)
}
