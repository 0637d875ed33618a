//! Prefixes as AdapterHub has them: a network whose parameters are saved, gates, layers that are left out.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Activation, Adapter, CheckpointKey, Common, KeyValueAdapter, Layout, LayoutSite, Method,
    MethodInfo, Plan, PrefixContext, Shared, SiteKind, Value, method_config,
};
use peft_core::nn::AdaptedForward;
use peft_core::ops::linear;
use peft_core::{Error, Result};
use serde_json::json;

use crate::key_value::halves;
use crate::model_name::model_of;
use crate::prefix_encoder::{EncoderShape, PrefixEncoder};
use crate::prefix_tuning::PREFIX_TUNING;

/// The prefix of one attention layer, in AdapterHub's form.
#[derive(Module, Debug)]
pub struct AdapterHubPrefix {
    /// What gives keys and values.
    pub form: AdapterHubForm,
    /// How much of them each text gets.
    pub gate: Option<PrefixGate>,
    /// On keys and values, for each row of a batch by itself.
    pub dropout: Dropout,
    /// The layer's number among those with a prefix.
    pub layer: usize,
    /// How many of those there are.
    pub layers: usize,
    /// How many virtual tokens.
    pub virtual_tokens: usize,
    /// Layers without a prefix, below which a file has the network as well; of the first state only.
    #[module(skip)]
    pub left_out: Vec<String>,
    /// What comes before the name of the model's layers, with a dot behind it; empty for a bare encoder.
    #[module(skip)]
    pub model: String,
}

/// What gives the keys and values of virtual tokens.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one in each attention layer, and a `Box` is no module of Burn's"
)]
pub enum AdapterHubForm {
    /// Those of all layers, `[virtual_tokens · layers · 2 · kv]`: of a virtual token, layer by layer, first the layer's
    /// key, then its value.
    Flat(Shared<1>),
    /// A network.
    Encoder(PrefixEncoder),
}

/// A number in (0, 1) for each text: `mean over its positions of sigmoid(x W + b)`, x being what goes into the attention
/// layer.
#[derive(Module, Debug)]
pub struct PrefixGate {
    /// W, `[d, 1]`; `[d, 2]` where keys and values have gates of their own.
    pub weight: Param<Tensor<2>>,
    /// b, `[1]` or `[2]`.
    pub bias: Param<Tensor<1>>,
}

impl PrefixGate {
    /// Factors of keys and of values, `[rows, 1, 1]` each, for inputs `[rows, seq, d]`. Padding counts, as upstream's does.
    fn factors(&self, input: Tensor<3>) -> [Tensor<3>; 2] {
        let gates = sigmoid(linear(
            input,
            self.weight.val(),
            Some(self.bias.val()),
            None,
        ));
        let gates = gates.mean_dim(1);
        let last = gates.dims()[2] - 1;
        [0, last].map(|at| gates.clone().narrow(2, at, 1))
    }
}

impl Adapter for AdapterHubPrefix {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let model = &self.model;
        // The network is once in the file by itself, and once more below each layer.
        let shared = |field: &str, stored: String| {
            let name = format!("prefix_tunings.{{adapter}}.self_prefix.{stored}");
            let pool = format!("prefix_tuning.pool.{name}");
            let key =
                CheckpointKey::root(field, &format!("{model}prefix_tuning.{name}")).also(&pool);
            let left_out = self.left_out.iter();
            left_out.fold(key, |key, layer| key.also_below(layer, &pool))
        };
        let mut tensors = match &self.form {
            AdapterHubForm::Flat(_) => vec![shared("form.Flat", "control_trans".into())],
            AdapterHubForm::Encoder(encoder) => encoder.tensors(
                "form.Encoder",
                [self.layer, self.layers],
                shared,
                ["wte", "control_trans"],
            ),
        };
        if self.gate.is_some() {
            let key = |name: &str| {
                let stored = format!("prefix_tuning.prefix_gates.{{adapter}}.{name}");
                CheckpointKey::layer(&format!("gate.{name}"), &stored)
            };
            tensors.extend([key("weight").transposed(), key("bias")]);
        }
        tensors
    }
}

impl KeyValueAdapter for AdapterHubPrefix {
    fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    // Upstream adds a prefix inside the attention layer, where positions have been counted.
    fn positions(&self) -> usize {
        0
    }

    fn key_value(&self) -> (Tensor<2>, Tensor<2>) {
        let both = match &self.form {
            AdapterHubForm::Encoder(encoder) => encoder.forward(|tensor| tensor),
            AdapterHubForm::Flat(all) => {
                let rows: Tensor<3> =
                    all.val()
                        .reshape([self.virtual_tokens as isize, self.layers as isize, -1]);
                rows.narrow(1, self.layer, 1).squeeze_dim(1)
            }
        };
        halves(&both).into()
    }

    fn key_value_of(
        &self,
        (key, value): (Tensor<2>, Tensor<2>),
        rows: usize,
        context: &PrefixContext<'_>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [key, value] = [key, value].map(|half| {
            let [tokens, width] = half.dims();
            let spread = half.unsqueeze::<3>().expand([rows, tokens, width]);
            self.dropout.adapted(spread)
        });
        let Some(gate) = &self.gate else {
            return (key, value);
        };
        let [of_keys, of_values] = gate.factors(context.input());
        (key * of_keys, value * of_values)
    }
}

/// Configuration of prefixes in AdapterHub's layout. Fields are called as in its `PrefixTuningConfig`.
///
/// Against [`PrefixTuningConfig`](crate::PrefixTuningConfig): the network is saved and trains on when it is loaded, layers
/// can be left out, prefixes can be gated, and virtual tokens take none of the model's positions.
#[method_config(
    info = AdapterHubPrefixConfig::registration, to_json = AdapterHubPrefixConfig::json, new()
)]
pub struct AdapterHubPrefixConfig {
    /// How many virtual tokens, at least 1. Default: 30.
    #[field(default = 30, at_least = 1)]
    pub prefix_length: usize,
    /// Whether keys and values are trained themselves, and no network. Default: false.
    pub flat: bool,
    /// Width inside the network, at least 1. Default: 512. Without effect where there is none.
    #[field(default = 512, at_least = 1)]
    pub bottleneck_size: usize,
    /// Non-linearity inside the network. Default: tanh. Without effect where there is none.
    #[field(default = Activation::Tanh)]
    pub non_linearity: Activation,
    /// Probability, in [0, 1), with which numbers of keys and values are dropped in training. Default: 0.
    #[field(probability)]
    pub dropout: f64,
    /// Indices of blocks without a prefix. Default: none.
    pub leave_out: Vec<usize>,
    /// Whether each layer has a gate ([`PrefixGate`]), as UniPELT's prefixes do (Mao et al. 2022, section 3). Default:
    /// false.
    pub use_gating: bool,
    /// Whether keys and values share the gate. Default: true. Without effect where there is none.
    #[field(default = true)]
    pub shared_gating: bool,
    /// Fields that every method has.
    pub common: Common,
}

impl AdapterHubPrefixConfig {
    #[expect(clippy::unused_self, reason = "the macro hands it over")]
    fn registration(&self) -> &'static MethodInfo {
        &PREFIX_TUNING
    }

    /// AdapterHub's layout.
    fn json(&self) -> Value {
        let mut config = json!({
            "architecture": "prefix_tuning",
            "bottleneck_size": self.bottleneck_size,
            "cross_prefix": true,
            "dropout": self.dropout,
            "encoder_prefix": true,
            "flat": self.flat,
            "init_weights_seed": null,
            "leave_out": self.leave_out,
            "non_linearity": self.non_linearity,
            "prefix_length": self.prefix_length,
            "shared_gating": self.shared_gating,
            "use_gating": self.use_gating,
        });
        let mut json = serde_json::to_value(&self.common).expect("plain data");
        if let (Some(outer), Some(inner)) = (json.as_object_mut(), config.as_object_mut()) {
            // What was read from AdapterHub and is unknown here goes back to where it was.
            for (field, value) in inner.iter_mut() {
                if let Some(kept) = outer.remove(field) {
                    *value = kept;
                }
            }
            outer.entry("model_class").or_insert(Value::Null);
            outer.entry("model_name").or_insert(Value::Null);
            outer.entry("model_type").or_insert(Value::Null);
            outer.entry("version").or_insert("adapters.1.3.0".into());
            outer.insert("config".into(), config);
        }
        json
    }

    /// What gives the keys and values of each of these layers.
    fn forms(
        &self,
        site: &LayoutSite,
        layers: usize,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> Vec<AdapterHubForm> {
        if self.flat {
            // A file may declare any number.
            let elements = self.prefix_length.saturating_mul(layers * 2 * site.width);
            let all = plan.init().normal([elements], 1.0, like);
            return Shared::new(all, layers).map(AdapterHubForm::Flat).collect();
        }
        let shape = EncoderShape {
            virtual_tokens: self.prefix_length,
            width: site.input_width,
            hidden: self.bottleneck_size,
            kv: site.width,
            activation: self.non_linearity,
            zero: false,
        };
        let encoders = PrefixEncoder::of_layers(&shape, layers, plan.init(), like);
        encoders.into_iter().map(AdapterHubForm::Encoder).collect()
    }

    fn gate(&self, width: usize, plan: &mut Plan, like: (&Device, DType)) -> PrefixGate {
        let outputs = if self.shared_gating { 1 } else { 2 };
        PrefixGate {
            weight: plan.init().normal([width, outputs], 0.02, like),
            bias: plan.init().kaiming_uniform([outputs], width, like),
        }
    }
}

/// The first number among the segments of a name: the block's index.
fn block(name: &str) -> Option<usize> {
    name.split('.').find_map(|segment| segment.parse().ok())
}

impl Method for AdapterHubPrefixConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if layout.key_value_sites().next().is_none() {
            return Err(layout.no_site(PREFIX_TUNING.title, SiteKind::KeyValue));
        }
        let left_out = |site: &LayoutSite| {
            block(&site.name).is_some_and(|block| self.leave_out.contains(&block))
        };
        let (without, sites): (Vec<_>, Vec<_>) =
            layout.key_value_sites().partition(|site| left_out(site));
        let mut without: Vec<String> = without.iter().map(|site| site.name.clone()).collect();
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(PREFIX_TUNING.title, field, value, expected))
        };
        let Some(first) = sites.first() else {
            let expected = "some block must keep its prefix";
            return refuse("leave_out", &self.leave_out, expected);
        };
        let widths = |site: &LayoutSite| (site.width, site.input_width);
        if let Some(other) = sites.iter().find(|site| widths(site) != widths(first)) {
            let expected = format!(
                "a model whose attention layers are of one width, as they share the network: `{}` and `{}` are not",
                first.name, other.name
            );
            return refuse("prefix_length", &self.prefix_length, &expected);
        }
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let forms = self.forms(first, sites.len(), plan, like);
        for (layer, (site, form)) in sites.iter().zip(forms).enumerate() {
            let gate = self
                .use_gating
                .then(|| self.gate(site.input_width, plan, like));
            let prefix = AdapterHubPrefix {
                form,
                gate,
                dropout: DropoutConfig::new(self.dropout).init(),
                layer,
                layers: sites.len(),
                left_out: std::mem::take(&mut without),
                virtual_tokens: self.prefix_length,
                model: model_of(&site.name),
            };
            plan.add_prefix(*site, prefix);
        }
        plan.set_config_field("hidden_size", first.input_width);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_by_the_first_number() {
        assert_eq!(block("bert.encoder.layer.4.attention.self"), Some(4));
        assert_eq!(block("encoder"), None);
    }
}
