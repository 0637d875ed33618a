//! PVeRA: VeRA whose inner numbers are drawn from a normal distribution, of which mean and variance are trained.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Distribution;
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward as _, dropout_rate};
use peft_core::ops::add_low_rank;

use crate::shared_projection::projections::{VeraProjections, corner, vera_vectors};

/// Fillioux et al. 2025: `y = xW + (z B) ∘ b`, with z normal of mean μ and variance exp(l), where `[μ, l]` is
/// `(drop(x) A) ∘ d`. A and B are corners of two frozen matrices that all layers share.
///
/// z is μ in use, and wherever a weight has to be said.
#[derive(Module, Adapter, Debug)]
pub struct PveraLinear {
    /// A of the widest layer, `[in, 2r]`, frozen: r columns for means, r for logarithms of variances. A layer uses its
    /// first rows.
    #[tensor(root = "base_model.pvera_A", transposed, saved_if = save_projection)]
    pub pvera_a: Shared<2>,
    /// B of the widest layer, `[r, out]`, frozen. A layer uses its first columns.
    #[tensor(root = "base_model.pvera_B", transposed, saved_if = save_projection)]
    pub pvera_b: Shared<2>,
    /// d, `[2r]`.
    #[tensor("pvera_lambda_d")]
    pub pvera_lambda_d: Param<Tensor<1>>,
    /// b, `[out]`.
    #[tensor("pvera_lambda_b")]
    pub pvera_lambda_b: Param<Tensor<1>>,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// The layer's input width.
    pub d_in: usize,
    /// Whether A and B are in the checkpoint; if not, the configuration's key says all about them.
    pub save_projection: bool,
    /// Whether z is drawn in use, too.
    pub sample_at_inference: bool,
    /// Whether z is μ in training, too.
    pub deterministic: bool,
}

impl PveraLinear {
    /// r.
    fn rank(&self) -> usize {
        self.pvera_lambda_d.dims()[0] / 2
    }

    /// B of this layer times b, `[r, out]`.
    fn up(&self) -> Tensor<2> {
        let b = self.pvera_lambda_b.val();
        let [d_out] = b.dims();
        corner(self.pvera_b.val(), [self.rank(), d_out]) * b.reshape([1, d_out])
    }

    /// With z at its mean. d is in the second factor, so that the first is frozen and costs no gradient.
    fn factors(&self) -> LowRank {
        let rank = self.rank();
        let d = self.pvera_lambda_d.val().narrow(0, 0, rank);
        let down = corner(self.pvera_a.val(), [self.d_in, rank]);
        LowRank::new(down, self.up() * d.reshape([rank, 1]), 1.0)
    }

    /// Whether the adapter is in training: on a device with autodiff, and not frozen.
    fn is_trained(&self) -> bool {
        self.pvera_lambda_d.is_require_grad() && self.pvera_lambda_d.val().is_autodiff()
    }

    /// Whether z is drawn in a forward pass.
    fn samples(&self) -> bool {
        self.sample_at_inference || (self.is_trained() && !self.deterministic)
    }

    fn drops(&self) -> bool {
        dropout_rate(&self.dropout) > 0.0 && self.is_trained()
    }

    /// z, `[rows, r]`, for inputs of A.
    fn drawn(&self, input: Tensor<2>) -> Tensor<2> {
        let rank = self.rank();
        let projected = input.matmul(corner(self.pvera_a.val(), [self.d_in, 2 * rank]));
        let of_both = projected * self.pvera_lambda_d.val().unsqueeze();
        let mean = of_both.clone().narrow(1, 0, rank);
        let deviation = (of_both.narrow(1, rank, rank) * 0.5).exp();
        let noise = mean.random_like(Distribution::Normal(0.0, 1.0));
        mean + deviation * noise
    }
}

impl WeightAdapter for PveraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.factors().product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        (!self.samples() && !self.drops()).then(|| self.factors())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        if let Some(factors) = self.low_rank() {
            return base.forward_with(input, factors);
        }
        let dropped = if self.drops() {
            self.dropout.adapted(input.clone())
        } else {
            input.clone()
        };
        if self.samples() {
            return base.forward(input) + self.drawn(dropped).matmul(self.up());
        }
        add_low_rank(base.forward(input), dropped, self.factors())
    }

    // A weight that is kept would be the mean's.
    fn keeps_weight(&self) -> bool {
        !self.sample_at_inference
    }
}

/// PVeRA's configuration. Fields are called and behave as in Hugging Face PEFT's `PveraConfig`.
#[method_config(
    PVERA, peft_type = "PVERA", title = "PVeRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Fillioux et al. 2025, PVeRA: Probabilistic Vector-Based Random Matrix Adaptation"
)]
pub struct PveraConfig {
    /// Rank of the projections. It may exceed a layer's width.
    #[field(default = 256, at_least = 1)]
    pub r: usize,
    /// Seed of the projections, for torch's generator.
    #[field(any)]
    pub projection_prng_key: i64,
    /// Whether the projections are in the checkpoint.
    #[field(default = true)]
    pub save_projection: bool,
    /// Dropout probability on the projections' input, on the activation side only.
    #[field(probability)]
    pub pvera_dropout: f64,
    /// Initial value of d.
    #[field(default = 0.1, finite)]
    pub d_initial: f64,
    /// Whether numbers are drawn in use, too: then no two passes give the same outputs. Merged weights have the means.
    pub sample_at_inference: bool,
    /// Whether the means are used in training, too. Not one of upstream's fields, and written only if it is true.
    #[field(skip_false)]
    pub deterministic: bool,
    pub bias: Bias,
    /// Initial values. True: d at `d_initial` and b zero. False: d normal and b one, so that the fresh adapter does
    /// change outputs; for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl Method for PveraConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let both = self.r.saturating_mul(2);
        let projections = VeraProjections {
            key: self.projection_prng_key,
            saved: self.save_projection,
            down: both,
            up: self.r,
        };
        let mut handles = projections.handles(&PVERA, &targets, layout, plan)?;
        let d_initial = self.init_weights.then_some(self.d_initial);
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (pvera_a, pvera_b) = handles.next().expect("a handle for each target");
            let [pvera_lambda_d, pvera_lambda_b] = vera_vectors(d_initial, both, target, plan);
            Ok(PveraLinear {
                pvera_a,
                pvera_b,
                pvera_lambda_d,
                pvera_lambda_b,
                dropout: DropoutConfig::new(self.pvera_dropout).init(),
                d_in: target.d_in,
                save_projection: self.save_projection,
                sample_at_inference: self.sample_at_inference,
                deterministic: self.deterministic,
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

    /// A layer of 3 inputs and 2 outputs in projections of a wider one, r 2.
    fn state(device: &Device, deterministic: bool) -> PveraLinear {
        let mut init = Init::new(3);
        let like = (device, DType::F32);
        let mut shared = |shape: [usize; 2]| {
            let param = init.normal(shape, 0.5, like).set_require_grad(false);
            Shared::new(param, 1).next().unwrap()
        };
        let (pvera_a, pvera_b) = (shared([4, 4]), shared([2, 3]));
        PveraLinear {
            pvera_a,
            pvera_b,
            pvera_lambda_d: init.normal([4], 0.5, like),
            pvera_lambda_b: init.normal([2], 0.5, like),
            dropout: DropoutConfig::new(0.0).init(),
            d_in: 3,
            save_projection: true,
            sample_at_inference: false,
            deterministic,
        }
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn numbers_are_drawn_in_training_alone() {
        for (_, device) in peft_core::device::cpu_devices() {
            assert!(!state(&device, false).samples());
            let autodiff = device.clone().autodiff();
            assert!(state(&autodiff, false).samples());
            assert!(!state(&autodiff, true).samples());
            assert!(!state(&autodiff, false).valid().samples());
            assert!(!state(&autodiff, false).no_grad().samples());
            let always = PveraLinear {
                sample_at_inference: true,
                ..state(&device, true)
            };
            assert!(always.samples() && always.low_rank().is_none());
        }
    }

    /// Mean and deviation of what is drawn, against those of the definition, one by one.
    #[test]
    fn what_is_drawn_has_the_trained_mean_and_variance() {
        const DRAWS: usize = 20_000;
        for (_, device) in peft_core::device::cpu_devices() {
            device.seed(11);
            let state = state(&device, false);
            let input = [0.3_f32, -1.0, 2.0];
            let (a, d) = (
                values(state.pvera_a.val()),
                state.pvera_lambda_d.val().into_data(),
            );
            let d: Vec<f32> = d.iter::<f32>().collect();
            let inner = |column: usize| {
                let sum: f32 = (0..3).map(|row| input[row] * a[row * 4 + column]).sum();
                sum * d[column]
            };
            let rows = Tensor::<1>::from_data(input, &device).unsqueeze::<2>();
            let drawn = values(state.drawn(rows.repeat_dim(0, DRAWS)));
            for at in 0..2 {
                let column = drawn.iter().skip(at).step_by(2);
                let mean = column.clone().sum::<f32>() / DRAWS as f32;
                let square = column.map(|x| (x - mean).powi(2)).sum::<f32>() / DRAWS as f32;
                let (expected, deviation) = (inner(at), (0.5 * inner(2 + at)).exp());
                // Four times what the mean of so many draws is off by.
                assert!(
                    (mean - expected).abs() < 0.03 * deviation,
                    "{mean} {expected}"
                );
                assert!((square.sqrt() / deviation - 1.0).abs() < 0.03, "{square}");
            }
            // The weight has the mean.
            let factors = state.factors();
            let product = values(factors.down.matmul(factors.up));
            let b: Vec<f32> = state.pvera_lambda_b.val().into_data().iter().collect();
            let up = values(state.pvera_b.val());
            for out in 0..2 {
                let found: f32 = (0..3).map(|row| input[row] * product[row * 2 + out]).sum();
                let sum: f32 = (0..2).map(|at| inner(at) * up[at * 3 + out]).sum();
                assert!((found - sum * b[out]).abs() < 1e-5, "{found}");
            }
        }
    }

    #[test]
    fn both_halves_are_trained() {
        for (_, device) in peft_core::device::cpu_devices() {
            let autodiff = device.autodiff();
            let state = state(&autodiff, false);
            let rows = Tensor::<2>::ones([5, 3], &autodiff);
            let gradients = state.drawn(rows).matmul(state.up()).sum().backward();
            let of_d = state.pvera_lambda_d.val().grad(&gradients).unwrap();
            let of_d: Vec<f32> = of_d.into_data().iter().collect();
            assert!(
                of_d.iter().all(|gradient| gradient.abs() > 1e-6),
                "{of_d:?}"
            );
        }
    }
}
