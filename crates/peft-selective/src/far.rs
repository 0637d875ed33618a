//! `FAR`: after some steps of priming, the nodes of linear layers that changed most go on alone.

use std::collections::BTreeMap;

use peft_core::Result;
use peft_core::method::{
    Common, Layout, Method, MethodHooks, Plan, States, Targets, linear_targets, method_config,
};

use crate::dense_first::{Choice, Switch, plan_dense};
use crate::elements::Place;
use crate::ranking::ranked;

/// `FAR`'s configuration. A node is an output of a linear layer: a row of upstream's weight `[out, in]`, and an element of
/// the bias.
///
/// Both phases are one training, in a loop that calls [`TrainingHooks`](peft_core::TrainingHooks). In a loop that does
/// not, it stays dense.
#[method_config(
    FAR, peft_type = "FAR", title = "FAR", family = Selective, identity_at_init, mergeable, new(),
    reference = "Vucetic et al. 2022, Efficient Fine-Tuning of BERT Models on the Edge, section III"
)]
pub struct FarConfig {
    /// Share of a layer's nodes that go on, rounded, and at least one: those that changed most.
    #[field(default = 0.1, above = 0.0, at_most = 1.0)]
    pub learner_ratio: f64,
    /// Share of the training's steps that are priming.
    #[field(default = 0.1, above = 0.0, below = 1.0)]
    pub priming_ratio: f64,
    /// Linear layers whose nodes take part. The paper's are those of the feed-forward networks.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// Of each layer the nodes with the largest sums of changes.
#[derive(Debug)]
struct Nodes {
    share: f64,
}

impl Choice for Nodes {
    fn choose(&self, names: &[&str], places: &[Place], changes: &[Vec<f32>]) -> Vec<Vec<usize>> {
        // A layer's weight has a row for each node, its bias one number.
        let nodes = |place: &Place| match place.shape() {
            &[_, outputs] => outputs,
            shape => shape.iter().product(),
        };
        let mut sums: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for ((name, place), changes) in names.iter().zip(places).zip(changes) {
            let count = nodes(place);
            let sums = sums.entry(name).or_insert_with(|| vec![0.0; count]);
            let width = changes.len() / count.max(1);
            for (sum, node) in sums.iter_mut().zip(changes.chunks(width.max(1))) {
                *sum += node.iter().map(|change| change.abs()).sum::<f32>();
            }
        }
        let learners: BTreeMap<&str, Vec<usize>> = sums
            .into_iter()
            .map(|(name, sums)| {
                let count = (sums.len() as f64 * self.share).round().max(1.0) as usize;
                let mut chosen = ranked(&sums, count);
                chosen.sort_unstable();
                (name, chosen)
            })
            .collect();
        let of_state = |((name, place), changes): ((&&str, &Place), &Vec<f32>)| {
            let width = changes.len() / nodes(place).max(1);
            let rows = learners[*name].iter();
            rows.flat_map(|row| row * width..(row + 1) * width)
                .collect()
        };
        names
            .iter()
            .zip(places)
            .zip(changes)
            .map(of_state)
            .collect()
    }
}

impl Method for FarConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let params = targets.iter().flat_map(|target| {
            let bias = target.bias.filter(|bias| !plan.is_saved(bias));
            [Some(target.weight), bias].into_iter().flatten()
        });
        let params: Vec<_> = params.filter(|param| !param.is_tied()).collect();
        plan_dense(&params, layout, plan);
        Ok(())
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let share = self.learner_ratio;
        let when = ("priming_ratio", self.priming_ratio);
        Switch::schedule(when, steps, states, (Nodes { share }, false), &FAR)
    }
}
