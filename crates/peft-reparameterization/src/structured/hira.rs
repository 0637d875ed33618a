//! HiRA: a low-rank factor for every weight, multiplied with the weight.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::module::{conv2d, embedding};
use peft_core::method::LINEAR_EMBEDDING_AND_CONV;
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{linear, scale_by_product};
use serde::{Deserialize, Deserializer};

use crate::lora::config::InitLora;

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
#[derive(Module, Adapter, Debug)]
pub struct HiraLinear {
    /// A, `[in, r]`.
    #[tensor("hira_A", transposed)]
    pub hira_a: Param<Tensor<2>>,
    /// B, `[r, out]`.
    #[tensor("hira_B", transposed)]
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

impl WeightAdapter for HiraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, matrix) = (weight.shape(), matrix_of(weight));
        let scaled = scale_by_product(matrix, self.hira_a.val(), self.hira_b.val());
        from_matrix(scaled, shape)
    }

    // W ⊙ A B has full rank: without W', its product with the input would take r dense products.
    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let weight = inner.weight();
        if !drops(&self.dropout, &self.hira_a) {
            return linear(input, self.compose(weight), inner.bias(), None);
        }
        let dropped = self.dropout.adapted(input.clone());
        inner.forward(input) + dropped.matmul(weight * self.product())
    }
}

/// HiRA on an embedding table: row i becomes `W[i] ⊙ (1 + A[i] B)`. No dropout, as upstream.
#[derive(Module, Adapter, Debug)]
pub struct HiraEmbedding {
    /// A, `[vocabulary, r]`.
    #[tensor("hira_embedding_A", transposed)]
    pub hira_a: Param<Tensor<2>>,
    /// B, `[r, d]`.
    #[tensor("hira_embedding_B", transposed)]
    pub hira_b: Param<Tensor<2>>,
}

impl WeightAdapter for HiraEmbedding {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        scaled(weight, self.hira_a.val().matmul(self.hira_b.val()))
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // Only the rows that are looked up.
    fn embedding(&self, ids: Tensor<2, Int>, inner: &dyn BaseEmbedding) -> Tensor<3> {
        let down = embedding(self.hira_a.val(), ids.clone());
        inner.forward(ids) * (down.matmul(self.hira_b.val().unsqueeze()) + 1.0)
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// HiRA on a convolution: the kernel times 1 + A convolved with B, which has a kernel of one element.
#[derive(Module, Debug)]
pub struct HiraConv2d {
    /// A, `[r, in / groups, h, w]`; of a layer of one axis `[r, in / groups, k, 1]`.
    pub hira_a: Param<Tensor<4>>,
    /// B, `[out, r, 1, 1]`.
    pub hira_b: Param<Tensor<4>>,
    /// On the input of the change; on the activation side only.
    pub dropout: Dropout,
    /// Axes of the layer's kernel: 1 or 2. A file has as many.
    pub axes: usize,
}

impl Adapter for HiraConv2d {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let stored = |field: &str, key: &str, shape: [usize; 4]| {
            CheckpointKey::layer(field, key).shaped(&shape[..2 + self.axes])
        };
        vec![
            stored("hira_a", "hira_A", self.hira_a.lazy_shape().dims()),
            stored("hira_b", "hira_B", self.hira_b.lazy_shape().dims()),
        ]
    }
}

impl HiraConv2d {
    /// B A, `[out, in / groups · h · w]`.
    fn product(&self) -> Tensor<2> {
        let [out, rank, _, _] = self.hira_b.dims();
        let down = self.hira_a.val().reshape([rank as isize, -1]);
        self.hira_b.val().reshape([out, rank]).matmul(down)
    }
}

impl WeightAdapter for HiraConv2d {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        scaled(weight, self.product())
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
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
#[method_config(
    HIRA, peft_type = "HIRA", title = "HiRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Huang et al. 2025, HiRA: Parameter-Efficient Hadamard High-Rank Adaptation, section 3"
)]
pub struct HiraConfig {
    /// Rank of the factors, at most the layer's smaller side. The change of the weight has any rank.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// Dropout probability on the change's input, on the activation side only, and not on embeddings.
    #[field(probability)]
    pub hira_dropout: f64,
    /// Initial values. Default: `true`: A Kaiming-uniform with a = sqrt(5), B zero (embeddings: A zero, B
    /// normal). `"gaussian"`: on linear layers A normal with standard deviation 1 / r instead. `false`:
    /// both normal with standard deviation 1, so that the fresh adapter does change outputs; for tests.
    #[field(deserialize_with = "null_is_false")]
    pub init_weights: InitLora,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub rank_pattern: ByLayer<usize>,
    pub targets: Targets,
    pub common: Common,
}

/// Upstream takes null for false.
fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<InitLora, D::Error> {
    let found = Option::<InitLora>::deserialize(deserializer)?;
    Ok(found.unwrap_or(InitLora::Default(false)))
}

impl HiraConfig {
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
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if let InitLora::Named(name) = &self.init_weights
            && !name.eq_ignore_ascii_case("gaussian")
        {
            return Err(HIRA.refusal("init_weights", name, "true, false or \"gaussian\""));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for target in layer_targets(self, layout, plan, LINEAR_EMBEDDING_AND_CONV)? {
            let (layer, weight) = (target.layer, target.weight);
            // Upstream writes its `rank_pattern`, and does not go by it: a file's own ranks count.
            let stored = ["hira_A", "hira_embedding_A"]
                .into_iter()
                .find_map(|key| plan.stored_shape(layer, key)?.first().copied());
            let rank = match stored {
                Some(rank) => rank,
                None => self.rank_pattern.of(&layer.name, self.r)?,
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
                LayerKind::Conv1d | LayerKind::Conv2d => {
                    let width = shape.get(3).copied().unwrap_or(1);
                    let shapes = [[rank, shape[1], shape[2], width], [rows, rank, 1, 1]];
                    let [hira_a, hira_b] = self.draw(plan.init(), shapes, (rank, columns), weight);
                    let state = HiraConv2d {
                        hira_a,
                        hira_b,
                        dropout,
                        axes: shape.len() - 2,
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
            axes: 2,
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
