//! AdapterHub's `Average`, which is no average.
//!
//! `adapters` 1.3 multiplies the outputs of n adapters with weights that add up to 1, and takes the mean of the products
//! over the adapters: it divides by n once more. Two copies of one adapter, averaged, give half of what the adapter gives.
//! Our [`Composition::Weighted`] gives what the adapter gives. So that such a case can still say whether the adapters
//! are right, this computes upstream's: `Σ (wᵢ / n) fᵢ` is our composition with weights `wᵢ / n`, and with a further adapter
//! that puts zeros in the place of the state, whose weight is `1 − Σ wᵢ / n`.

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, CheckpointKey, Common, HiddenAdapter, HiddenState, Layout, Method, Plan, SiteContext,
    WeightAdapter, method_config,
};
use peft_core::{Composition, Nested, PeftModule};
use serde_json::Value;

use super::{Problem, Tensors};

/// The name of the adapter of zeros.
const ZEROS_NAME: &str = "zeros";

/// Zeros in the place of what sites and layers give.
#[method_config(
    ZEROS, peft_type = "ZEROS", title = "Zeros", family = Reference, new(),
    reference = "what AdapterHub's `Average` leaves of a state"
)]
pub(super) struct ZerosConfig {
    /// Names of sites of hidden states, and of linear layers.
    places: Vec<String>,
    /// Fields that every method has.
    common: Common,
}

/// A state of zeros.
#[derive(Module, Debug)]
struct Zeros {}

impl Adapter for Zeros {
    fn tensors(&self) -> Vec<CheckpointKey> {
        Vec::new()
    }
}

impl HiddenAdapter for Zeros {
    fn forward(&self, hidden: Tensor<3>, _context: &SiteContext<'_>) -> Tensor<3> {
        hidden.zeros_like()
    }
}

impl WeightAdapter for Zeros {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        weight.zeros_like()
    }
}

impl Method for ZerosConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> peft_core::Result<()> {
        for state in [HiddenState::AttentionOutput, HiddenState::FeedForwardOutput] {
            for site in layout.hidden_sites(state) {
                if self.places.contains(&site.name) {
                    plan.adapt_hidden(site, Zeros {});
                }
            }
        }
        for param in &layout.params {
            let layer = param.name.rsplit_once('.').map(|(layer, _)| layer);
            if layer.is_some_and(|layer| self.places.iter().any(|place| place == layer)) {
                plan.adapt_weight(param, Zeros {});
            }
        }
        Ok(())
    }
}

/// In the keys of adapters of hidden states, and of those of layers.
const LISTS: [&str; 2] = [".adapters.", ".loras."];

impl ZerosConfig {
    /// Adds the places of an adapter of which an average leaves a part: bottlenecks but those beside the sublayer, and (IA)³,
    /// which has no A. What adds a change begins at nothing.
    pub(super) fn add_places(&mut self, config: &Value, tensors: &Tensors) {
        let fields = &config["config"];
        let parts = fields["configs"].as_array().into_iter().flatten();
        let is_parallel = parts
            .chain([fields])
            .any(|part| part["is_parallel"] == true);
        let [adapters, loras] = LISTS;
        for key in tensors.keys() {
            let scales = key
                .strip_suffix("lora_B")
                .is_some_and(|layer| !tensors.contains_key(&format!("{layer}lora_A")));
            let place = match (key.split_once(adapters), key.split_once(loras)) {
                (Some((site, _)), _) if !is_parallel => site,
                (_, Some((layer, _))) if scales => layer,
                _ => continue,
            };
            if !self.places.iter().any(|known| known == place) {
                self.places.push(place.to_string());
            }
        }
    }

    /// The model with zeros at these places beside its adapters.
    pub(super) fn on<M: PeftModule>(&self, model: &M) -> Result<M, Problem> {
        if self.places.is_empty() {
            return Ok(model.clone());
        }
        Ok(model.attach(ZEROS_NAME, self)?)
    }
}

/// A tree with each average as upstream computes it, with zeros where they are needed.
pub(super) fn as_upstream(tree: Nested, zeros: &ZerosConfig) -> Nested {
    let same = |part| as_upstream(part, zeros);
    let counted = |parts: Vec<(Nested, usize)>| {
        let parts = parts.into_iter();
        parts.map(|(part, count)| (same(part), count)).collect()
    };
    match tree {
        Nested::Stack(parts) => Nested::Stack(parts.into_iter().map(same).collect()),
        Nested::Rows(parts) => Nested::Rows(counted(parts)),
        Nested::Tokens(parts) => Nested::Tokens(counted(parts)),
        Nested::Weighted(parts) => {
            let count = parts.len() as f64;
            let parts = parts.into_iter();
            let mut parts: Vec<(Nested, f64)> = parts
                .map(|(part, weight)| (same(part), weight / count))
                .collect();
            let sum: f64 = parts.iter().map(|(_, weight)| weight).sum();
            if !zeros.places.is_empty() {
                parts.push((ZEROS_NAME.into(), 1.0 - sum));
            }
            Nested::Weighted(parts)
        }
        other => other,
    }
}

/// The model with the adapters `names` on it, composed as upstream's `Average` of these weights.
pub(super) fn compose<M: PeftModule>(
    model: &M,
    names: &[String],
    weights: &[f64],
    zeros: &ZerosConfig,
) -> Result<M, Problem> {
    let parts = names.iter().map(|name| Nested::from(name.as_str()));
    let mean = Nested::Weighted(parts.zip(weights.iter().copied()).collect());
    let tree = as_upstream(mean, zeros);
    Ok(zeros
        .on(model)?
        .set_composition(&Composition::Nested(tree))?)
}
