//! Intrinsic dimension: all weights move in one subspace of few dimensions.

use peft_core::method::LINEAR_EMBEDDING_AND_CONV;
use peft_core::method::prelude::*;
use peft_core::ops::add_hadamard;
use peft_core::ops::reference::hadamard_rows;

/// Random numbers that are the same everywhere and forever: Vigna's splitmix64. They are a part of every
/// saved adapter's meaning.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// A pair of independent standard normal numbers, by Box and Muller.
    fn normals(&mut self) -> [f64; 2] {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        [radius * angle.cos(), radius * angle.sin()]
    }

    /// A permutation of the numbers below `count`, by Fisher and Yates.
    fn permutation(&mut self, count: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..count as i64).collect();
        for last in (1..count).rev() {
            let other = (self.bits() % (last as u64 + 1)) as usize;
            order.swap(last, other);
        }
        order
    }
}

/// What all weights have in common: the frozen part of Fastfood (Le et al. 2013, section 3) that depends on
/// no weight, for vectors padded to d, a power of two.
#[derive(Module, Debug)]
struct Mixing {
    /// B, random signs, `[d]`.
    signs: Tensor<1>,
    /// Π, a random permutation, `[d]`.
    order: Tensor<1, Int>,
}

impl Mixing {
    fn new(dimension: usize, random: &mut Random, (device, dtype): (&Device, DType)) -> Self {
        let size = dimension.next_power_of_two();
        let sign = |bits: u64| if bits >> 63 == 0 { 1.0 } else { -1.0 };
        let signs: Vec<f32> = (0..size).map(|_| sign(random.bits())).collect();
        let order = random.permutation(size);
        Self {
            signs: Tensor::from_data(TensorData::new(signs, [size]), (device, dtype)),
            order: Tensor::from_data(TensorData::new(order, [size]), device),
        }
    }

    /// Π H B z, for `z` `[m]` padded with zeros: `[d]`, in z's number format. A model that is cast takes its
    /// parameters along, and these tensors are none.
    fn spread(&self, z: Tensor<1>) -> Tensor<1> {
        let ([m], [size]) = (z.dims(), self.signs.dims());
        let z = if m < size {
            let padding = Tensor::zeros([size - m], (&z.device(), z.dtype()));
            Tensor::cat(vec![z, padding], 0)
        } else {
            z
        };
        let signs = self.signs.clone().cast(z.dtype());
        let signed = (z * signs).unsqueeze();
        let mixed = hadamard_rows(signed).reshape([size]);
        mixed.select(0, self.order.clone())
    }
}

/// Aghajanyan et al. 2020, section 3: θ' = θ + λ · P z for one weight, z shared by all.
///
/// P z is H G Π H B z, in blocks of d elements: the blocks have a random diagonal G each.
#[derive(Module, Adapter, Debug)]
pub struct Said {
    /// z, the coordinates in the subspace, `[m]`; one for all weights.
    #[tensor(root = "base_model.said_z")]
    pub z: Shared<1>,
    /// λ, `[1]`; none where all weights have 1.
    #[tensor("said_lambda")]
    pub lambda: Option<Param<Tensor<1>>>,
    /// G of all blocks, scaled so that P keeps lengths on the average, `[blocks, d]`. Frozen, as all of P,
    /// and no parameter: the seed says it.
    gaussian: Tensor<2>,
    #[no_tensor]
    mixing: Mixing,
}

impl WeightAdapter for Said {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let z = self.z.val();
        let gaussian = self.gaussian.clone().cast(z.dtype());
        let spread = self.mixing.spread(z);
        let spread = match &self.lambda {
            Some(lambda) => spread * lambda.val(),
            None => spread,
        };
        add_hadamard(weight, gaussian, spread)
    }
}

/// Intrinsic SAID's configuration. There is no upstream; names of fields are this library's.
#[method_config(
    SAID, name = "said", peft_type = "INTRINSIC_SAID", title = "Intrinsic SAID", family = Reparameterization, identity_at_init, mergeable, new(intrinsic_dimension),
    reference = "Aghajanyan et al. 2020, Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning, section 3"
)]
pub struct SaidConfig {
    /// m, the number of dimensions in which all weights move: at most the elements of the largest adapted weight.
    #[field(default = 1000, at_least = 1)]
    pub intrinsic_dimension: usize,
    /// Trains a factor λ for each weight besides (SAID); otherwise it is 1 (DID).
    #[field(default = true)]
    pub structure_aware: bool,
    /// Seed of the random subspace.
    #[field(any)]
    pub seed: u64,
    pub targets: Targets,
    pub common: Common,
}

/// Device and float type for the adapter of a weight.
fn like(weight: &LayoutParam) -> (Device, DType) {
    let dtype = weight.dtype();
    // A quantized base has no float type of its own.
    let dtype = if dtype.is_float() { dtype } else { DType::F32 };
    (weight.device(), dtype)
}

/// G for a weight of so many elements, in blocks of `size`: rows of length 1 / √elements.
fn gaussian(
    elements: usize,
    size: usize,
    random: &mut Random,
    like: (&Device, DType),
) -> Tensor<2> {
    let blocks = elements.div_ceil(size);
    let mut values: Vec<f32> = Vec::with_capacity(blocks * size);
    for _ in 0..blocks {
        let pairs = (0..size.div_ceil(2)).flat_map(|_| random.normals());
        let row: Vec<f64> = pairs.take(size).collect();
        let squares: f64 = row.iter().map(|value| value * value).sum();
        let scale = 1.0 / (squares * elements as f64).sqrt();
        values.extend(row.into_iter().map(|value| (value * scale) as f32));
    }
    Tensor::from_data(TensorData::new(values, [blocks, size]), like)
}

impl Method for SaidConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = layer_targets(self, layout, plan, LINEAR_EMBEDDING_AND_CONV)?;
        let elements = targets.iter().map(|target| target.weight.elements());
        let (Some(first), Some(most)) = (targets.first(), elements.clone().max()) else {
            return Ok(());
        };
        let dimension = self.intrinsic_dimension;
        let refuse = |expected| {
            let (title, field) = (SAID.title, "intrinsic_dimension");
            Err(Error::config(title, field, dimension, expected))
        };
        // Also from a file: the frozen part of P is as large.
        if dimension > most {
            let expected = format!("at most {most}, the elements of the largest adapted weight");
            return refuse(expected);
        }
        // And each weight has whole blocks of it.
        let size = dimension.next_power_of_two();
        let held: usize = elements
            .clone()
            .map(|count| count.div_ceil(size) * size)
            .sum();
        let adapted: usize = elements.sum();
        if held > 4 * adapted {
            return refuse(format!(
                "smaller: frozen numbers for {held} elements would be held, and the adapted weights have {adapted}"
            ));
        }
        let mut random = Random(self.seed);
        let (device, dtype) = like(first.weight);
        let mixing = Mixing::new(dimension, &mut random, (&device, dtype));
        let size = mixing.signs.dims()[0];
        let z = plan.init().zeros([dimension], (&device, dtype));
        let mut handles = Shared::new(z, targets.len());
        adapt_each(self, &targets, layout, plan, |target, _| {
            let (device, dtype) = like(target.weight);
            let lambda = self.structure_aware.then(|| {
                let one = Tensor::<1>::ones([1], (&device, dtype));
                Param::from_tensor(one)
            });
            let count = target.weight.elements();
            Ok(Said {
                z: handles.next().expect("a handle for each target"),
                lambda,
                gaussian: gaussian(count, size, &mut random, (&device, dtype)),
                mixing: mixing.clone(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(dimension: usize, elements: usize, z: Option<&[f32]>) -> Said {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let like = (&device, DType::F32);
        let mut random = Random(7);
        let mixing = Mixing::new(dimension, &mut random, like);
        let size = mixing.signs.dims()[0];
        let z = match z {
            Some(z) => Tensor::<1>::from_data(z, &device),
            None => Tensor::ones([dimension], &device),
        };
        Said {
            z: Shared::new(Param::from_tensor(z), 1).next().unwrap(),
            lambda: None,
            gaussian: gaussian(elements, size, &mut random, like),
            mixing,
        }
    }

    #[test]
    fn the_random_numbers_are_those_of_splitmix64() {
        // The first numbers that Vigna's own program prints for the seed 1234567.
        let mut random = Random(1_234_567);
        let found = [random.bits(), random.bits(), random.bits()];
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(found, expected);
        let mut order = random.permutation(100);
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<i64>>());
    }

    /// P z.
    fn projected(state: &Said, elements: usize) -> Tensor<1> {
        state.compose(Tensor::zeros([elements], &state.gaussian.device()))
    }

    #[test]
    fn the_projection_is_linear_and_keeps_lengths() {
        let (m, elements) = (50, 20_000);
        let unit = |at: usize| {
            let mut z = vec![0.0; m];
            z[at] = 2.0;
            projected(&said(m, elements, Some(z.as_slice())), elements)
        };
        let columns = [unit(0), unit(1), unit(m - 1)];
        for (at, one) in columns.iter().enumerate() {
            for (other, two) in columns.iter().enumerate() {
                let product = (one.clone() * two.clone()).sum().into_scalar::<f32>() / 4.0;
                let expected = if at == other { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 0.1, "{at}, {other}: {product}");
            }
        }
        let both = {
            let mut z = vec![0.0; m];
            (z[0], z[1]) = (2.0, 2.0);
            projected(&said(m, elements, Some(z.as_slice())), elements)
        };
        let difference = both - columns[0].clone() - columns[1].clone();
        let distance = difference.abs().max().into_scalar::<f32>();
        assert!(distance < 1e-5, "{distance}");
    }
}
