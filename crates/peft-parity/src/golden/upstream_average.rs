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
    method_config,
};
use peft_core::{Composition, Nested, PeftModule};

use super::Problem;

/// The name of the adapter of zeros.
const ZEROS_NAME: &str = "zeros";

/// Zeros at sites of hidden states.
#[method_config(
    ZEROS, peft_type = "ZEROS", title = "Zeros", family = Reference, new(),
    reference = "what AdapterHub's `Average` leaves of a state"
)]
struct ZerosConfig {
    /// Names of the sites.
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

impl Method for ZerosConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> peft_core::Result<()> {
        for state in [HiddenState::AttentionOutput, HiddenState::FeedForwardOutput] {
            for site in layout.hidden_sites(state) {
                if self.places.contains(&site.name) {
                    plan.adapt_hidden(site, Zeros {});
                }
            }
        }
        Ok(())
    }
}

/// The model with the adapter of zeros beside those whose files have these keys.
pub(super) fn with_zeros<M: PeftModule>(model: &M, keys: &[String]) -> Result<M, Problem> {
    // Changes of weights begin at nothing, and need no zeros.
    let places = keys.iter().filter_map(|key| key.split_once(ADAPTERS));
    let places = places.map(|(site, _)| site.to_string());
    let zeros = ZerosConfig::new().with_places(places.collect::<Vec<_>>());
    Ok(model.attach(ZEROS_NAME, &zeros)?)
}

/// In the keys of adapters of hidden states.
const ADAPTERS: &str = ".adapters.";

/// Whether adapters whose files have these keys need zeros.
pub(super) fn needs_zeros(keys: &[String]) -> bool {
    keys.iter().any(|key| key.contains(ADAPTERS))
}

/// A tree with each average as upstream computes it, with zeros where they are needed.
pub(super) fn as_upstream(tree: Nested, zeros: bool) -> Nested {
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
            if zeros {
                parts.push((ZEROS_NAME.into(), 1.0 - sum));
            }
            Nested::Weighted(parts)
        }
        other => other,
    }
}

/// The model with the adapters `names` on it, composed as upstream's `Average` of these weights. `keys` are those of the
/// adapters' files.
pub(super) fn compose<M: PeftModule>(
    model: &M,
    names: &[String],
    weights: &[f64],
    keys: &[String],
) -> Result<M, Problem> {
    let model = with_zeros(model, keys)?;
    let parts = weights.iter().map(|weight| weight / weights.len() as f64);
    let mut all: Vec<(String, f64)> = names.iter().cloned().zip(parts.clone()).collect();
    all.push((ZEROS_NAME.into(), 1.0 - parts.sum::<f64>()));
    Ok(model.set_composition(&Composition::Weighted(all))?)
}
