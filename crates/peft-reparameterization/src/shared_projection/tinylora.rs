//! TinyLoRA: a vector of a few numbers, spread by random matrices between the largest singular directions of a weight.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::module::embedding;
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward as _, dropout_rate};
use peft_core::ops::add_low_rank;
use serde::{Deserialize, Serialize};

use crate::init_name;
use crate::lora::init::Start;
use crate::math::torch_random::TorchGenerator;
use crate::shared_projection::projections::{fits, lazy};

/// Morris et al. 2026, section 3: `W' = W + A R B` with R = Σᵢ vᵢ Pᵢ, between the r largest singular directions of W.
#[derive(Module, Debug)]
pub struct TinyLora {
    /// A, `[in, r]`: singular vectors times the roots of their values. Of a table `[vocabulary, r]`. Frozen.
    pub down: Param<Tensor<2>>,
    /// B, `[r, out]`: the other ones. Of a table `[r, d]`. Frozen.
    pub up: Param<Tensor<2>>,
    /// P, `[u, r, r]`: of a linear layer, each is the transpose of what R is made of here. Frozen.
    pub projection: Param<Tensor<3>>,
    /// v, `[u]`: of this layer, or of a group of layers. All that is trained.
    pub v: Shared<1>,
    /// On A's input, on the activation side only; of a table on the rows of A.
    pub dropout: Dropout,
    /// Which group of layers this one belongs to.
    pub group: usize,
    /// Whether the weight is a table of embeddings.
    pub is_table: bool,
    /// Whether P is in the checkpoint; if not, the configuration's seed says all about it.
    pub save_projection: bool,
}

impl TinyLora {
    /// R B, `[r, out]`. A is frozen, so that it costs no gradient.
    fn second_factor(&self) -> Tensor<2> {
        let (v, projection) = (self.v.val(), self.projection.val());
        let [count, rank, _] = projection.dims();
        let mixed = v
            .unsqueeze::<2>()
            .matmul(projection.reshape([count, rank * rank]))
            .reshape([rank, rank]);
        // A file has R for torch's weights, which are transposed.
        let mixed = if self.is_table {
            mixed
        } else {
            mixed.transpose()
        };
        mixed.matmul(self.up.val())
    }

    fn factors(&self) -> LowRank {
        LowRank::new(self.down.val(), self.second_factor(), 1.0)
    }

    /// Whether something is dropped in a forward pass.
    fn drops(&self) -> bool {
        dropout_rate(&self.dropout) > 0.0 && self.v.val().is_autodiff()
    }
}

impl Adapter for TinyLora {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let factor = |field, key| {
            let key = CheckpointKey::layer(field, key);
            if self.is_table { key } else { key.transposed() }
        };
        let [down, up] = if self.is_table {
            ["tinylora_B", "tinylora_A"]
        } else {
            ["tinylora_A", "tinylora_B"]
        };
        let projection = if self.save_projection {
            CheckpointKey::layer("projection", "tinylora_P")
        } else {
            CheckpointKey::unsaved("projection")
        };
        vec![
            factor("down", down),
            factor("up", up),
            projection,
            CheckpointKey::root("v", &format!("base_model.tinylora_v.{}", self.group)),
        ]
    }
}

impl WeightAdapter for TinyLora {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.factors().product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        (!self.is_table && !self.drops()).then(|| self.factors())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        if !self.drops() {
            return base.forward_with(input, self.factors());
        }
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(base.forward(input), dropped, self.factors())
    }

    // Only the rows that are looked up.
    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        let rows = self
            .dropout
            .adapted(embedding(self.down.val(), ids.clone()));
        base.forward(ids) + rows.matmul(self.second_factor().unsqueeze())
    }

    fn keeps_weight(&self) -> bool {
        !self.is_table
    }
}

/// Initial values of TinyLoRA's vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum InitTinyLora {
    /// `true`: zeros, so that the fresh adapter changes nothing. `false`: standard normal; upstream leaves whatever was in
    /// memory.
    Default(bool),
    /// `"uniform"`: uniform within `init_v_bound` of zero.
    Named(String),
}

impl Default for InitTinyLora {
    fn default() -> Self {
        Self::Default(true)
    }
}

/// TinyLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `TinyLoraConfig`.
#[method_config(
    TINYLORA, peft_type = "TINYLORA", title = "TinyLoRA", family = Reparameterization, identity_at_init, mergeable, new(u),
    reference = "Morris et al. 2026, Learning to Reason in 13 Parameters, section 3"
)]
pub struct TinyLoraConfig {
    /// Singular directions of a weight that are used; all of them where there are no more.
    #[field(default = 2, at_least = 1)]
    pub r: usize,
    /// Length of a trained vector.
    #[field(default = 64, at_least = 1)]
    pub u: usize,
    /// From 0 to 1. 0: every layer has its own vector. 1: all layers share one. Between: there are (1 − `weight_tying`) times
    /// as many vectors as layers, each for as many layers in a row.
    #[field(default = 0.0, finite)]
    pub weight_tying: f64,
    /// Seed of the random matrices of the first layer, for torch's generator; the next layer's is greater by 1.
    #[field(default = 42, any)]
    pub projection_seed: i64,
    /// Whether the random matrices are in the checkpoint.
    #[field(default = true)]
    pub save_projection: bool,
    /// Dropout probability on the factors' input, on the activation side only.
    #[field(probability)]
    pub tinylora_dropout: f64,
    /// Bound of the initial values `"uniform"`.
    #[field(default = 0.02, at_least = 0.0)]
    pub init_v_bound: f64,
    /// Initial values of the vectors. Default: `true`.
    pub init_weights: InitTinyLora,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

/// Steps of subspace iteration towards the singular directions. A whole decomposition takes minutes for a weight of a
/// large model, and only a few directions of it are used.
const ITERATIONS: usize = 16;

/// How many layers in a row share each vector, of so many layers.
fn groups(layers: usize, weight_tying: f64) -> Vec<usize> {
    if layers == 0 {
        return Vec::new();
    }
    let count = (layers as f64 * (1.0 - weight_tying)).round_ties_even() as usize;
    let count = count.clamp(1, layers);
    let each = layers / count;
    let mut sizes = vec![each; count];
    // What is left over belongs to the last one.
    sizes[count - 1] = layers - each * (count - 1);
    sizes
}

impl TinyLoraConfig {
    /// A vector.
    fn vector(&self, init: &mut Init, like: (&Device, DType)) -> Param<Tensor<1>> {
        match self.init_weights {
            InitTinyLora::Default(true) => init.zeros([self.u], like),
            InitTinyLora::Default(false) => init.normal([self.u], 1.0, like),
            InitTinyLora::Named(_) => init.uniform([self.u], self.init_v_bound, like),
        }
    }

    /// What is frozen of the layer with this number: both factors and the projection.
    fn frozen(
        &self,
        target: &TargetLayer<'_>,
        number: usize,
        plan: &mut Plan,
    ) -> Result<([Param<Tensor<2>>; 2], Param<Tensor<3>>)> {
        let (d_in, d_out, like) = (target.d_in, target.d_out, target.like());
        let rank = self.r.min(d_in).min(d_out);
        let shape = [self.u, rank, rank];
        if !fits(&shape) {
            let expected = "a length whose random matrices fit into memory";
            return Err(Error::config(TINYLORA.title, "u", self.u, expected));
        }
        let factors = if plan.is_new() {
            // What PiSSA takes out of the base; here it stays there.
            let start = Start::Pissa(Some(ITERATIONS));
            let factors = start.removed(target.weight, rank, 1.0);
            [factors.a, factors.b]
        } else {
            let init = plan.init();
            [[d_in, rank], [rank, d_out]]
                .map(|shape| init.zeros(shape, like).set_require_grad(false))
        };
        let projection = if self.save_projection && !plan.is_new() {
            plan.init().zeros(shape, like).set_require_grad(false)
        } else {
            let seed = self.projection_seed.wrapping_add_unsigned(number as u64);
            lazy(shape, like, false, move || {
                let mut generator = TorchGenerator::new(seed.cast_unsigned());
                generator.normal(shape.iter().product(), 1.0 / (rank as f64).sqrt())
            })
        };
        Ok((factors, projection))
    }
}

impl Method for TinyLoraConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if !(0.0..=1.0).contains(&self.weight_tying) {
            let (field, value) = ("weight_tying", self.weight_tying);
            return Err(Error::config(TINYLORA.title, field, value, "from 0 to 1"));
        }
        match &self.init_weights {
            InitTinyLora::Named(name) => init_name::check(&TINYLORA, name, &["uniform"]),
            InitTinyLora::Default(_) => Ok(()),
        }
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let kinds = &[LayerKind::Linear, LayerKind::Embedding];
        let targets = layer_targets(self, layout, plan, kinds)?;
        let mut vectors = Vec::with_capacity(targets.len());
        for (group, size) in groups(targets.len(), self.weight_tying)
            .into_iter()
            .enumerate()
        {
            let vector = self.vector(plan.init(), targets[vectors.len()].like());
            vectors.extend(Shared::new(vector, size).map(|handle| (group, handle)));
        }
        let mut vectors = vectors.into_iter().enumerate();
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (number, (group, v)) = vectors.next().expect("a handle for each target");
            let ([down, up], projection) = self.frozen(target, number, plan)?;
            Ok(TinyLora {
                down,
                up,
                projection,
                v,
                dropout: DropoutConfig::new(self.tinylora_dropout).init(),
                group,
                is_table: target.layer.kind == LayerKind::Embedding,
                save_projection: self.save_projection,
            })
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_projection::projections::tests::golden;

    #[test]
    fn layers_share_vectors_as_upstreams_do() {
        for (layers, tying, expected) in [
            (4, 0.0, vec![1, 1, 1, 1]),
            (4, 1.0, vec![4]),
            // 4.5 is rounded to 4.
            (9, 0.5, vec![2, 2, 2, 3]),
            (7, 0.3, vec![1, 1, 1, 1, 3]),
            (0, 0.5, vec![]),
        ] {
            assert_eq!(groups(layers, tying), expected, "{layers} by {tying}");
        }
    }

    #[test]
    fn the_seed_gives_upstreams_projections() {
        // The second layer of the file.
        let key = "base_model.model.encoder.layer.0.attention.self.value.tinylora_P";
        for (case, length, rank) in [("tinylora", 7, 2), ("tinylora_tied", 5, 3)] {
            let theirs = golden(&format!("bert_more/{case}"), key);
            let std = 1.0 / f64::from(rank).sqrt();
            let ours = TorchGenerator::new(43).normal(length * (rank * rank) as usize, std);
            assert_eq!(ours.len(), theirs.len());
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(ours.iter().zip(&theirs).all(close), "{case}");
        }
    }

    #[test]
    fn the_change_lies_between_the_singular_directions() {
        for (_, device) in peft_core::device::cpu_devices() {
            let matrix = |values: [f32; 2], shape: [usize; 2]| {
                let data = TensorData::new(values.to_vec(), shape);
                Param::from_tensor(Tensor::<2>::from_data(data, &device))
            };
            let projection = TensorData::new(vec![1.0_f32, 0.5, -1.0], [3, 1, 1]);
            let v = Tensor::<1>::from_data([2.0_f32, 4.0, 1.0], &device);
            let state = |is_table| TinyLora {
                down: matrix([1.0, 3.0], [2, 1]),
                up: matrix([-1.0, 2.0], [1, 2]),
                projection: Param::from_tensor(Tensor::from_data(projection.clone(), &device)),
                v: Shared::new(Param::from_tensor(v.clone()), 1)
                    .next()
                    .unwrap(),
                dropout: DropoutConfig::new(0.0).init(),
                group: 0,
                is_table,
                save_projection: true,
            };
            // R is 2 + 2 - 1.
            let expected = TensorData::from([[-3.0_f32, 6.0], [-9.0, 18.0]]);
            for is_table in [false, true] {
                let change = state(is_table).compose(Tensor::<2>::zeros([2, 2], &device));
                change.into_data().assert_eq(&expected, false);
            }
        }
    }
}
