//! RandLoRA: a change of full rank, as a trained combination of frozen random bases that all layers
//! share.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{self, add_low_rank, add_product};

use crate::math::torch_random::TorchGenerator;
use crate::shared_projection::projections::{corner, first_like, fits, lazy, widest};

/// Albert et al. 2025, section 3: `W' = W + s·Σ Bₙ Λₙ A Γₙ` over n bases of rank r, with n r at least the
/// layer's smaller side. Λₙ and Γₙ are diagonal and trained, A and the Bₙ frozen and shared.
///
/// With m the layer's smaller side and M its larger one, A has m columns and Bₙ has M rows; where the
/// input is the smaller side, the product is transposed.
#[derive(Module, Adapter, Debug)]
pub struct RandLoraLinear {
    /// A for the widest layer, `[r, 1, m]`, frozen. A layer uses its first columns.
    #[tensor(root = "base_model.randlora_A", also = "randlora_A", saved_if = save_projection)]
    pub randlora_a: Shared<3>,
    /// The Bₙ for the widest layer, `[M, n, r]`, frozen. A layer uses the first rows and bases.
    #[tensor(root = "base_model.randlora_B", also = "randlora_B", saved_if = save_projection)]
    pub randlora_b: Shared<3>,
    /// The diagonals of the Λₙ, `[r, n]`.
    #[tensor("randlora_lambda")]
    pub randlora_lambda: Param<Tensor<2>>,
    /// The diagonals of the Γₙ, `[n, m]`.
    #[tensor("randlora_gamma")]
    pub randlora_gamma: Param<Tensor<2>>,
    /// s: alpha / r.
    pub scale: f64,
    /// On the layer's input; on the activation side only.
    pub dropout: Dropout,
    /// The layer's input width.
    pub d_in: usize,
    /// The layer's output width.
    pub d_out: usize,
    /// Whether A and the Bₙ are in the checkpoint; if not, the configuration's key says all about them.
    pub save_projection: bool,
}

impl RandLoraLinear {
    /// The change as factors of rank n r.
    fn factors(&self) -> LowRank {
        let (lambda, gamma) = (self.randlora_lambda.val(), self.randlora_gamma.val());
        let ([rank, bases], [_, small]) = (lambda.dims(), gamma.dims());
        let large = self.d_in.max(self.d_out);
        let a = corner(self.randlora_a.val(), [rank, 1, small])
            * lambda.reshape([rank, bases, 1])
            * gamma.reshape([1, bases, small]);
        // Rows of A are counted by rank and then basis, columns of B by basis and then rank. So upstream
        // pairs them, and what is random anyway loses nothing by it.
        let a = a.reshape([rank * bases, small]);
        let b = corner(self.randlora_b.val(), [large, bases, rank]).reshape([large, bases * rank]);
        let (down, up) = if self.d_in <= self.d_out {
            (a.swap_dims(0, 1), b.swap_dims(0, 1))
        } else {
            (b, a)
        };
        LowRank::new(down, up, self.scale)
    }
}

impl WeightAdapter for RandLoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, matrix) = (weight.shape(), matrix_of(weight));
        from_matrix(add_product(matrix, self.factors()), shape)
    }

    // No `low_rank`: the rank is full, and with many tokens a dense change costs less than its factors.
    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let [rank, bases] = self.randlora_lambda.dims();
        let dropping = dropout_rate(&self.dropout) > 0.0 && input.is_autodiff();
        if !dropping && input.dims()[0] > 2 * rank * bases {
            return ops::linear(input, self.compose(inner.weight()), inner.bias(), None);
        }
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(inner.forward(input), dropped, self.factors())
    }
}

/// RandLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `RandLoraConfig`.
#[method_config(
    RANDLORA, peft_type = "RANDLORA", title = "RandLoRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Albert et al. 2025, RandLoRA: Full-rank parameter-efficient fine-tuning of large models, \
                section 3"
)]
pub struct RandLoraConfig {
    /// Rank of a basis. The smaller it is, the more bases there are, and trained parameters.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// Seed of the bases, for torch's generator.
    #[field(any)]
    pub projection_prng_key: i64,
    /// Whether the bases are in the checkpoint.
    #[field(default = true)]
    pub save_projection: bool,
    /// Bases of -1, 0 and 1, a third of them not 0, over their standard deviation.
    pub sparse: bool,
    /// The same with 1 / √m not 0, m being the smaller side of the widest layer. Goes before `sparse`.
    pub very_sparse: bool,
    /// Dropout probability on the layers' input, on the activation side only.
    #[field(probability)]
    pub randlora_dropout: f64,
    /// Scaling numerator.
    #[field(default = 640.0, finite)]
    pub randlora_alpha: f64,
    pub bias: Bias,
    /// Initial values. True: Λ zero and Γ 1 / m. False: Λ normal and Γ 1 / M, so that the
    /// fresh adapter does change outputs; for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl RandLoraConfig {
    /// A and the Bₙ.
    fn bases(
        &self,
        sizes: Sizes,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> [Param<Tensor<3>>; 2] {
        let shapes = [sizes.of_a(), sizes.of_b()];
        if self.save_projection && !plan.is_new() {
            let init = plan.init();
            return shapes.map(|shape| init.zeros(shape, like).set_require_grad(false));
        }
        let key = self.projection_prng_key.cast_unsigned();
        let sparsity = if self.very_sparse {
            Some((sizes.small as f64).sqrt())
        } else {
            self.sparse.then_some(3.0)
        };
        let draw = move || match sparsity {
            Some(sparsity) => drawn_sparse(key, sizes, sparsity),
            None => drawn(key, sizes),
        };
        let [of_a, of_b] = shapes;
        [
            lazy(of_a, like, false, move || draw().0),
            lazy(of_b, like, false, move || draw().1),
        ]
    }
}

impl Method for RandLoraConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let rank = self.r;
        let shared = Sizes::new(rank, widest(&targets));
        if !fits(&shared.of_a()) || !fits(&shared.of_b()) {
            let expected = "a rank whose bases fit into memory";
            return Err(Error::config(RANDLORA.title, "r", rank, expected));
        }
        let (device, dtype) = first_like(&targets, layout);
        let [a, b] = self.bases(shared, plan, (&device, dtype));
        let mut a = Shared::new(a, targets.len());
        let mut b = Shared::new(b, targets.len());
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (d_in, d_out, like) = (target.d_in, target.d_out, target.like());
            let sizes = Sizes::new(rank, [d_in, d_out]);
            let (bases, small) = (sizes.bases, sizes.small);
            let (randlora_lambda, gamma) = if self.init_weights {
                (plan.init().zeros([rank, bases], like), bases.max(small))
            } else {
                (plan.init().normal([rank, bases], 1.0, like), sizes.large)
            };
            let gamma = 1.0 / gamma as f32;
            let gammas = move || vec![gamma; bases * small];
            Ok(RandLoraLinear {
                randlora_a: a.next().expect("a handle for each target"),
                randlora_b: b.next().expect("a handle for each target"),
                randlora_lambda,
                randlora_gamma: lazy([bases, small], like, true, gammas),
                scale: self.randlora_alpha / rank as f64,
                dropout: DropoutConfig::new(self.randlora_dropout).init(),
                d_in,
                d_out,
                save_projection: self.save_projection,
            })
        })
    }
}

/// Sizes of the bases for a layer, or for all.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rank: usize,
    /// n: enough that n r is at least `small`.
    bases: usize,
    /// m.
    small: usize,
    /// M.
    large: usize,
}

impl Sizes {
    fn new(rank: usize, [d_in, d_out]: [usize; 2]) -> Self {
        let (small, large) = (d_in.min(d_out), d_in.max(d_out));
        Self {
            rank,
            bases: small.div_ceil(rank),
            small,
            large,
        }
    }

    fn of_a(self) -> [usize; 3] {
        [self.rank, 1, self.small]
    }

    fn of_b(self) -> [usize; 3] {
        [self.large, self.bases, self.rank]
    }
}

/// A and the Bₙ as upstream draws them: torch's `kaiming_uniform_` with a = √5 in bfloat16, A first and
/// then basis by basis, over their standard deviations.
fn drawn(key: u64, sizes: Sizes) -> (Vec<f32>, Vec<f32>) {
    let mut generator = TorchGenerator::new(key);
    let mut uniform = |count: usize, fan_in: usize| -> Vec<f32> {
        let gain = (2.0 / (1.0 + 5.0_f64.sqrt().powi(2))).sqrt();
        let bound = (3.0_f64.sqrt() * (gain / (fan_in as f64).sqrt())) as f32;
        // The upper bound itself is not in the range, and rounding must not lead there.
        let wrapped = |value| {
            let value = bfloat16(value);
            if value >= bfloat16(bound) {
                bfloat16(-bound)
            } else {
                value
            }
        };
        let values = generator.uniform(count, -bound, bound);
        values.into_iter().map(wrapped).collect()
    };
    let Sizes {
        rank,
        bases,
        small,
        large,
    } = sizes;
    let mut a = uniform(rank * small, small);
    let mut b = vec![0.0_f32; large * bases * rank];
    for basis in 0..bases {
        let values = uniform(large * rank, rank);
        let places = b.chunks_exact_mut(rank).skip(basis).step_by(bases);
        for (place, row) in places.zip(values.chunks_exact(rank)) {
            place.copy_from_slice(row);
        }
    }
    for values in [&mut a, &mut b] {
        normalize(values, bfloat16);
    }
    (a, b)
}

/// The sparse ones: each element is -1 or 1 with probability 1 / (2 `sparsity`) each (Li, Hastie and
/// Church 2006, Very sparse random projections), over the standard deviation.
fn drawn_sparse(key: u64, sizes: Sizes, sparsity: f64) -> (Vec<f32>, Vec<f32>) {
    let mut generator = TorchGenerator::new(key);
    let share = 1.0 / (2.0 * sparsity);
    let (low, high) = (share as f32, (1.0 - share) as f32);
    let mut ternary = |shape: [usize; 3]| {
        let values = generator.uniform(shape.iter().product(), 0.0, 1.0);
        let mut values: Vec<f32> = values
            .into_iter()
            .map(|value| f32::from(i8::from(value > high) - i8::from(value < low)))
            .collect();
        normalize(&mut values, |value| value);
        values
    };
    let a = ternary(sizes.of_a());
    (a, ternary(sizes.of_b()))
}

/// Divides by the standard deviation, and rounds that and the quotients by `round`. Values that are all
/// the same stay what they are.
fn normalize(values: &mut [f32], round: impl Fn(f32) -> f32) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2));
    let deviation = round((squares.sum::<f64>() / (count - 1.0)).sqrt() as f32);
    if deviation > 0.0 {
        for value in values {
            *value = round(*value / deviation);
        }
    }
}

/// The nearest number that bfloat16 has; of two, the even one.
fn bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let half = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Distribution, Shape, TensorData};
    use peft_core::PeftModule;

    use super::*;
    use crate::shared_projection::projections::tests::golden;

    #[test]
    fn the_key_gives_upstreams_bases() {
        let (a, b) = drawn(0, Sizes::new(4, [32, 32]));
        assert_eq!(a, golden("randlora", "base_model.randlora_A"));
        assert_eq!(b, golden("randlora", "base_model.randlora_B"));
    }

    #[test]
    fn bfloat16_rounds_to_even() {
        assert_eq!(bfloat16(1.003_906_3).to_bits(), 1.0_f32.to_bits());
        assert_eq!(bfloat16(1.011_718_8).to_bits(), 1.015_625_f32.to_bits());
        assert_eq!(bfloat16(-0.3).to_bits(), (-0.300_781_25_f32).to_bits());
    }

    /// Values 1, 2, 3, … in steps of `step`.
    fn counted<const D: usize>(shape: [usize; D], step: f32, device: &Device) -> Tensor<D> {
        let count: usize = shape.iter().product();
        let values = (1..=count).map(|at| at as f32 * step).collect::<Vec<_>>();
        Tensor::from_data(TensorData::new(values, Shape::from(shape.to_vec())), device)
    }

    /// A state for bases of rank 2 on a 3 × 5 layer, in either direction; the widest layer is 4 × 6.
    fn state([d_in, d_out]: [usize; 2], device: &Device) -> RandLoraLinear {
        let shared = |tensor: Tensor<3>| Shared::new(Param::from_tensor(tensor), 1).next().unwrap();
        RandLoraLinear {
            randlora_a: shared(counted([2, 1, 4], 0.1, device)),
            randlora_b: shared(counted([6, 2, 2], -0.01, device)),
            randlora_lambda: Param::from_tensor(counted([2, 2], 0.3, device)),
            randlora_gamma: Param::from_tensor(counted([2, 3], 0.2, device)),
            scale: 3.0,
            dropout: DropoutConfig::new(0.0).init(),
            d_in,
            d_out,
            save_projection: true,
        }
    }

    #[test]
    fn factors_are_the_sum_over_the_bases() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        let mut expected = [[0.0_f32; 5]; 3];
        for (small, row) in expected.iter_mut().enumerate() {
            for (large, element) in row.iter_mut().enumerate() {
                for at in 0..4 {
                    let (rank, basis) = (at / 2, at % 2);
                    let a = 0.1 * (rank * 4 + small + 1) as f32;
                    let lambda = 0.3 * (rank * 2 + basis + 1) as f32;
                    let gamma = 0.2 * (basis * 3 + small + 1) as f32;
                    let b = -0.01 * (large * 4 + at + 1) as f32;
                    *element += 3.0 * a * lambda * gamma * b;
                }
            }
        }
        let expected = Tensor::<2>::from_data(TensorData::from(expected), device);
        let wide = state([3, 5], device).compose(Tensor::<2>::zeros([3, 5], device));
        let narrow = state([5, 3], device).compose(Tensor::<2>::zeros([5, 3], device));
        for change in [wide, narrow.swap_dims(0, 1)] {
            let distance = (change - expected.clone()).abs().max().into_scalar::<f32>();
            assert!(distance < 1e-5, "{distance}");
        }
    }

    #[derive(Module, Debug)]
    struct Net {
        query: Linear,
    }

    #[test]
    fn few_tokens_and_many_give_the_same() {
        for (_, device) in peft_core::device::cpu_devices() {
            let net = Net {
                query: LinearConfig::new(4, 6).init(&device),
            };
            let mut config = RandLoraConfig::new(2).with_randlora_alpha(4.0);
            config.init_weights = false;
            let model = net.attach("x", &config).unwrap();
            let many = Tensor::<2>::random([20, 4], Distribution::Normal(0.0, 1.0), &device);
            let few = model.query.adapted(many.clone().slice([0..2, 0..4]));
            let base = net.query.forward(many.clone()).slice([0..2, 0..6]);
            let many = model.query.adapted(many).slice([0..2, 0..6]);
            let distance = |a: Tensor<2>, b: Tensor<2>| (a - b).abs().max().into_scalar::<f32>();
            assert!(distance(many.clone(), few) < 1e-4);
            assert!(distance(many, base) > 1e-2);
        }
    }
}
