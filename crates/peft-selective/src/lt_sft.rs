//! `LT-SFT`: all parameters train at first; those that changed most are rewound and train alone.

use peft_core::Result;
use peft_core::method::{
    Common, Layout, Method, MethodHooks, Plan, States, Targets, method_config,
};

use crate::dense_first::{Choice, DenseFirst, Switch, plan_dense};
use crate::elements::{Place, candidates, share};
use crate::ranking::largest_of_all;

/// `LT-SFT`'s configuration.
///
/// Both phases are one training, in a loop that calls [`TrainingHooks`](peft_core::TrainingHooks). In a loop that does
/// not, it stays dense.
#[method_config(
    LT_SFT, peft_type = "LT_SFT", name = "lt-sft", title = "LT-SFT", family = Selective, identity_at_init, mergeable, new(),
    reference = "Ansell et al. 2022, Composable Sparse Fine-Tuning for Cross-Lingual Transfer, section 3"
)]
pub struct LtSftConfig {
    /// Share of all elements that go on, rounded down to a whole number of them: those that changed most.
    #[field(default = 0.005, above = 0.0, at_most = 1.0)]
    pub keep_ratio: f64,
    /// Share of the training's steps that are dense.
    #[field(default = 0.5, above = 0.0, below = 1.0)]
    pub dense_ratio: f64,
    /// Layers whose parameters take part, of whatever kind. Default: all but the head.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// The elements with the largest changes over all parameters.
#[derive(Debug)]
struct Largest {
    count: usize,
}

impl Choice for Largest {
    fn choose(&self, _names: &[&str], _places: &[Place], changes: &[Vec<f32>]) -> Vec<Vec<usize>> {
        let scores = changes
            .iter()
            .map(|changes| changes.iter().map(|change| change.abs()).collect());
        largest_of_all(&scores.collect::<Vec<_>>(), self.count)
    }
}

impl Method for LtSftConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let params = candidates(&self.targets, layout, plan, &LT_SFT)?;
        if plan.is_new() {
            share(&params, ("keep_ratio", self.keep_ratio), &LT_SFT)?;
        }
        plan_dense(&params, layout, plan);
        Ok(())
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let dense = states
            .of::<DenseFirst>()
            .filter_map(|(_, state)| state.dense.as_ref());
        let all: usize = dense.map(|dense| dense.shape().num_elements()).sum();
        let count = (all as f64 * self.keep_ratio) as usize;
        let when = ("dense_ratio", self.dense_ratio);
        Switch::schedule(when, steps, states, (Largest { count }, true), &LT_SFT)
    }
}
