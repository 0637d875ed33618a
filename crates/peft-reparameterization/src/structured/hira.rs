//! HiRA: a low-rank factor for every weight, multiplied with the weight.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::module::{conv2d, embedding};
use burn::tensor::{Int, Tensor};
use peft_core::method::{
    Adapter, BaseConv2d, BaseEmbedding, BaseLinear, CheckpointKey, Common, Family, Init, LayerKind,
    Layout, LayoutParam, Method, MethodInfo, Patterns, Plan, WeightAdapter, by_peft_type,
    config_from_json,
};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::linear;
use peft_core::{Error, Result, Targets};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::lora::config::InitLora;
use peft_core::method::{at_least_one, patterns, refuse_unused, select};
use peft_core::{common_method, target_builders};

/// HiRA's registration.
pub static HIRA: MethodInfo = MethodInfo {
    name: "hira",
    peft_type: "HIRA",
    title: "HiRA",
    family: Family::Reparameterization,
    reference: "Huang et al. 2025, HiRA: Parameter-Efficient Hadamard High-Rank Adaptation, section 3",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<HiraConfig>,
    recognises: by_peft_type,
};

/// `weight ⊙ (1 + product)`, for a product with the weight's elements in the weight's order.
fn scaled<const D: usize>(weight: Tensor<D>, product: Tensor<2>) -> Tensor<D> {
    let shape = weight.shape();
    weight * (product + 1.0).reshape(shape)
}

/// Whether inputs are dropped in the forward pass of a state with this factor.
fn drops<const D: usize>(dropout: &Dropout, factor: &Param<Tensor<D>>) -> bool {
    dropout_rate(dropout) > 0.0 && factor.val().is_autodiff()
}

/// HiRA on a linear layer: W' = W ⊙ (1 + A B).
#[derive(Module, Debug)]
pub struct HiraLinear {
    /// A, `[in, r]`.
    pub hira_a: Param<Tensor<2>>,
    /// B, `[r, out]`.
    pub hira_b: Param<Tensor<2>>,
    /// On the input of the change; on the activation side only.
    pub dropout: Dropout,
}

impl HiraLinear {
    /// A B, `[in, out]`.
    fn product(&self) -> Tensor<2> {
        self.hira_a.val().matmul(self.hira_b.val())
    }
}

impl Adapter for HiraLinear {
    const METHOD: &'static str = "hira";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![
            CheckpointKey::layer("hira_a", "hira_A").transposed(),
            CheckpointKey::layer("hira_b", "hira_B").transposed(),
        ]
    }
}

impl WeightAdapter for HiraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        scaled(weight, self.product())
    }

    // W ⊙ A B has full rank: without W', its product with the input would take r dense products.
    fn linear(&self, input: Tensor<2>, inner: &BaseLinear<'_>) -> Tensor<2> {
        let weight = inner.weight();
        if !drops(&self.dropout, &self.hira_a) {
            return linear(input, self.compose(weight), inner.bias(), None);
        }
        let dropped = self.dropout.adapted(input.clone());
        inner.forward(input) + dropped.matmul(weight * self.product())
    }
}

/// HiRA on an embedding table: row i becomes `W[i] ⊙ (1 + A[i] B)`. No dropout, as upstream.
#[derive(Module, Debug)]
pub struct HiraEmbedding {
    /// A, `[vocabulary, r]`.
    pub hira_a: Param<Tensor<2>>,
    /// B, `[r, d]`.
    pub hira_b: Param<Tensor<2>>,
}

impl Adapter for HiraEmbedding {
    const METHOD: &'static str = "hira";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![
            CheckpointKey::layer("hira_a", "hira_embedding_A").transposed(),
            CheckpointKey::layer("hira_b", "hira_embedding_B").transposed(),
        ]
    }
}

impl WeightAdapter for HiraEmbedding {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        scaled(weight, self.hira_a.val().matmul(self.hira_b.val()))
    }

    // Only the rows that are looked up.
    fn embedding(&self, ids: Tensor<2, Int>, inner: &BaseEmbedding<'_>) -> Tensor<3> {
        let down = embedding(self.hira_a.val(), ids.clone());
        inner.forward(ids) * (down.matmul(self.hira_b.val().unsqueeze()) + 1.0)
    }
}

/// HiRA on a 2-D convolution: the kernel times 1 + A convolved with B, which is 1×1.
#[derive(Module, Debug)]
pub struct HiraConv2d {
    /// A, `[r, in / groups, h, w]`.
    pub hira_a: Param<Tensor<4>>,
    /// B, `[out, r, 1, 1]`.
    pub hira_b: Param<Tensor<4>>,
    /// On the input of the change; on the activation side only.
    pub dropout: Dropout,
}

impl HiraConv2d {
    /// B A, `[out, in / groups · h · w]`.
    fn product(&self) -> Tensor<2> {
        let [out, rank, _, _] = self.hira_b.dims();
        let down = self.hira_a.val().reshape([rank as isize, -1]);
        self.hira_b.val().reshape([out, rank]).matmul(down)
    }
}

impl Adapter for HiraConv2d {
    const METHOD: &'static str = "hira";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![
            CheckpointKey::layer("hira_a", "hira_A"),
            CheckpointKey::layer("hira_b", "hira_B"),
        ]
    }
}

impl WeightAdapter for HiraConv2d {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        scaled(weight, self.product())
    }

    fn conv2d(&self, input: Tensor<4>, inner: &BaseConv2d<'_>) -> Tensor<4> {
        let weight = inner.weight();
        if !drops(&self.dropout, &self.hira_a) {
            return conv2d(input, self.compose(weight), None, inner.options());
        }
        let dropped = self.dropout.adapted(input.clone());
        let shape = weight.shape();
        let change = weight * self.product().reshape(shape);
        inner.forward(input) + conv2d(dropped, change, None, inner.options())
    }
}

/// HiRA's configuration. Fields are called and behave as in Hugging Face PEFT's `HiraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HiraConfig {
    /// Rank of the factors. Default: 32. At least 1, at most the layer's smaller side. The change of
    /// the weight has any rank.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Dropout probability on the change's input, in [0, 1). Default: 0. It acts on the activation side
    /// only, and not on embeddings.
    #[serde(default)]
    pub hira_dropout: f64,
    /// Initial values. Default: `true`: A Kaiming-uniform with a = sqrt(5), B zero (embeddings: A zero, B
    /// normal). `"gaussian"`: on linear layers A normal with standard deviation 1 / r instead. `false`:
    /// both normal with standard deviation 1, so that the fresh adapter does change outputs; for tests.
    #[serde(default, deserialize_with = "null_is_false")]
    pub init_weights: InitLora,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[serde(default)]
    pub rank_pattern: Map<String, Value>,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_rank() -> usize {
    32
}

/// Upstream takes null for false.
fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<InitLora, D::Error> {
    let found = Option::<InitLora>::deserialize(deserializer)?;
    Ok(found.unwrap_or(InitLora::Default(false)))
}

impl Default for HiraConfig {
    fn default() -> Self {
        Self::new(default_rank())
    }
}

impl HiraConfig {
    /// HiRA of rank `r` on all linear layers but the output head.
    pub fn new(r: usize) -> Self {
        Self {
            r,
            hira_dropout: 0.0,
            init_weights: InitLora::default(),
            rank_pattern: Map::new(),
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets the dropout probability.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.hira_dropout = dropout;
        self
    }

    /// Sets the initial values.
    #[must_use]
    pub fn with_init(mut self, init: impl Into<InitLora>) -> Self {
        self.init_weights = init.into();
        self
    }

    /// Sets another rank for layers whose name ends in `pattern`, a regular expression.
    #[must_use]
    pub fn with_rank_for(mut self, pattern: &str, r: usize) -> Self {
        self.rank_pattern.insert(pattern.into(), r.into());
        self
    }

    target_builders!();

    fn ranks(&self) -> Result<Patterns<usize>> {
        let expected = "a whole number of at least 1";
        patterns(
            &self.rank_pattern,
            (&HIRA, "rank_pattern"),
            expected,
            at_least_one,
        )
    }

    /// Initial values of both factors: A of `fan_in` inputs.
    fn draw<const D: usize>(
        &self,
        init: &mut Init,
        [a, b]: [[usize; D]; 2],
        (rank, fan_in): (usize, usize),
        param: &LayoutParam,
    ) -> [Param<Tensor<D>>; 2] {
        let like = (&param.device(), param.dtype());
        match &self.init_weights {
            InitLora::Default(false) => [init.normal(a, 1.0, like), init.normal(b, 1.0, like)],
            // Upstream knows the name on linear layers only.
            InitLora::Named(_) if D == 2 => {
                [init.normal(a, 1.0 / rank as f64, like), init.zeros(b, like)]
            }
            _ => [init.kaiming_uniform(a, fan_in, like), init.zeros(b, like)],
        }
    }
}

impl Method for HiraConfig {
    common_method!(HIRA);

    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(HIRA.title, field, value, expected))
        };
        if self.r == 0 {
            return refuse("r", &self.r, "at least 1");
        }
        if !(0.0..1.0).contains(&self.hira_dropout) {
            return refuse("hira_dropout", &self.hira_dropout, "in [0, 1)");
        }
        if let InitLora::Named(name) = &self.init_weights
            && !name.eq_ignore_ascii_case("gaussian")
        {
            return refuse("init_weights", name, "true, false or \"gaussian\"");
        }
        self.ranks().map(|_| ())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let kinds = (
            &[LayerKind::Linear, LayerKind::Embedding, LayerKind::Conv2d][..],
            "Linear, Embedding and Conv2d",
        );
        let targets = select(&self.targets, layout, plan, &HIRA, kinds)?;
        let ranks = self.ranks()?;
        refuse_unused(&ranks, &targets, plan)?;
        for (layer, weight) in targets {
            // Upstream writes its `rank_pattern`, and does not go by it: a file's own ranks count.
            let stored = ["hira_A", "hira_embedding_A"]
                .into_iter()
                .find_map(|key| plan.stored_shape(layer, key)?.first().copied());
            let rank = match stored {
                Some(rank) => rank,
                None => ranks.get(&layer.name)?.unwrap_or(self.r),
            };
            let shape = weight.shape();
            let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
            let most = rows.min(columns);
            if plan.is_new() && rank > most {
                let expected = format!("`{}` has shape {shape:?}, so at most {most}", layer.name);
                return Err(Error::config(HIRA.title, "r", rank, expected));
            }
            let shapes = [[rows, rank], [rank, columns]];
            let dropout = DropoutConfig::new(self.hira_dropout).init();
            match layer.kind {
                LayerKind::Embedding => {
                    let like = (&weight.device(), weight.dtype());
                    let init = plan.init();
                    let hira_a = match self.init_weights {
                        InitLora::Default(false) => init.normal(shapes[0], 1.0, like),
                        _ => init.zeros(shapes[0], like),
                    };
                    let hira_b = init.normal(shapes[1], 1.0, like);
                    plan.adapt_weight(weight, HiraEmbedding { hira_a, hira_b });
                }
                LayerKind::Conv2d => {
                    let shapes = [[rank, shape[1], shape[2], shape[3]], [rows, rank, 1, 1]];
                    let [hira_a, hira_b] = self.draw(plan.init(), shapes, (rank, columns), weight);
                    let state = HiraConv2d {
                        hira_a,
                        hira_b,
                        dropout,
                    };
                    plan.adapt_weight(weight, state);
                }
                _ => {
                    let [hira_a, hira_b] = self.draw(plan.init(), shapes, (rank, rows), weight);
                    let state = HiraLinear {
                        hira_a,
                        hira_b,
                        dropout,
                    };
                    plan.adapt_weight(weight, state);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_composes_as_upstream_does() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let values = |count: usize| (0..count).map(|at| (at as f32 * 0.37).sin());
        let tensor = |shape: [usize; 4]| {
            let data = values(shape.iter().product()).collect::<Vec<_>>();
            Tensor::<1>::from_data(data.as_slice(), &device).reshape(shape)
        };
        let [out, rank, d_in, height, width] = [3, 2, 2, 2, 3];
        let weight = tensor([out, d_in, height, width]);
        let state = HiraConv2d {
            hira_a: Param::from_tensor(tensor([rank, d_in, height, width])),
            hira_b: Param::from_tensor(tensor([out, rank, 1, 1])),
            dropout: DropoutConfig::new(0.0).init(),
        };
        // Σ_r B[o, r] A[r, i, h, w], with the shapes above.
        let (a, b) = (
            values(24).collect::<Vec<_>>(),
            values(6).collect::<Vec<_>>(),
        );
        let expected: Vec<f32> = values(36)
            .enumerate()
            .map(|(at, weight)| {
                let (o, rest) = (at / 12, at % 12);
                weight * (1.0 + b[o * 2] * a[rest] + b[o * 2 + 1] * a[12 + rest])
            })
            .collect();
        let found = state.compose(weight).into_data();
        for (found, expected) in found.iter::<f32>().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn null_starts_at_random() {
        let json = serde_json::json!({ "init_weights": null });
        let config: HiraConfig = serde_json::from_value(json).unwrap();
        assert_eq!(config.init_weights, InitLora::Default(false));
        let empty: HiraConfig = serde_json::from_value(serde_json::json!({})).unwrap();
        assert_eq!(empty, HiraConfig::default());
    }
}
