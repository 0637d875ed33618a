//! FRoD: layers of a kind share a basis, in which each is scaled and rotated sparsely.

use std::collections::BTreeMap;

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{Sparse, add_product, add_sparse, scale_columns};

use crate::math::of_weight::beginning_as;
use crate::spectral::joint_basis::{joint_basis, within};

/// W' = W + V (Sᵀ + diag(λ − λ₀)) U, where W = V diag(λ₀) U, S is sparse, and V is one for all layers of a kind.
#[derive(Module, Debug)]
pub struct FrodLinear {
    /// V, `[in, in]`, frozen; one for all layers of a kind.
    pub v: Shared<2>,
    /// Rows and columns of the elements of S that are trained, `[2, count]`; those of all layers of a kind.
    pub indices: Shared<2, Int>,
    /// The shape of S, `[2]`, as upstream's file has it.
    size: Shared<1, Int>,
    /// λ, `[in]`.
    pub lambda: Param<Tensor<1>>,
    /// Elements of S, `[count]`.
    pub values: Param<Tensor<1>>,
    /// U, `[in, out]`, of rows of length 1: frozen, computed of W and V. W itself before a file gives V.
    pub u: Param<Tensor<2>>,
    /// λ₀, `[1, in]`: frozen, as U.
    pub lambda_init: Param<Tensor<2>>,
    /// On the input of the change; on the activation side only.
    pub dropout: Dropout,
    /// What upstream calls the kind of layer.
    #[module(skip)]
    category: String,
}

impl FrodLinear {
    /// V (Sᵀ + diag(λ − λ₀)), `[in, in]`. S has few elements, and is not made dense.
    fn turned(&self) -> Tensor<2> {
        let [width] = self.lambda.dims();
        let (v, indices) = (self.v.val(), self.indices.val());
        let [_, count] = indices.dims();
        let scales = self.lambda.val() - self.lambda_init.val().reshape([width]);
        let scaled = scale_columns(v.clone(), scales, None);
        if count == 0 {
            return scaled;
        }
        let axis =
            |axis: usize| -> Tensor<1, Int> { indices.clone().narrow(0, axis, 1).reshape([count]) };
        let sparse = Sparse {
            values: self.values.val(),
            inputs: axis(1),
            outputs: axis(0),
            shape: [width, width],
        };
        add_sparse(scaled, v, sparse)
    }

    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        self.turned().matmul(self.u.val())
    }
}

impl Adapter for FrodLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let shared = |field: &str, upstream: &str| {
            CheckpointKey::root(field, &format!("base_model.{upstream}.{}", self.category))
        };
        let [width] = self.lambda.dims();
        vec![
            shared("v", "frod_V"),
            shared("indices", "frod_s_indices").indices(&[width, width]),
            shared("size", "frod_s_size").indices(&[width + 1]),
            CheckpointKey::layer("lambda", "frod_lambda_l"),
            CheckpointKey::layer("values", "frod_lambda_s_values"),
            CheckpointKey::unsaved("u"),
            CheckpointKey::unsaved("lambda_init"),
        ]
    }

    fn after_load(mut self) -> Self {
        if !self.u.is_initialized() {
            let [u, lambda] = frozen(self.v.val(), self.u.val());
            self.u = u;
            self.lambda_init = lambda;
        }
        self
    }
}

impl WeightAdapter for FrodLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, matrix) = (weight.shape(), matrix_of(weight));
        let change = LowRank::new(self.turned(), self.u.val(), 1.0);
        from_matrix(add_product(matrix, change), shape)
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        if dropout_rate(&self.dropout) == 0.0 || !self.values.val().is_autodiff() {
            // W' costs less than three products with every input.
            let weight = self.compose(base.weight());
            return peft_core::ops::linear(input, weight, base.bias(), None);
        }
        let dropped = self.dropout.adapted(input.clone());
        let change = dropped.matmul(self.turned());
        base.forward(input) + change.matmul(self.u.val())
    }
}

/// U and λ₀ of a weight in the basis V.
fn frozen(v: Tensor<2>, weight: Tensor<2>) -> [Param<Tensor<2>>; 2] {
    let dtype = weight.dtype();
    let [width, _] = weight.dims();
    let (u, lambda) = match within(&v, &weight) {
        Some(inside) => {
            let lambda = inside.clone().square().sum_dim(1).sqrt();
            // A row of zeros has no direction.
            let u = inside / lambda.clone().clamp_min(1e-12);
            (u, lambda.reshape([1, width]))
        }
        // Not a number, so that it shows.
        None => (
            weight.clone().cast(DType::F32) * f32::NAN,
            Tensor::full([1, width], f32::NAN, &weight.device()),
        ),
    };
    let fixed = |value: Tensor<2>| beginning_as(value.cast(dtype)).set_require_grad(false);
    [fixed(u), fixed(lambda)]
}

/// FRoD's configuration. Fields are called and behave as in Hugging Face PEFT's `FrodConfig`.
#[method_config(
    FROD, peft_type = "FROD", title = "FRoD", family = Reparameterization, identity_at_init, mergeable, new(sparse_rate),
    reference = "FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees (AAAI 2026), section 3",
    unsupported("fan_in_fan_out")
)]
pub struct FrodConfig {
    /// Share of the elements of S that are trained; at least one, unless it is 0. None of them is on the diagonal.
    #[field(default = 0.01, at_least = 0.0, at_most = 1.0)]
    pub sparse_rate: f64,
    /// What is added to the diagonal of the matrices that are inverted for V.
    #[field(default = 1e-3, above = 0.0)]
    pub regularization_alpha: f64,
    /// Upstream's seed of which elements of S are trained. No effect here: the file has them.
    #[field(any)]
    pub projection_prng_key: i64,
    /// Whether V and the indices are in the file. They must be: V is not the same wherever it is computed.
    #[field(default = true)]
    pub save_projection: bool,
    /// Dropout probability on the change's input, on the activation side only.
    #[field(probability)]
    pub frod_dropout: f64,
    pub bias: Bias,
    /// Whether a fresh adapter changes nothing; else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

/// What upstream calls the kind of a layer: the last two parts of its name.
fn category(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        [.., "attention", "output", "dense"] => "attention_output".into(),
        [.., block, last] if block.bytes().all(|byte| byte.is_ascii_digit()) => (*last).into(),
        [.., outer, last] => format!("{outer}_{last}"),
        _ => name.into(),
    }
}

/// What the layers of a kind have in common: handles for each of them.
struct Kind {
    v: Box<dyn Iterator<Item = Shared<2>>>,
    indices: Box<dyn Iterator<Item = Shared<2, Int>>>,
    size: Box<dyn Iterator<Item = Shared<1, Int>>>,
}

impl FrodConfig {
    /// How many elements of S `[width, width]` are trained.
    fn count(&self, width: usize) -> usize {
        let most = width * width - width;
        let count = ((width * width) as f64 * self.sparse_rate) as usize;
        count.max(usize::from(self.sparse_rate > 0.0)).min(most)
    }

    fn kind(&self, targets: &[&TargetLayer<'_>], plan: &mut Plan) -> Kind {
        let (width, like) = (targets[0].d_in, targets[0].like());
        let v = if plan.is_new() {
            let weights: Vec<Tensor<2>> =
                targets.iter().map(|target| target.weight.value()).collect();
            let basis = joint_basis(&weights, self.regularization_alpha)
                .unwrap_or_else(|| Tensor::full([width, width], f32::NAN, like.0));
            beginning_as(basis.cast(weights[0].dtype()))
        } else {
            plan.init().zeros([width, width], like)
        };
        let count = self.count(width);
        let integers = (like.0, DType::I64);
        let indices = plan.init().integers([2, count], integers, |init| {
            let drawn = init.indices(count, width * width - width);
            let row = |at: usize| at / (width - 1);
            // Past the diagonal.
            let column = |at: usize| {
                let column = at % (width - 1);
                column + usize::from(column >= row(at))
            };
            let rows = drawn.iter().map(|at| row(*at) as i64);
            rows.chain(drawn.iter().map(|at| column(*at) as i64))
                .collect()
        });
        let size = plan
            .init()
            .integers([2], integers, |_| vec![width as i64; 2]);
        let places = targets.len();
        Kind {
            v: Box::new(Shared::new(v.set_require_grad(false), places)),
            indices: Box::new(Shared::new(indices, places)),
            size: Box::new(Shared::new(size, places)),
        }
    }

    fn on_layer(
        &self,
        target: &TargetLayer<'_>,
        (category, kind): (String, &mut Kind),
        plan: &mut Plan,
    ) -> FrodLinear {
        let (width, like) = (target.d_in, target.like());
        let v = kind.v.next().expect("a handle for each layer");
        let weight = target.weight.value::<2>();
        let is_new = plan.is_new();
        let init = plan.init();
        let std = if self.init_weights { 0.0 } else { 0.1 };
        let values = init.normal([self.count(width)], std, like);
        let mut lambda = init.normal([width], std, like);
        let (u, lambda_init) = if is_new {
            let [u, lambda_init] = frozen(v.val(), weight);
            lambda = beginning_as(lambda.val() + lambda_init.val().reshape([width]));
            (u, lambda_init)
        } else {
            // Until the file has given V.
            let shape = burn::tensor::Shape::from(vec![width, target.d_out]);
            let id = burn::module::ParamId::new();
            let own = move |_: &Device, _| weight.clone().detach();
            let u = Param::uninitialized(id, own, like.0.clone(), false, shape);
            (u, init.zeros([1, width], like).set_require_grad(false))
        };
        FrodLinear {
            v,
            indices: kind.indices.next().expect("a handle for each layer"),
            size: kind.size.next().expect("a handle for each layer"),
            lambda,
            values,
            u,
            lambda_init,
            dropout: DropoutConfig::new(self.frod_dropout).init(),
            category,
        }
    }
}

impl Method for FrodConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if self.save_projection {
            return Ok(());
        }
        let (field, expected) = (
            "save_projection",
            "true: V computed anew may have other signs, which mean another S",
        );
        Err(Error::config(FROD.title, field, false, expected))
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let mut kinds: BTreeMap<String, Vec<&TargetLayer<'_>>> = BTreeMap::new();
        for target in &targets {
            let kind = kinds.entry(category(target.name())).or_default();
            if let Some(first) = kind.first().filter(|first| first.d_in != target.d_in) {
                let expected = format!(
                    "layers of one kind with one number of inputs: `{}` has {}, and `{}` has {}",
                    first.name(),
                    first.d_in,
                    target.name(),
                    target.d_in
                );
                let value = &self.targets.target_modules;
                return Err(Error::config(FROD.title, "target_modules", value, expected));
            }
            kind.push(target);
        }
        let mut shared = BTreeMap::new();
        for (name, targets) in &kinds {
            shared.insert(name.clone(), self.kind(targets, plan));
        }
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let name = category(target.name());
            let kind = shared.get_mut(&name).expect("one for each layer's kind");
            Ok(self.on_layer(target, (name, kind), plan))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_layers_are_called_as_upstream_calls_them() {
        for (name, expected) in [
            ("encoder.layer.0.attention.self.query", "self_query"),
            ("encoder.layer.3.attention.output.dense", "attention_output"),
            ("encoder.layer.3.output.dense", "output_dense"),
            ("model.layers.1.self_attn.v_proj", "self_attn_v_proj"),
            ("blocks.7.dense", "dense"),
            ("classifier", "classifier"),
        ] {
            assert_eq!(category(name), expected);
        }
    }

    #[test]
    fn counts_are_upstreams() {
        for (rate, width, expected) in [
            (0.01, 384, 1_474),
            (0.05, 32, 51),
            (1e-9, 32, 1),
            (0.0, 32, 0),
            (1.0, 4, 12),
        ] {
            assert_eq!(FrodConfig::new(rate).count(width), expected);
        }
    }
}
