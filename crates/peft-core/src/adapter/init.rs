//! Initial values, the same on every backend.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Distribution, Int, Shape, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The source of initial values of adapters.
///
/// Values are drawn on the host, so one seed gives the same values on every backend. The seed
/// itself is drawn from the device: `device.seed(42)` before `attach` makes everything repeatable
/// on that backend, as elsewhere in Burn.
#[derive(Debug)]
pub struct Init {
    /// None for adapters whose values a checkpoint will replace.
    rng: Option<StdRng>,
}

impl Init {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Some(StdRng::seed_from_u64(seed)),
        }
    }

    /// Of parameters that take no memory until a checkpoint gives them their values.
    pub(crate) fn deferred() -> Self {
        Self { rng: None }
    }

    /// From the device's own random numbers.
    pub fn from_device(device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let drawn = Tensor::<1>::random([4], Distribution::Uniform(0.0, 65_536.0), &device);
        let seed = drawn
            .into_data()
            .iter::<f64>()
            .fold(0_u64, |seed, value| (seed << 16) | (value as u64 & 0xffff));
        Self::new(seed)
    }

    /// Uniform on `[-bound, bound)`.
    pub fn uniform<const D: usize>(
        &mut self,
        shape: [usize; D],
        bound: f64,
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.param(shape, like, |rng| (rng.random::<f64>() * 2.0 - 1.0) * bound)
    }

    /// Torch's default for linear layers, `kaiming_uniform_(a = sqrt(5))`: uniform with bound
    /// `1 / sqrt(fan_in)`.
    pub fn kaiming_uniform<const D: usize>(
        &mut self,
        shape: [usize; D],
        fan_in: usize,
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.uniform(shape, 1.0 / (fan_in as f64).sqrt(), like)
    }

    /// Normal with mean 0.
    pub fn normal<const D: usize>(
        &mut self,
        shape: [usize; D],
        std: f64,
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.param(shape, like, |rng| normal(rng) * std)
    }

    /// Zeros, or normal with mean 0: for a field `init_weights`, which tests turn off so that a fresh adapter changes
    /// outputs.
    pub fn zeros_or_normal<const D: usize>(
        &mut self,
        zeros: bool,
        shape: [usize; D],
        std: f64,
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        if zeros {
            self.zeros(shape, like)
        } else {
            self.normal(shape, std, like)
        }
    }

    /// Likewise zeros or [`kaiming_uniform`](Self::kaiming_uniform).
    pub fn zeros_or_kaiming_uniform<const D: usize>(
        &mut self,
        zeros: bool,
        shape: [usize; D],
        fan_in: usize,
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        if zeros {
            self.zeros(shape, like)
        } else {
            self.kaiming_uniform(shape, fan_in, like)
        }
    }

    /// Normal with mean 0, drawn again where it is more than `most` from 0.
    pub fn truncated_normal<const D: usize>(
        &mut self,
        shape: [usize; D],
        (std, most): (f64, f64),
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.param(shape, like, |rng| {
            loop {
                let value = normal(rng) * std;
                if value.abs() <= most {
                    return value;
                }
            }
        })
    }

    /// Zeros.
    pub fn zeros<const D: usize>(
        &mut self,
        shape: [usize; D],
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.param(shape, like, |_| 0.0)
    }

    /// Ones.
    pub fn ones<const D: usize>(
        &mut self,
        shape: [usize; D],
        like: (&Device, DType),
    ) -> Param<Tensor<D>> {
        self.param(shape, like, |_| 1.0)
    }

    /// `count` different indices below `below`, or with repetition where there are not enough.
    pub fn indices(&mut self, count: usize, below: usize) -> Vec<usize> {
        match &mut self.rng {
            None => Vec::new(),
            Some(rng) if count <= below => rand::seq::index::sample(rng, below, count).into_vec(),
            Some(rng) => (0..count).map(|_| rng.random_range(0..below)).collect(),
        }
    }

    /// Integers that are never trained: indices into the weight, say. `values` gives them, row by row, where the
    /// adapter is new; it is not called where a checkpoint will give them. `dtype` is their format in memory and in
    /// files: U8, I16, I32 or I64.
    ///
    /// # Panics
    ///
    /// If `values` gives another number of integers than `shape` has.
    pub fn integers<const D: usize>(
        &mut self,
        shape: [usize; D],
        (device, dtype): (&Device, DType),
        values: impl FnOnce(&mut Self) -> Vec<i64>,
    ) -> Param<Tensor<D, Int>> {
        if self.rng.is_none() {
            let zeros = move |device: &Device, _| Tensor::zeros(shape, (device, dtype));
            let shape = Shape::from(shape.to_vec());
            return Param::uninitialized(ParamId::new(), zeros, device.clone(), false, shape);
        }
        let data = TensorData::new(values(self), Shape::from(shape.to_vec()));
        Param::initialized(
            ParamId::new(),
            Tensor::from_data(data.convert_dtype(dtype), (device, dtype)),
        )
    }

    /// True with this probability; false where nothing is drawn.
    pub fn chance(&mut self, probability: f64) -> bool {
        let rng = self.rng.as_mut();
        rng.is_some_and(|rng| rng.random::<f64>() < probability)
    }

    fn param<const D: usize>(
        &mut self,
        shape: [usize; D],
        (device, dtype): (&Device, DType),
        mut value: impl FnMut(&mut StdRng) -> f64,
    ) -> Param<Tensor<D>> {
        // A quantized base has no float type of its own.
        let dtype = if dtype.is_float() { dtype } else { DType::F32 };
        let Some(rng) = &mut self.rng else {
            let zeros = move |device: &Device, require_grad| {
                Tensor::zeros(shape, (device, dtype)).set_require_grad(require_grad)
            };
            let shape = Shape::from(shape.to_vec());
            return Param::uninitialized(ParamId::new(), zeros, device.clone(), true, shape);
        };
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| value(rng) as f32).collect();
        let data = TensorData::new(values, Shape::from(shape.to_vec()));
        Param::from_tensor(Tensor::from_data(data, (device, dtype)))
    }
}

/// Standard normal: Box–Muller, one of the pair, as initial values are few.
fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    radius * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_values_on_every_backend() {
        let values: Vec<_> = crate::device::cpu_devices()
            .into_iter()
            .map(|(_, device)| {
                Init::new(7)
                    .normal([40, 50], 0.5, (&device, DType::F32))
                    .val()
                    .into_data()
            })
            .collect();
        for other in &values[1..] {
            values[0].assert_eq(other, true);
        }
        let data = values[0].iter::<f32>().collect::<Vec<_>>();
        let mean = data.iter().sum::<f32>() / 2000.0;
        let std = (data.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 2000.0).sqrt();
        assert!(
            mean.abs() < 0.05 && (std - 0.5).abs() < 0.03,
            "{mean} {std}"
        );
    }

    #[test]
    fn a_truncated_normal_has_no_tails() {
        for (_, device) in crate::device::cpu_devices() {
            let like = (&device, DType::F32);
            let drawn = Init::new(7)
                .truncated_normal([2000], (0.5, 1.0), like)
                .val();
            let drawn: Vec<f32> = drawn.into_data().iter::<f32>().collect();
            assert!(drawn.iter().all(|value| value.abs() <= 1.0));
            let std = (drawn.iter().map(|x| x * x).sum::<f32>() / 2000.0).sqrt();
            // 0.5 times that of a standard normal cut off at 2, which is 0.880.
            assert!((std - 0.44).abs() < 0.02, "{std}");
        }
    }

    #[test]
    fn the_device_seed_decides() {
        for (_, device) in crate::device::cpu_devices() {
            let draw = |seed| {
                device.seed(seed);
                Init::from_device(&device).indices(5, 1000)
            };
            assert_eq!(draw(1), draw(1));
            assert_ne!(draw(1), draw(2));
        }
    }
}
