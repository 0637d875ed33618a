//! Prefix tuning: keys and values before those of every attention layer.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{
    Activation, Adapter, CheckpointKey, Common, Family, KeyValueAdapter, Layout, Method,
    MethodConfig as _, MethodInfo, Plan, method_config,
};
use serde::{Deserialize, Serialize};

use crate::key_value::{alike_sites, check_submodules, halves, of_text, record};
use crate::prefix_encoder::{EncoderShape, PrefixEncoder};

/// Registration of prefixes, in Hugging Face PEFT's layout and in AdapterHub's.
pub static PREFIX_TUNING: MethodInfo = MethodInfo {
    name: "prefix-tuning",
    peft_type: "PREFIX_TUNING",
    title: "Prefix tuning",
    family: Family::SoftPrompt,
    reference: "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, section 4",
    identity_at_init: false,
    mergeable: false,
    parse: PrefixTuningConfig::PARSE,
    recognises: Some(PrefixTuningConfig::RECOGNISES),
};

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
        match &self.form {
            PrefixForm::KeyValue(embeddings) => {
                // Not `dims`, which would draw the values: a file may declare any number of them.
                let width = embeddings.lazy_shape()[1];
                let key = CheckpointKey::root("form.KeyValue", "prompt_embeddings");
                vec![key.columns(self.layer * width, self.layers * width)]
            }
            PrefixForm::Encoder(encoder) => encoder.tensors(
                "form.Encoder",
                [self.layer, self.layers],
                |field, stored| CheckpointKey::root(field, &format!("prompt_encoder.{stored}")),
                ["embedding", "transform"],
            ),
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
        halves(&self.both(|tensor| tensor)).into()
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
    info = PrefixTuningConfig::registration, new(num_virtual_tokens)
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
    #[expect(clippy::unused_self, reason = "the macro hands it over")]
    fn registration(&self) -> &'static MethodInfo {
        &PREFIX_TUNING
    }

    /// Trains the prefix through a network that is `hidden_size` wide inside.
    #[must_use]
    pub fn with_projection(self, hidden_size: usize) -> Self {
        let config = self.with_prefix_projection(true);
        config.with_encoder_hidden_size(hidden_size)
    }
}

impl PrefixTuningConfig {
    /// Refuses a text's keys and values where the adapter starts otherwise.
    fn refuse_text(&self, given: bool) -> Result<()> {
        if given && self.prefix_projection {
            let expected = "false: a text's keys and values are none of a network's";
            return Err(PREFIX_TUNING.refusal("prefix_projection", true, expected));
        }
        if given && self.init_weights.is_some() {
            let expected = "none: the keys and values are those of a text";
            return Err(PREFIX_TUNING.refusal("init_weights", self.init_weights, expected));
        }
        Ok(())
    }
}

impl Method for PrefixTuningConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        check_submodules(&PREFIX_TUNING, self.num_transformer_submodules, "prefixes")
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let tokens = self.num_virtual_tokens;
        let sites = alike_sites(layout, &PREFIX_TUNING, tokens)?;
        let width = sites[0].width;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let hidden = self.encoder_hidden_size.unwrap_or(width);
        let zero = self.init_weights == Some(PrefixInit::Zero);
        let mut texts = Vec::new();
        for site in &sites {
            texts.extend(of_text(site, plan, &PREFIX_TUNING, tokens, like)?);
        }
        self.refuse_text(!texts.is_empty())?;
        // A file holds keys and values, however they were trained.
        let forms: Vec<_> = if !texts.is_empty() {
            let params = texts.into_iter().map(Param::from_tensor);
            params.map(PrefixForm::KeyValue).collect()
        } else if plan.is_new() && self.prefix_projection {
            let shape = EncoderShape {
                virtual_tokens: tokens,
                width,
                hidden,
                kv: width,
                activation: Activation::Tanh,
                zero,
            };
            let encoders = PrefixEncoder::of_layers(&shape, sites.len(), plan.init(), like);
            encoders.into_iter().map(PrefixForm::Encoder).collect()
        } else {
            let shape = [tokens, 2 * width];
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
        record(&sites, plan);
        Ok(())
    }
}
