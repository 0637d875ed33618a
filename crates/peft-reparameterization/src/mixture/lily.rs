//! Lily: down-projections shared by neighbouring layers, and up-projections shared by all, mixed by a router.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Layout, Method, Plan, Shared, TargetLayer,
    WeightAdapter, adapt_each, linear_targets, method_config,
};
use peft_core::{Result, Selection, Targets};

/// Zhong et al. 2024, section 3: `y = xW + s·(x A) Σₑ pₑ Bₑ`, with `p` the mean over all tokens of the batch of
/// `softmax(x A R)`.
#[derive(Module, Debug)]
pub struct LilyLinear {
    /// A, `[in, r]`: one for `stride_A` layers of a kind.
    pub lily_a: Shared<2>,
    /// The Bₑ, one above the other, `[num_B · r, out]`: those of all layers of a kind.
    pub lily_b: Shared<2>,
    /// R, `[r, num_B]`: the layer's own.
    pub lily_router: Param<Tensor<2>>,
    /// s.
    pub scaling: f64,
    /// Names of the other layers with this A, and with these Bₑ: their files hold copies.
    #[module(skip)]
    pub others: [Vec<String>; 2],
}

impl Adapter for LilyLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let twins =
            |key: CheckpointKey, field: &str, name: &str, others: &[String], turned: bool| {
                others.iter().fold(key, |key, other| {
                    let twin = CheckpointKey::named(field, &format!("{other}.{name}"));
                    key.twin(if turned { twin.transposed() } else { twin })
                })
            };
        let [of_a, of_b] = &self.others;
        let a = CheckpointKey::layer("lily_a", "lily_A.weight").transposed();
        let b = CheckpointKey::layer("lily_b", "lily_B.weight");
        vec![
            twins(a, "lily_a", "lily_A.weight", of_a, true),
            twins(b, "lily_b", "lily_B.weight", of_b, false),
            CheckpointKey::layer("lily_router", "lily_router.weight").transposed(),
        ]
    }
}

impl WeightAdapter for LilyLinear {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "Lily mixes its projections by what goes into the layer, so no weight says what it does: call the layer \
             through `peft_core::nn::AdaptedForward`, and attach no method above it that needs the weight"
        )
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let ([_, rank], [_, d_out]) = (self.lily_a.val().dims(), self.lily_b.val().dims());
        let down = input.clone().matmul(self.lily_a.val());
        let router = self.lily_router.val();
        let experts = router.dims()[1];
        let shares = softmax(down.clone().matmul(router), 1).mean_dim(0);
        let all = self.lily_b.val().reshape([experts, rank * d_out]);
        let up = shares.matmul(all).reshape([rank, d_out]);
        base.forward(input) + down.matmul(up) * self.scaling
    }

    fn is_mergeable(&self) -> bool {
        false
    }
}

/// Lily's configuration. Fields are called and behave as in Hugging Face PEFT's `LilyConfig`.
#[method_config(
    LILY, peft_type = "LILY", title = "Lily", family = Reparameterization, identity_at_init, new(r),
    reference = "Zhong et al. 2024, Low-Rank Interconnected Adaptation across Layers, section 3"
)]
pub struct LilyConfig {
    /// Rank. Default: 32. At least 1.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// How many layers of a kind, one behind the other, have one A. Default: 1. At least 1.
    #[field(rename = "stride_A", default = 1, at_least = 1)]
    pub stride_a: usize,
    /// How many Bₑ there are for all layers of a kind. Default: 2. At least 2, or there is nothing to route.
    #[field(rename = "num_B", default = 2, at_least = 2)]
    pub num_b: usize,
    /// Factor s of the change. Default: 1.
    #[field(default = 1.0, finite)]
    pub scaling: f64,
    /// Whether a fresh adapter changes nothing: the Bₑ are zero. Otherwise they are random, for tests. Default: true.
    #[field(default = true)]
    pub init_weights: bool,
    /// Layers to adapt. Default: `all-linear`. Layers of one shape that one name of the list selects are of a kind.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// Layers of a kind, by their indices among the targets.
struct Kind {
    name: String,
    shape: [usize; 2],
    layers: Vec<usize>,
}

/// The last segment of a name.
fn last_segment(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl LilyConfig {
    /// What layers that share have in common: the name that selects them, or the last segment of their own names where
    /// `all-linear` does.
    fn name_of_kind(&self, layer: &str) -> String {
        match &self.targets.target_modules {
            Some(Selection::Names(names)) => {
                let selects = |name: &&String| {
                    let rest = layer.strip_suffix(name.as_str());
                    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                let longest = names.iter().filter(selects).max_by_key(|name| name.len());
                longest.map_or(layer, String::as_str).to_string()
            }
            Some(pattern) if !pattern.is_all_linear() => String::new(),
            _ => last_segment(layer).to_string(),
        }
    }

    fn kinds(&self, targets: &[TargetLayer<'_>]) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let (name, shape) = (
                self.name_of_kind(target.name()),
                [target.d_in, target.d_out],
            );
            let same = |kind: &&mut Kind| kind.name == name && kind.shape == shape;
            match kinds.iter_mut().find(same) {
                Some(kind) => kind.layers.push(index),
                None => kinds.push(Kind {
                    name,
                    shape,
                    layers: vec![index],
                }),
            }
        }
        kinds
    }

    /// The state of every target.
    fn states(&self, targets: &[TargetLayer<'_>], plan: &mut Plan) -> Vec<LilyLinear> {
        let mut states: Vec<Option<LilyLinear>> = targets.iter().map(|_| None).collect();
        let (rank, experts) = (self.r, self.num_b);
        for Kind { shape, layers, .. } in self.kinds(targets) {
            let [d_in, d_out] = shape;
            let names = |layers: &[usize]| -> Vec<String> {
                let names = layers[1..]
                    .iter()
                    .map(|layer| targets[*layer].name().to_string());
                names.collect()
            };
            let like = targets[layers[0]].like();
            let of_b = [experts * rank, d_out];
            let b = plan
                .init()
                .zeros_or_kaiming_uniform(self.init_weights, of_b, d_out, like);
            let mut all_b = Shared::new(b, layers.len());
            for block in layers.chunks(self.stride_a) {
                let a = plan.init().kaiming_uniform([d_in, rank], d_in, like);
                for (layer, lily_a) in block.iter().zip(Shared::new(a, block.len())) {
                    let router = plan.init().kaiming_uniform([rank, experts], rank, like);
                    states[*layer] = Some(LilyLinear {
                        lily_a,
                        lily_b: all_b.next().expect("a handle for each layer"),
                        lily_router: router,
                        scaling: self.scaling,
                        others: [names(block), names(&layers)],
                    });
                }
            }
        }
        states.into_iter().flatten().collect()
    }
}

impl Method for LilyConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let listed =
            matches!(&self.targets.target_modules, Some(selection) if !selection.is_all_linear());
        if !listed {
            // A list of whole names, as files have it otherwise, would part what layers share.
            let names = targets.iter().map(|target| last_segment(target.name()));
            let names: BTreeSet<&str> = names.collect();
            plan.set_config_field("target_modules", names.into_iter().collect::<Vec<_>>());
        }
        let mut states = self.states(&targets, plan).into_iter();
        adapt_each(self, &targets, layout, plan, |_, _| {
            Ok(states.next().expect("a state for each target"))
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_a_kind_are_those_that_one_name_selects() {
        let config = LilyConfig::new(4).with_targets(["dense", "output.dense", "query"]);
        assert_eq!(config.name_of_kind("layer.0.output.dense"), "output.dense");
        assert_eq!(config.name_of_kind("layer.0.intermediate.dense"), "dense");
        assert_eq!(config.name_of_kind("query"), "query");
        let all = LilyConfig::new(4).with_targets("All-Linear");
        assert_eq!(all.name_of_kind("layer.0.output.dense"), "dense");
        let pattern = LilyConfig::new(4).with_targets(".*(query|key)");
        assert_eq!(
            pattern.name_of_kind("layer.1.key"),
            pattern.name_of_kind("layer.0.query")
        );
    }
}
