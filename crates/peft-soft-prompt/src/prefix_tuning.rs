//! Prefix tuning: keys and values before those of every attention layer.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Adapter, CheckpointKey, Common, KeyValueAdapter, Layout, Method, MethodConfig as _, Plan,
    Shared, SiteKind, method_config,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The prefix of one attention layer.
#[derive(Module, Debug)]
pub struct Prefix {
    /// Its keys and values, or what computes them.
    pub form: PrefixForm,
    /// The layer's number among those with a prefix.
    pub layer: usize,
    /// How many of those there are.
    pub layers: usize,
}

/// Keys and values of the virtual tokens, or what computes them.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one in each attention layer, and a `Box` is no module of Burn's"
)]
pub enum PrefixForm {
    /// Keys and values, `[virtual_tokens, 2 · kv]`: keys are the first half of a row. What a file holds.
    KeyValue(Param<Tensor<2>>),
    /// What computes them in training.
    Encoder(PrefixEncoder),
}

/// Li & Liang 2021, section 4.3: a two-layer network in place of the keys and values, `tanh(E W + b) W' + b'`. All
/// layers share its first part.
#[derive(Module, Debug)]
pub struct PrefixEncoder {
    /// E, `[virtual_tokens, kv]`.
    pub embeddings: Shared<2>,
    /// W, `[kv, encoder_hidden_size]`.
    pub inner: Shared<2>,
    /// b, `[encoder_hidden_size]`.
    pub inner_bias: Shared<1>,
    /// This layer's columns of W', `[encoder_hidden_size, 2 · kv]`.
    pub outer: Param<Tensor<2>>,
    /// This layer's part of b', `[2 · kv]`.
    pub outer_bias: Param<Tensor<1>>,
}

impl PrefixEncoder {
    /// Keys and values, `[virtual_tokens, 2 · kv]`, of parameters as `seen` shows them.
    fn forward(&self, seen: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        let row = |bias: Tensor<1>| seen(bias.unsqueeze());
        let inside = seen(self.embeddings.val()).matmul(seen(self.inner.val()));
        let inside = (inside + row(self.inner_bias.val())).tanh();
        inside.matmul(seen(self.outer.val())) + row(self.outer_bias.val())
    }
}

impl Prefix {
    /// Keys and values, `[virtual_tokens, 2 · kv]`, of parameters as `seen` shows them.
    fn both(&self, seen: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
        match &self.form {
            PrefixForm::KeyValue(embeddings) => seen(embeddings.val()),
            PrefixForm::Encoder(encoder) => encoder.forward(seen),
        }
    }
}

impl Adapter for Prefix {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let own = |field: &str, key: &str, width: usize| {
            CheckpointKey::root(field, key).columns(self.layer * width, self.layers * width)
        };
        // Not `dims`, which would draw the values: a file may declare any number of them.
        match &self.form {
            PrefixForm::KeyValue(embeddings) => {
                let width = embeddings.lazy_shape()[1];
                vec![own("form.KeyValue", "prompt_embeddings", width)]
            }
            PrefixForm::Encoder(encoder) => {
                let width = encoder.outer.lazy_shape()[1];
                let field = |name: &str| format!("form.Encoder.{name}");
                let key = |name: &str| format!("prompt_encoder.{name}");
                let shared =
                    |name: &str, stored: &str| CheckpointKey::root(&field(name), &key(stored));
                let own = |name: &str, stored: &str| own(&field(name), &key(stored), width);
                vec![
                    shared("embeddings", "embedding.weight"),
                    shared("inner", "transform.0.weight").transposed(),
                    shared("inner_bias", "transform.0.bias"),
                    own("outer", "transform.2.weight").transposed(),
                    own("outer_bias", "transform.2.bias"),
                ]
            }
        }
    }

    fn for_checkpoint(&self) -> Self {
        Self {
            form: PrefixForm::KeyValue(Param::from_tensor(self.both(Tensor::without_autodiff))),
            layer: self.layer,
            layers: self.layers,
        }
    }
}

impl KeyValueAdapter for Prefix {
    fn virtual_tokens(&self) -> usize {
        match &self.form {
            PrefixForm::KeyValue(embeddings) => embeddings.lazy_shape()[0],
            PrefixForm::Encoder(encoder) => encoder.embeddings.val().dims()[0],
        }
    }

    fn key_value(&self) -> (Tensor<2>, Tensor<2>) {
        let both = self.both(|tensor| tensor);
        let [_, width] = both.dims();
        let [key, value] =
            [0..width / 2, width / 2..width].map(|part| both.clone().slice_dim(1, part));
        (key, value)
    }
}

/// Initial values other than random ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PrefixInit {
    /// Keys and values of zeros.
    Zero,
}

/// Prefix tuning's configuration. Fields are called as in Hugging Face PEFT's `PrefixTuningConfig`.
#[method_config(
    PREFIX_TUNING, peft_type = "PREFIX_TUNING", title = "Prefix tuning", family = SoftPrompt, new(num_virtual_tokens),
    reference = "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, section 4"
)]
pub struct PrefixTuningConfig {
    /// How many virtual tokens. At least 1; each takes one of the model's positions. Without
    /// a default: 0 is refused.
    #[field(at_least = 1)]
    pub num_virtual_tokens: usize,
    /// Initial values. Default: normal with mean 0 and standard deviation 1, as torch initialises embeddings. With
    /// [`PrefixInit::Zero`] each virtual token takes attention as a key of score 0 does, and gives nothing.
    pub init_weights: Option<PrefixInit>,
    /// Whether the prefix is trained through a two-layer network ([`PrefixEncoder`]). A checkpoint holds what it
    /// computes, as upstream's: loaded, that is what further training changes. Default: false.
    pub prefix_projection: bool,
    /// Width inside that network, at least 1. Default: the keys'.
    #[field(at_least = 1)]
    pub encoder_hidden_size: Option<usize>,
    /// Features of the keys of one layer; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Heads of keys and values; recorded when attached.
    #[field(any)]
    pub num_attention_heads: Option<usize>,
    /// Attention layers; recorded when attached.
    #[field(any)]
    pub num_layers: Option<usize>,
    /// Encoders or decoders with prefixes; recorded when attached, always 1.
    #[field(any)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

impl PrefixTuningConfig {
    /// Trains the prefix through a network that is `hidden_size` wide inside.
    #[must_use]
    pub fn with_projection(self, hidden_size: usize) -> Self {
        let config = self.with_prefix_projection(true);
        config.with_encoder_hidden_size(hidden_size)
    }

    /// The encoders of all layers, initialised as torch initialises embeddings and linear layers.
    fn encoders(
        &self,
        [width, hidden]: [usize; 2],
        layers: usize,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> Vec<PrefixEncoder> {
        let zero = self.init_weights == Some(PrefixInit::Zero);
        let init = plan.init();
        let embeddings = init.normal([self.num_virtual_tokens, width], 1.0, like);
        let inner = init.kaiming_uniform([width, hidden], width, like);
        let inner_bias = init.kaiming_uniform([hidden], width, like);
        Shared::new(embeddings, layers)
            .zip(Shared::new(inner, layers))
            .zip(Shared::new(inner_bias, layers))
            .map(|((embeddings, inner), inner_bias)| {
                let (outer, outer_bias) = if zero {
                    (
                        init.zeros([hidden, 2 * width], like),
                        init.zeros([2 * width], like),
                    )
                } else {
                    (
                        init.kaiming_uniform([hidden, 2 * width], hidden, like),
                        init.kaiming_uniform([2 * width], hidden, like),
                    )
                };
                PrefixEncoder {
                    embeddings,
                    inner,
                    inner_bias,
                    outer,
                    outer_bias,
                }
            })
            .collect()
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(PREFIX_TUNING.title, field, value, expected)
}

impl Method for PrefixTuningConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let submodules = self.num_transformer_submodules;
        if submodules.is_some_and(|count| count != 1) {
            let expected = "1: prefixes of encoder and decoder together are not supported";
            return Err(refuse("num_transformer_submodules", submodules, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let sites: Vec<_> = layout.key_value_sites().collect();
        let Some(first) = sites.first() else {
            return Err(layout.no_site(PREFIX_TUNING.title, SiteKind::KeyValue));
        };
        let alike = |width, heads| width == first.width && heads == first.heads;
        if let Some(other) = sites.iter().find(|site| !alike(site.width, site.heads)) {
            let expected = format!(
                "a model whose attention layers are alike, as the checkpoint has room for such only: `{}` has {} \
                 features in {} heads, `{}` {} in {}",
                first.name, first.width, first.heads, other.name, other.width, other.heads
            );
            return Err(refuse(
                "num_virtual_tokens",
                self.num_virtual_tokens,
                &expected,
            ));
        }
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let hidden = self.encoder_hidden_size.unwrap_or(first.width);
        // A file holds keys and values, however they were trained.
        let forms: Vec<_> = if plan.is_new() && self.prefix_projection {
            let widths = [first.width, hidden];
            let encoders = self.encoders(widths, sites.len(), plan, like);
            encoders.into_iter().map(PrefixForm::Encoder).collect()
        } else {
            let shape = [self.num_virtual_tokens, 2 * first.width];
            let init = plan.init();
            let values = sites.iter().map(|_| match self.init_weights {
                Some(PrefixInit::Zero) => init.zeros(shape, like),
                None => init.normal(shape, 1.0, like),
            });
            values.map(PrefixForm::KeyValue).collect()
        };
        for (layer, (site, form)) in sites.iter().zip(forms).enumerate() {
            let prefix = Prefix {
                form,
                layer,
                layers: sites.len(),
            };
            plan.add_prefix(*site, prefix);
        }
        plan.set_config_field("encoder_hidden_size", hidden);
        plan.set_config_field("token_dim", first.width);
        plan.set_config_field("num_attention_heads", first.heads);
        plan.set_config_field("num_layers", sites.len());
        plan.set_config_field("num_transformer_submodules", 1);
        Ok(())
    }
}
