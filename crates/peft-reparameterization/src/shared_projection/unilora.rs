//! Uni-LoRA: all elements of all layers' factors are taken from one trained vector.

use std::sync::{Arc, LazyLock};

use burn::nn::{Dropout, DropoutConfig};
use peft_core::checkpoint::transposed;
use peft_core::method::prelude::*;

use crate::math::numpy_random::NumpyGenerator;
use crate::shared_projection::projections::{first_like, fits, lazy, lazy_integers};

/// Li et al. 2025, section 3: `y = xW + (drop(x) A) B`. Every element of A and B is an element of θ, which all layers
/// share, times 1 / √n, where n elements of all factors are the same one of θ.
#[derive(Module, Debug)]
pub struct UniLoraLinear {
    /// θ, `[d]`: that of all layers, and all that is trained.
    pub theta_d: Shared<1>,
    /// Which elements of θ A is made of, `[in, r]`.
    pub indices_a: Param<Tensor<2, Int>>,
    /// Likewise of B, `[r, out]`.
    pub indices_b: Param<Tensor<2, Int>>,
    /// What they are multiplied by, `[in, r]`. Frozen.
    pub scales_a: Param<Tensor<2>>,
    /// Likewise of B, `[r, out]`.
    pub scales_b: Param<Tensor<2>>,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// d.
    pub theta_d_length: usize,
    /// Whether indices and factors are in the checkpoint; if not, the configuration's seed says all about them.
    pub save_indices: bool,
}

impl UniLoraLinear {
    fn factor(
        theta: Tensor<1>,
        indices: &Param<Tensor<2, Int>>,
        scales: &Param<Tensor<2>>,
    ) -> Tensor<2> {
        let (indices, scales) = (indices.val(), scales.val());
        let shape = scales.dims();
        let elements = theta.select(0, indices.reshape([shape[0] * shape[1]]));
        elements.reshape(shape) * scales
    }
}

impl Adapter for UniLoraLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut tensors = vec![CheckpointKey::root("theta_d", "base_model.unilora_theta_d")];
        let frozen = |field, key| {
            if self.save_indices {
                CheckpointKey::layer(field, key).transposed()
            } else {
                CheckpointKey::unsaved(field)
            }
        };
        let indices = |field, key| frozen(field, key).indices(&[self.theta_d_length]);
        tensors.extend([
            indices("indices_a", "unilora_indices_A"),
            indices("indices_b", "unilora_indices_B"),
            frozen("scales_a", "unilora_scales_A"),
            frozen("scales_b", "unilora_scales_B"),
        ]);
        tensors
    }
}

impl LowRankAdapter for UniLoraLinear {
    fn factors(&self) -> LowRank {
        let theta = self.theta_d.val();
        let down = Self::factor(theta.clone(), &self.indices_a, &self.scales_a);
        LowRank::new(
            down,
            Self::factor(theta, &self.indices_b, &self.scales_b),
            1.0,
        )
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }
}

/// Uni-LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `UniLoraConfig`.
#[method_config(
    UNILORA, peft_type = "UNILORA", title = "Uni-LoRA", family = Reparameterization, mergeable, new(r, theta_d_length),
    reference = "Li et al. 2025, Uni-LoRA: One Vector is All You Need, section 3"
)]
pub struct UniLoraConfig {
    /// Rank: at most the larger width of every adapted layer.
    #[field(default = 4, at_least = 1)]
    pub r: usize,
    /// Length d of the trained vector θ.
    #[field(default = 256, at_least = 1)]
    pub theta_d_length: usize,
    /// Seed of the indices, for NumPy's generator.
    #[field(default = 42, any)]
    pub proj_seed: u64,
    /// Whether indices and factors are in the checkpoint.
    pub save_indices: bool,
    /// Dropout probability on the factors' input, on the activation side only.
    #[field(probability)]
    pub unilora_dropout: f64,
    /// θ starts uniform within this bound of zero. With 0 nothing would train.
    #[field(default = 0.02, at_least = 0.0)]
    pub init_theta_d_bound: f64,
    /// Whether θ starts as `init_theta_d_bound` says; else it is standard normal.
    #[field(default = true)]
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

/// Which element of θ each element of all factors is, and what it is multiplied by.
struct Assignment {
    /// In upstream's order: the layers', of each A `[r, in]` and then B `[out, r]`.
    indices: Vec<i64>,
    /// For each element of θ.
    scales: Vec<f32>,
}

impl Assignment {
    /// Every element of θ is used as often as every other, or once more, in random order.
    fn new(count: usize, length: usize, seed: u64) -> Self {
        let (each, more) = (count / length, count % length);
        let mut indices = Vec::with_capacity(count);
        let mut uses = vec![each; length];
        for at in 0..length {
            indices.extend(std::iter::repeat_n(at as i64, each));
        }
        let mut generator = NumpyGenerator::new(seed);
        if more > 0 {
            let chosen = generator.choice(length, more);
            for at in &chosen {
                uses[*at as usize] += 1;
            }
            indices.extend(chosen);
        }
        generator.shuffle(&mut indices);
        let scale = |uses: usize| 1.0 / (uses.max(1) as f32).sqrt();
        Self {
            indices,
            scales: uses.into_iter().map(scale).collect(),
        }
    }
}

/// An assignment that is made when its first number is needed.
type LateAssignment = Arc<LazyLock<Assignment, Box<dyn FnOnce() -> Assignment + Send>>>;

/// The matrix of a layer that upstream has as `[rows, columns]`, from element `from` of all on, transposed: its indices
/// and scales.
fn assigned(
    all: &LateAssignment,
    from: usize,
    [rows, columns]: [usize; 2],
    like: (&Device, DType),
) -> (Param<Tensor<2, Int>>, Param<Tensor<2>>) {
    let part = move |all: &LateAssignment| {
        let part = &all.indices[from..from + rows * columns];
        transposed(part, [rows, columns])
    };
    let (of_indices, of_scales) = (all.clone(), all.clone());
    let indices = lazy_integers([columns, rows], like.0, move || part(&of_indices));
    let scales = lazy([columns, rows], like, false, move || {
        let scale = |at: i64| of_scales.scales[at as usize];
        part(&of_scales).into_iter().map(scale).collect()
    });
    (indices, scales)
}

impl UniLoraConfig {
    /// Refuses sizes that nobody can mean. A file says nothing about the rank but by its configuration.
    fn check_sizes(&self, targets: &[TargetLayer<'_>]) -> Result<()> {
        let (rank, length) = (self.r, self.theta_d_length);
        for target in targets {
            let (name, most) = (target.name(), target.d_in.max(target.d_out));
            if rank > most {
                let expected = format!("at most {most}, the larger width of `{name}`");
                return Err(Error::config(UNILORA.title, "r", rank, expected));
            }
        }
        if !fits(&[length]) {
            let expected = "a length that fits into memory";
            return Err(Error::config(
                UNILORA.title,
                "theta_d_length",
                length,
                expected,
            ));
        }
        Ok(())
    }
}

impl Method for UniLoraConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        self.check_sizes(&targets)?;
        let (rank, length, seed) = (self.r, self.theta_d_length, self.proj_seed);
        let (device, dtype) = first_like(&targets, layout);
        let (init, like) = (plan.init(), (&device, dtype));
        let theta = if self.init_weights {
            init.uniform([length], self.init_theta_d_bound, like)
        } else {
            init.normal([length], 1.0, like)
        };
        let mut handles = Shared::new(theta, targets.len());
        let widths = targets.iter().map(|target| target.d_in + target.d_out);
        let count = rank * widths.sum::<usize>();
        let all: LateAssignment = Arc::new(LazyLock::new(Box::new(move || {
            Assignment::new(count, length, seed)
        })));
        let in_file = self.save_indices && !plan.is_new();
        let mut from = 0;
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let like = target.like();
            let mut frozen = |shape: [usize; 2]| {
                let start = from;
                from += shape[0] * shape[1];
                if in_file {
                    let (init, turned) = (plan.init(), [shape[1], shape[0]]);
                    let indices = init.integers(turned, (like.0, DType::I64), |_| Vec::new());
                    return (indices, init.zeros(turned, like).set_require_grad(false));
                }
                assigned(&all, start, shape, like)
            };
            let (indices_a, scales_a) = frozen([rank, target.d_in]);
            let (indices_b, scales_b) = frozen([target.d_out, rank]);
            Ok(UniLoraLinear {
                theta_d: handles.next().expect("a handle for each target"),
                indices_a,
                indices_b,
                scales_a,
                scales_b,
                dropout: DropoutConfig::new(self.unilora_dropout).init(),
                theta_d_length: length,
                save_indices: self.save_indices,
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

    /// UniLoraModel.generate_index(count, length, seed) of Hugging Face PEFT 0.21.2
    #[test]
    fn indices_are_upstreams() {
        for (count, length, seed, first, sum) in [
            (10, 4, 42, [0, 3, 3, 3], 73_i64),
            (30, 7, 1, [5, 2, 1, 0], 1452),
            (5, 20, 3, [12, 19, 1, 4], 84),
            (73_728, 5000, 42, [280, 4788, 2781, 101], 6_783_167_719_039),
            (
                40_000,
                30_000,
                42,
                [18_611, 13_966, 20_093, 8998],
                11_959_700_646_019,
            ),
        ] {
            let all = Assignment::new(count, length, seed);
            assert_eq!(all.indices.len(), count);
            assert_eq!(all.indices[..4], first);
            let weighed = all.indices.iter().zip(1..).map(|(index, at)| index * at);
            assert_eq!(weighed.sum::<i64>(), sum);
        }
    }

    /// The projection from θ to all factors keeps lengths where every element of θ is used.
    #[test]
    fn the_projection_has_orthonormal_columns() {
        let all = Assignment::new(1000, 7, 5);
        let mut squares = [0.0_f32; 7];
        for at in &all.indices {
            squares[*at as usize] += all.scales[*at as usize].powi(2);
        }
        assert!(squares.iter().all(|square| (square - 1.0).abs() < 1e-5));
    }

    #[test]
    fn factors_are_elements_of_the_vector_times_their_scales() {
        for (_, device) in peft_core::device::cpu_devices() {
            let floats = |values: &[f32], shape: [usize; 2]| {
                let data = TensorData::new(values.to_vec(), shape);
                Param::from_tensor(Tensor::<2>::from_data(data, &device))
            };
            let theta = Tensor::<1>::from_data([1.0_f32, -2.0, 5.0], &device);
            let state = UniLoraLinear {
                theta_d: Shared::new(Param::from_tensor(theta), 1).next().unwrap(),
                indices_a: lazy_integers([2, 1], &device, || vec![2, 0]),
                indices_b: lazy_integers([1, 2], &device, || vec![1, 1]),
                scales_a: floats(&[0.5, 2.0], [2, 1]),
                scales_b: floats(&[1.0, -1.0], [1, 2]),
                dropout: DropoutConfig::new(0.0).init(),
                theta_d_length: 3,
                save_indices: false,
            };
            let change = state.compose(Tensor::<2>::zeros([2, 2], &device));
            let expected = TensorData::from([[-5.0_f32, 5.0], [-4.0, 4.0]]);
            change.into_data().assert_eq(&expected, false);
        }
    }
}
