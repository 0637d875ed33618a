//! DeLoRA: a low-rank change of normalised factors, whose strength is a number of its own.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;

use crate::lora::values::on_device;

/// No factor is divided by less than this.
const SHORTEST: f64 = 1e-4;

/// `W' = W + diag(n)·Σᵢ (λ / r)·(aᵢ / ‖aᵢ‖)(bᵢ / ‖bᵢ‖)`, with n the norms of W's rows when the adapter was attached.
///
/// The directions are in the columns of A and the rows of B, whatever their lengths. The strength is in λ.
#[derive(Module, Adapter, Debug)]
pub struct DeLoraLinear {
    /// A, `[in, r]`.
    #[tensor("delora_A", transposed)]
    pub delora_a: Param<Tensor<2>>,
    /// B, `[r, out]`.
    #[tensor("delora_B", transposed)]
    pub delora_b: Param<Tensor<2>>,
    /// λ, `[1]`.
    #[tensor("delora_lambda")]
    pub delora_lambda: Param<Tensor<1>>,
    /// n, `[in]`, frozen.
    #[tensor("delora_w_norm")]
    pub delora_w_norm: Param<Tensor<1>>,
    /// On the layer's input; on the activation side only.
    pub dropout: Dropout,
}

/// `matrix` over the lengths of its vectors along `axis`.
fn normalised(matrix: Tensor<2>, axis: usize) -> Tensor<2> {
    let squares = matrix.clone().square().sum_dim(axis);
    // In front of the root, which has no derivative at 0, where a fresh B is.
    matrix / squares.clamp_min(SHORTEST * SHORTEST).sqrt()
}

impl LowRankAdapter for DeLoraLinear {
    fn factors(&self) -> LowRank {
        let (a, b) = (self.delora_a.val(), self.delora_b.val());
        let (lambda, norms) = (self.delora_lambda.val(), self.delora_w_norm.val());
        let (dtype, rank) = (a.dtype(), a.dims()[1]);
        // Squares of small numbers are 0 in f16.
        let wide = match dtype {
            DType::F16 | DType::BF16 => DType::F32,
            _ => dtype,
        };
        let strength = lambda.cast(wide).unsqueeze::<2>() / rank as f64;
        let norms = norms.cast(wide).unsqueeze_dim::<2>(1);
        let down = normalised(a.cast(wide), 0) * norms * strength;
        let up = normalised(b.cast(wide), 1);
        LowRank::new(down.cast(dtype), up.cast(dtype), 1.0)
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }
}

/// DeLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `DeloraConfig`.
#[method_config(
    DELORA, name = "delora", peft_type = "DELORA", title = "DeLoRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Bini et al. 2025, Decoupling Angles and Strength in Low-rank Adaptation"
)]
pub struct DeLoraConfig {
    /// Rank of the factors, at most the layer's smaller side.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// The first value of λ. The change of a weight is at most λ times the norm of its longest row.
    #[field(default = 15.0, finite)]
    pub delora_lambda: f64,
    /// Dropout probability on the layer's input where the change is computed, on the activation side only.
    #[field(probability)]
    pub module_dropout: f64,
    /// Whether a fresh adapter changes nothing: B is zero. Else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub rank_pattern: ByLayer<usize>,
    /// Other first values of λ for some layers.
    #[field(finite)]
    pub lambda_pattern: ByLayer<f64>,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

/// Norms of the rows of a weight, `[in]`, without autodiff.
fn norms_of_rows(weight: Tensor<2>) -> Tensor<1> {
    let weight = weight.without_autodiff().cast(DType::F32);
    weight.square().sum_dim(1).sqrt().reshape([-1])
}

impl LinearMethod for DeLoraConfig {
    type State = DeLoraLinear;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<DeLoraLinear> {
        let (name, d_in, out, like) = (target.name(), target.d_in, target.d_out, target.like());
        let is_new = plan.is_new();
        let rank = self.rank_pattern.of(name, self.r)?;
        let lambda = self.lambda_pattern.of(name, self.delora_lambda)?;
        let most = d_in.min(out);
        if is_new && rank > most {
            let expected = format!("`{name}` is {d_in} × {out}, so at most {most}");
            return Err(Error::config(DELORA.title, "r", rank, expected));
        }
        let init = plan.init();
        let delora_a = init.kaiming_uniform([d_in, rank], d_in, like);
        let delora_b = init.zeros_or_kaiming_uniform(self.init_weights, [rank, out], rank, like);
        let (delora_lambda, delora_w_norm) = if is_new {
            let (device, dtype) = like;
            // A quantized base has no float type of its own.
            let dtype = if dtype.is_float() { dtype } else { DType::F32 };
            let constant =
                |values: Tensor<1>| Param::from_tensor(on_device(values.cast(dtype), device));
            let plain = device.clone().without_autodiff();
            let lambda = Tensor::full([1], lambda, (&plain, DType::F32));
            let norms = norms_of_rows(target.weight.value());
            (constant(lambda), constant(norms))
        } else {
            (init.zeros([1], like), init.zeros([d_in], like))
        };
        Ok(DeLoraLinear {
            delora_a,
            delora_b,
            delora_lambda,
            delora_w_norm: delora_w_norm.set_require_grad(false),
            dropout: DropoutConfig::new(self.module_dropout).init(),
        })
    }

    fn max_rank(&self) -> Option<usize> {
        self.rank_pattern.values().chain([self.r]).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_factors_have_no_effect_and_lambda_is_the_strength() {
        for (_, device) in peft_core::device::cpu_devices() {
            let mut init = Init::new(8);
            let like = (&device, DType::F32);
            let (a, b) = (
                init.normal([6, 3], 1.0, like),
                init.normal([3, 5], 1.0, like),
            );
            let norms = init.uniform([6], 1.0, like).map(|norms| norms + 2.0);
            let adapter = |lengths: f64, lambda: f64| DeLoraLinear {
                delora_a: a.clone().map(|a| a * lengths),
                delora_b: b.clone().map(|b| b / lengths),
                delora_lambda: init_lambda(lambda, &device),
                delora_w_norm: norms.clone(),
                dropout: DropoutConfig::new(0.0).init(),
            };
            let delta = |adapter: DeLoraLinear| adapter.factors().product();
            let one = delta(adapter(1.0, 1.5));
            // Σ n_row (λ / r) a_row,i b_i,column / (‖a_i‖ ‖b_i‖), element by element.
            let numbers = |tensor: Tensor<2>| -> Vec<f64> { tensor.into_data().iter().collect() };
            let (a, b) = (numbers(a.val()), numbers(b.val()));
            let n = numbers(norms.val().unsqueeze());
            let length =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            for (at, found) in numbers(one.clone()).into_iter().enumerate() {
                let (row, column) = (at / 5, at % 5);
                let expected: f64 = (0..3)
                    .map(|i| {
                        let of_a = length(&mut (0..6).map(|row| a[row * 3 + i]));
                        let of_b = length(&mut (0..5).map(|column| b[i * 5 + column]));
                        n[row] * 0.5 * a[row * 3 + i] * b[i * 5 + column] / (of_a * of_b)
                    })
                    .sum();
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
            let farthest = |other: Tensor<2>, times: f64| -> f32 {
                (one.clone() * times - other).abs().max().into_scalar()
            };
            assert!(farthest(delta(adapter(7.0, 1.5)), 1.0) < 1e-5);
            assert!(farthest(delta(adapter(1.0, 6.0)), 4.0) < 1e-5);
        }
    }

    fn init_lambda(lambda: f64, device: &Device) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::full([1], lambda, device))
    }

    #[test]
    fn a_factor_of_zeros_has_a_gradient() {
        for (name, device) in peft_core::device::cpu_devices() {
            let device = device.autodiff();
            let mut init = Init::new(9);
            let like = (&device, DType::F32);
            let adapter = DeLoraLinear {
                delora_a: init.normal([4, 2], 1.0, like),
                delora_b: init.zeros([2, 3], like),
                delora_lambda: init_lambda(2.0, &device),
                delora_w_norm: init.ones([4], like).set_require_grad(false),
                dropout: DropoutConfig::new(0.0).init(),
            };
            let change = adapter.factors().product();
            let gradients = (change.clone() * change.ones_like() + change)
                .sum()
                .backward();
            let gradient = adapter.delora_b.val().grad(&gradients).unwrap();
            // (λ / r) / 1e-4 times sums of A's columns of length 1, twice.
            let a = normalised(adapter.delora_a.val().without_autodiff(), 0);
            let expected = a.sum_dim(0).transpose() * 2e4;
            let distance: f32 = (gradient - expected.repeat_dim(1, 3))
                .abs()
                .max()
                .into_scalar();
            assert!(distance < 0.1, "{name}: {distance}");
        }
    }
}
