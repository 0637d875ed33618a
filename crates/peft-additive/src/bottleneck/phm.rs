//! Parameterized hypercomplex multiplication: a matrix as a sum of Kronecker products.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{CheckpointKey, Init, Plan, Shared, listed};

use super::config::BottleneckConfig;
use super::fields::{HypercomplexInit, RuleInit};

/// n matrices, as they are or as products of two factors each.
#[derive(Module, Debug)]
pub struct Factors {
    /// The matrices `[n, rows, columns]`, or their left factors `[n, rows, r]`.
    pub left: Shared<3>,
    /// The right factors, `[n, r, columns]`.
    pub right: Option<Shared<3>>,
}

impl Factors {
    /// The matrices, `[n, rows, columns]`.
    fn matrices(&self) -> Tensor<3> {
        match &self.right {
            Some(right) => self.left.val().matmul(right.val()),
            None => self.left.val(),
        }
    }

    /// Rows and columns of each matrix.
    fn dims(&self) -> [usize; 2] {
        let [_, rows, columns] = self.left.val().dims();
        match &self.right {
            Some(right) => [rows, right.val().dims()[2]],
            None => [rows, columns],
        }
    }
}

/// `y = x H + b`, `H = Σ_i A_i ⊗ W_i` (Zhang et al. 2021, section 3; Karimi Mahabadi et al. 2021, section 3).
#[derive(Module, Debug)]
pub struct Phm {
    /// A, n matrices `[n, n]`.
    pub rule: Factors,
    /// W, n matrices `[in / n, out / n]`.
    pub w: Factors,
    /// b, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The module of the model that holds what adapters share, in AdapterHub's files.
    #[module(skip)]
    pub(crate) root: String,
    /// What the file calls W where all adapters share it.
    #[module(skip)]
    pub(crate) shared_w: Option<&'static str>,
    /// Whether all projections share A.
    #[module(skip)]
    pub(crate) shared_rule: bool,
}

/// The list of what adapters share, in AdapterHub's models.
const SHARED: &str = "shared_parameters";

impl Phm {
    /// Inputs and outputs.
    pub(crate) fn dims(&self) -> [usize; 2] {
        let ([n, _], [rows, columns]) = (self.rule.dims(), self.w.dims());
        [n * rows, n * columns]
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let [d_in, d_out] = self.dims();
        shape[D - 1] = d_out;
        let rows = x.dims().iter().product::<usize>() / d_in;
        let y = self.product(x.reshape([rows, d_in])).reshape(shape);
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }

    /// `x H` for `x` `[rows, in]`, in the way that takes the fewest multiplications.
    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let [d_in, d_out] = self.dims();
        let n = self.rule.dims()[0];
        let Some(right) = &self.w.right else {
            return x.matmul(self.dense());
        };
        let (left, right) = (self.w.left.val(), right.val());
        let rank = right.dims()[1];
        // With the matrix and without it: from the wide side to n·r numbers for each of n parts, then on to the
        // narrow one by a small matrix.
        let inside = n * n * rank;
        let factored = n * rank * d_in.max(d_out) + inside * d_in.min(d_out);
        if factored >= d_in * d_out {
            return x.matmul(self.dense());
        }
        let rule = self.rule.matrices();
        let rows = x.dims()[0];
        if d_in >= d_out {
            // x_a S_i, `[rows, (a, i, r)]`, then A_i[a, b] T_i[r, j].
            let left = left.swap_dims(0, 1).reshape([d_in / n, n * rank]);
            let inner = x.reshape([rows * n, d_in / n]).matmul(left);
            // [a, i, 1, b, 1] · [1, i, r, 1, j]
            let rule = rule.swap_dims(0, 1).reshape([n, n, 1, n, 1]);
            let right = right.reshape([1, n, rank, 1, d_out / n]);
            let small = (rule * right).reshape([inside, d_out]);
            inner.reshape([rows, inside]).matmul(small)
        } else {
            // x_a[k] A_i[a, b] S_i[k, r], `[rows, (b, i, r)]`, then T_i[r, j].
            // [a, 1, b, i, 1] · [1, k, 1, i, r]
            let rule = rule.permute([1, 2, 0]).reshape([n, 1, n, n, 1]);
            let left = left.swap_dims(0, 1).reshape([1, d_in / n, 1, n, rank]);
            let small = (rule * left).reshape([d_in, inside]);
            let inner = x.matmul(small).reshape([rows * n, n * rank]);
            let right = right.reshape([n * rank, d_out / n]);
            inner.matmul(right).reshape([rows, d_out])
        }
    }

    /// H, `[in, out]`.
    fn dense(&self) -> Tensor<2> {
        let ([n, _], [rows, columns]) = (self.rule.dims(), self.w.dims());
        // One product of matrices: [(a, b), i] · [i, (k, j)].
        let rule = self.rule.matrices().reshape([n, n * n]).transpose();
        let w = self.w.matrices().reshape([n, rows * columns]);
        let products = rule.matmul(w).reshape([n, n, rows, columns]);
        products.swap_dims(1, 2).reshape([n * rows, n * columns])
    }

    pub(crate) fn tensors(&self, field: &str, key: &str) -> Vec<CheckpointKey> {
        let own = |of: &str, name: &str| {
            CheckpointKey::layer(&format!("{field}.{of}"), &format!("{key}.{name}"))
        };
        let shared = |of: &str, name: &str| {
            listed(&format!("{field}.{of}"), (&self.root, SHARED), name, false)
        };
        let factors = |of: &str, name: &str, factors: &Factors, is_shared: bool| {
            let tensor = |part: &str, suffix: &str| {
                let (of, name) = (format!("{of}.{part}"), format!("{name}{suffix}"));
                if is_shared {
                    shared(&of, &name)
                } else {
                    own(&of, &name)
                }
            };
            match factors.right {
                Some(_) => vec![tensor("left", "_left"), tensor("right", "_right")],
                None => vec![tensor("left", "")],
            }
        };
        let mut tensors = factors("rule", "phm_rule", &self.rule, self.shared_rule);
        let w = self.shared_w.unwrap_or("W");
        tensors.extend(factors("w", w, &self.w, self.shared_w.is_some()));
        tensors.extend(self.bias.as_ref().map(|_| own("bias", "b")));
        tensors
    }
}

/// Handles on what the projections of a model share, and what they are called in files.
pub(crate) struct PhmSource<'a> {
    config: &'a BottleneckConfig,
    root: String,
    rule: Option<Handles>,
    down: Option<Handles>,
    up: Option<Handles>,
}

/// Handles on factors that are shared, in the order of the model.
type Handles = Vec<Factors>;

type Params = (Param<Tensor<3>>, Option<Param<Tensor<3>>>);

/// Handles for so many places.
fn handles((left, right): Params, places: usize) -> Handles {
    let mut right = right.map(|right| Shared::new(right, places));
    let left = Shared::new(left, places);
    let factors = left.map(|left| Factors {
        left,
        right: right.as_mut().and_then(Iterator::next),
    });
    factors.collect()
}

/// A handle for one place.
fn alone(params: Params) -> Factors {
    handles(params, 1).remove(0)
}

impl<'a> PhmSource<'a> {
    /// For adapters at so many sites, all of them with these widths outside and inside. `root` is the name of the model
    /// without its head.
    pub(crate) fn new(
        config: &'a BottleneckConfig,
        root: String,
        sites: usize,
        widths: [usize; 2],
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> Self {
        let mut source = Self {
            config,
            root,
            rule: None,
            down: None,
            up: None,
        };
        let [outer, inner] = widths;
        let init = plan.init();
        if config.shared_phm_rule {
            source.rule = Some(handles(source.rule_of(true, init, like), 2 * sites));
        }
        if config.shared_w_phm {
            source.down = Some(handles(source.w_of([outer, inner], init, like), sites));
            source.up = Some(handles(source.w_of([inner, outer], init, like), sites));
        }
        source
    }

    /// Down or Up at a site; `place` is the site's index among those that have adapters, in the order of the model.
    pub(crate) fn projection(
        &self,
        (place, is_up): (usize, bool),
        shape: [usize; 2],
        init: &mut Init,
        like: (&Device, DType),
    ) -> Phm {
        let rule = match &self.rule {
            Some(handles) => handles[2 * place + usize::from(is_up)].clone(),
            None => alone(self.rule_of(false, init, like)),
        };
        let shared = if is_up { &self.up } else { &self.down };
        let shared_w = shared
            .is_some()
            .then_some(if is_up { "W_up" } else { "W_down" });
        let w = match shared {
            Some(handles) => handles[place].clone(),
            None => alone(self.w_of(shape, init, like)),
        };
        let bias = self.config.phm_bias;
        Phm {
            rule,
            w,
            bias: bias.then(|| init.zeros([shape[1]], like)),
            root: self.root.clone(),
            shared_w,
            shared_rule: self.config.shared_phm_rule,
        }
    }

    fn rule_of(&self, is_shared: bool, init: &mut Init, like: (&Device, DType)) -> Params {
        let BottleneckConfig {
            phm_dim: n,
            learn_phm,
            phm_c_init,
            phm_init_range,
            factorized_phm_rule,
            ..
        } = *self.config;
        let mut draw = |shape: [usize; 3]| {
            let drawn = match (phm_c_init, is_shared) {
                (RuleInit::Normal, true) => init.normal(shape, phm_init_range, like),
                (RuleInit::Normal, false) => init.normal(shape, 0.01, like),
                (RuleInit::Uniform, true) => init.uniform(shape, 1.0, like),
                (RuleInit::Uniform, false) => init.uniform(shape, 0.01, like),
            };
            if learn_phm {
                drawn
            } else {
                drawn.set_require_grad(false)
            }
        };
        if factorized_phm_rule {
            (draw([n, n, 1]), Some(draw([n, 1, n])))
        } else {
            (draw([n, n, n]), None)
        }
    }

    fn w_of(&self, shape: [usize; 2], init: &mut Init, like: (&Device, DType)) -> Params {
        let BottleneckConfig {
            phm_dim: n,
            phm_rank: rank,
            phm_init_range,
            factorized_phm_w,
            hypercomplex_nonlinearity,
            ..
        } = *self.config;
        let mut draw = |[rows, columns]: [usize; 2]| {
            let fans = (rows + columns) as f64;
            let shape = [n, rows, columns];
            match hypercomplex_nonlinearity {
                HypercomplexInit::GlorotUniform => init.uniform(shape, (6.0 / fans).sqrt(), like),
                HypercomplexInit::GlorotNormal | HypercomplexInit::Phm => {
                    init.normal(shape, (2.0 / fans).sqrt(), like)
                }
                HypercomplexInit::Normal => init.normal(shape, phm_init_range, like),
            }
        };
        let [rows, columns] = shape.map(|width| width / n);
        if factorized_phm_w {
            (draw([rows, rank]), Some(draw([rank, columns])))
        } else {
            (draw([rows, columns]), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};
    use peft_core::device::cpu_devices;

    fn layer(config: &BottleneckConfig, shape: [usize; 2], device: &Device) -> Phm {
        let mut init = Init::new(5);
        let like = (device, DType::F32);
        let source = PhmSource {
            config,
            root: String::new(),
            rule: None,
            down: None,
            up: None,
        };
        let mut phm = source.projection((0, false), shape, &mut init, like);
        // Away from the tiny initial values.
        let left = init.normal(phm.rule.left.val().dims(), 1.0, like);
        phm.rule.left = alone((left, None)).left;
        phm
    }

    #[test]
    fn every_way_to_the_product_is_the_sum_of_kronecker_products() {
        let base = BottleneckConfig::compacter().with_shared_phm_rule(false);
        for (_, device) in cpu_devices() {
            for config in [
                base.clone(),
                base.clone().with_phm_rank(3).with_factorized_phm_rule(true),
                base.clone().with_factorized_phm_w(false).with_phm_dim(2),
            ] {
                // Wide to narrow, narrow to wide, and so small that the matrix is cheaper.
                for shape in [[64, 8], [8, 64], [8, 8]] {
                    let phm = layer(&config, shape, &device);
                    let dense = phm.dense().into_data();
                    let rule = phm.rule.matrices().into_data().try_to_vec::<f32>().unwrap();
                    let w = phm.w.matrices().into_data().try_to_vec::<f32>().unwrap();
                    let n = config.phm_dim;
                    let [rows, columns] = shape.map(|width| width / n);
                    let mut expected = vec![0.0_f32; shape[0] * shape[1]];
                    for i in 0..n {
                        for row in 0..shape[0] {
                            for column in 0..shape[1] {
                                let a = rule[(i * n + row / rows) * n + column / columns];
                                let w = w[(i * rows + row % rows) * columns + column % columns];
                                expected[row * shape[1] + column] += a * w;
                            }
                        }
                    }
                    let expected = burn::tensor::TensorData::new(expected, shape);
                    dense.assert_approx_eq(&expected, Tolerance::<f32>::absolute(1e-5));
                    let x = Tensor::<2>::random([5, shape[0]], Distribution::Default, &device);
                    let product = x.clone().matmul(phm.dense()).into_data();
                    let tolerance = Tolerance::<f32>::rel_abs(1e-5, 1e-5);
                    phm.product(x)
                        .into_data()
                        .assert_approx_eq(&product, tolerance);
                }
            }
        }
    }
}
