//! LoHa: the change of a weight is the elementwise product of two low-rank matrices.

use burn::tensor::module::conv2d;
use peft_core::method::LINEAR_AND_CONV;
use peft_core::method::prelude::*;
use peft_core::ops;

use crate::lycoris::change_dropout::ChangeDropout;
use crate::lycoris::loha_conv::LohaConv;
use crate::lycoris::tucker;

/// `W' = W + s·(A₁ B₁) ∘ (A₂ B₂)`, ∘ elementwise. Of a convolution W is the kernel's
/// [matrix](peft_core::method::matrix_of).
///
/// A product of rank r² at most, `s·A B` with the columns of A being all products of a column of A₁
/// and one of A₂; where that is cheaper than a dense matrix, the layer computes it so.
#[derive(Module, Adapter, Debug)]
pub struct LohaLinear {
    /// A₁, `[in, r]`: upstream's `hada_w1_b`, transposed.
    #[tensor("hada_w1_b", transposed)]
    pub down_1: Param<Tensor<2>>,
    /// B₁, `[r, out]`: upstream's `hada_w1_a`, transposed.
    #[tensor("hada_w1_a", transposed)]
    pub up_1: Param<Tensor<2>>,
    /// A₂, `[in, r]`: upstream's `hada_w2_b`, transposed.
    #[tensor("hada_w2_b", transposed)]
    pub down_2: Param<Tensor<2>>,
    /// B₂, `[r, out]`: upstream's `hada_w2_a`, transposed.
    #[tensor("hada_w2_a", transposed)]
    pub up_2: Param<Tensor<2>>,
    /// s: alpha / r.
    pub scale: f64,
    /// On the change.
    #[no_tensor]
    pub dropout: ChangeDropout,
}

impl LohaLinear {
    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        let first = self.down_1.val().matmul(self.up_1.val() * self.scale);
        first * self.down_2.val().matmul(self.up_2.val())
    }

    /// The same as factors of rank r².
    fn factors(&self) -> LowRank {
        let ([d_in, rank], [_, out]) = (self.down_1.dims(), self.up_1.dims());
        let down =
            self.down_1.val().reshape([d_in, rank, 1]) * self.down_2.val().reshape([d_in, 1, rank]);
        let up = self.up_1.val().reshape([rank, 1, out]) * self.up_2.val().reshape([1, rank, out]);
        let down = down.reshape([d_in, rank * rank]);
        LowRank::new(down, up.reshape([rank * rank, out]), self.scale)
    }

    /// Whether factors of rank r² cost less than a dense matrix.
    fn is_low_rank(&self) -> bool {
        let ([d_in, rank], [_, out]) = (self.down_1.dims(), self.up_1.dims());
        rank * rank * (d_in + out) < d_in * out
    }
}

impl WeightAdapter for LohaLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + from_matrix(self.delta(), shape)
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let kernel = inner.weight();
        let change = self.dropout.of_rows(self.delta().transpose(), &self.down_1);
        let shape = kernel.shape();
        conv2d(input, kernel + change.reshape(shape), None, inner.options())
    }

    fn low_rank(&self) -> Option<LowRank> {
        let fixed = !self.dropout.is_on(&self.down_1);
        (fixed && self.is_low_rank()).then(|| self.factors())
    }

    fn needs_weight(&self) -> bool {
        !self.is_low_rank()
    }

    // Products of rows, r² wide.
    fn computes_factors(&self) -> bool {
        true
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let [_, out] = self.up_1.dims();
        let dropout = self.dropout.factors(out, &self.down_1);
        let dropped = |features: Tensor<2>| match dropout {
            Some(dropout) => features * dropout,
            None => features,
        };
        if self.is_low_rank() {
            let mut factors = self.factors();
            factors.up = dropped(factors.up);
            return inner.forward_with(input, factors);
        }
        let weight = inner.weight() + dropped(self.delta());
        ops::linear(input, weight, inner.bias(), None)
    }
}

/// LoHa's configuration. Fields are called and behave as in Hugging Face PEFT's `LoHaConfig`.
#[method_config(
    LOHA, peft_type = "LOHA", title = "LoHa", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Hyeon-Woo et al. 2021, FedPara, proposition 1; Yeh et al. 2023, LyCORIS, section 3.2"
)]
pub struct LohaConfig {
    /// Rank of each of the two matrices, at most the layer's smaller side.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Scaling numerator: the change is scaled by alpha / r.
    #[field(default = 8.0, finite)]
    pub alpha: f64,
    /// Probability that an output feature of the change is dropped in training, on the activation side only. The others
    /// grow by the inverse of the share that stayed.
    #[field(probability)]
    pub rank_dropout: f64,
    /// Probability that the whole change of a layer is dropped in a pass in training, on the activation side only.
    #[field(probability)]
    pub module_dropout: f64,
    /// Whether each factor of the product is a kernel with a core ([`LohaConv`]) at convolutions whose kernel has more than
    /// one element. Else the kernel is taken for a matrix.
    pub use_effective_conv2d: bool,
    /// Whether a fresh adapter changes nothing: A₂ is zero. Else all four are random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub rank_pattern: ByLayer<usize>,
    /// Other alphas for some layers.
    #[field(finite)]
    pub alpha_pattern: ByLayer<f64>,
    pub targets: Targets,
    pub common: Common,
}

impl LohaConfig {
    fn dropout(&self) -> ChangeDropout {
        ChangeDropout::new(self.rank_dropout, self.module_dropout, true)
    }

    /// Puts a state on a layer.
    fn adapt(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<()> {
        let name = target.name();
        let rank = self.rank_pattern.of(name, self.r)?;
        let scale = self.alpha_pattern.of(name, self.alpha)? / rank as f64;
        let kernel = target.kernel();
        if self.use_effective_conv2d && tucker::has_core(&kernel) {
            let [height, width] = tucker::size(&kernel);
            let shape = [target.d_out, target.weight.shape()[1], height, width];
            let (zero, like) = (self.init_weights, target.like());
            let state = LohaConv {
                scale,
                dropout: self.dropout(),
                ..LohaConv::draw(plan.init(), rank, shape, zero, like)
            };
            plan.adapt_weight(target.weight, state);
            return Ok(());
        }
        let state = self.of_matrix(target, (rank, scale), plan)?;
        plan.adapt_weight(target.weight, state);
        Ok(())
    }

    fn of_matrix(
        &self,
        target: &TargetLayer<'_>,
        (rank, scale): (usize, f64),
        plan: &mut Plan,
    ) -> Result<LohaLinear> {
        let (name, d_in, out, like) = (target.name(), target.d_in, target.d_out, target.like());
        let most = d_in.min(out);
        if plan.is_new() && rank > most {
            let expected = format!("`{name}` is {d_in} × {out}, so at most {most}");
            return Err(Error::config(LOHA.title, "r", rank, expected));
        }
        let init = plan.init();
        Ok(LohaLinear {
            down_1: init.kaiming_uniform([d_in, rank], d_in, like),
            up_1: init.kaiming_uniform([rank, out], rank, like),
            down_2: init.zeros_or_kaiming_uniform(self.init_weights, [d_in, rank], d_in, like),
            up_2: init.kaiming_uniform([rank, out], rank, like),
            scale,
            dropout: self.dropout(),
        })
    }
}

impl Method for LohaConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for target in layer_targets(self, layout, plan, LINEAR_AND_CONV)? {
            self.adapt(&target, plan)?;
        }
        Ok(())
    }

    fn max_rank(&self) -> Option<usize> {
        let most = self.rank_pattern.values().chain([self.r]).max()?;
        most.checked_mul(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Tolerance};
    use peft_core::method::Init;

    fn adapter(device: &Device) -> LohaLinear {
        let mut init = Init::new(3);
        let like = (device, DType::F32);
        LohaLinear {
            down_1: init.normal([40, 3], 1.0, like),
            up_1: init.normal([3, 30], 1.0, like),
            down_2: init.normal([40, 3], 1.0, like),
            up_2: init.normal([3, 30], 1.0, like),
            scale: 0.5,
            dropout: ChangeDropout::new(0.5, 0.0, true),
        }
    }

    #[test]
    fn factors_of_rank_r_squared_are_the_change() {
        for (_, device) in peft_core::device::cpu_devices() {
            let adapter = adapter(&device);
            let LowRank {
                down, up, scale, ..
            } = adapter.low_rank().expect("9·(40 + 30) is below 40·30");
            assert_eq!(down.dims(), [40, 9]);
            (down.matmul(up) * scale).into_data().assert_approx_eq(
                &adapter.delta().into_data(),
                Tolerance::<f32>::rel_abs(1e-4, 1e-4),
            );
        }
    }

    #[test]
    fn dropped_features_are_none_and_the_others_keep_the_sum() {
        for (_, device) in peft_core::device::cpu_devices() {
            let plain = adapter(&device);
            assert!(plain.dropout.factors(30, &plain.down_1).is_none());
            let training = adapter(&device.autodiff());
            assert!(training.low_rank().is_none());
            let factors = training.dropout.factors(30, &training.down_1);
            let factors = factors.expect("in training").into_data();
            let factors: Vec<f32> = factors.iter::<f32>().collect();
            let kept = factors.iter().filter(|factor| **factor > 0.0).count();
            assert!(kept > 0 && kept < 30, "{kept} of 30");
            let sum: f32 = factors.iter().sum();
            assert!((sum - 30.0).abs() < 1e-3, "{factors:?}");
        }
    }
}
