//! FourierFT: the change of a weight has few frequencies, whose coefficients are trained.

use std::collections::BTreeSet;
use std::f64::consts::TAU;

use burn::tensor::IndexingUpdateOp;
use peft_core::method::prelude::*;

use crate::math::torch_random::TorchGenerator;

/// Which frequencies a change has, and the waves that they stand for. The same for all layers of one shape.
///
/// The real part of a two-dimensional wave is `cos α·cos β − sin α·sin β`, with α of the input and β of the
/// output; and a frequency above half of the width is the one as far below it, with the sine turned round.
/// So few waves of one dimension serve all frequencies: at most as many as there are features, plus two.
#[derive(Module, Debug)]
struct Frequencies {
    /// Cosine and sine, in turns, of every frequency in use over the inputs: `[in, p]`.
    of_inputs: Tensor<2>,
    /// The same over the outputs: `[q, out]`.
    of_outputs: Tensor<2>,
    /// Where in `[p, q]` the coefficients belong: n times with the cosines, n times with the sines.
    places: Tensor<1, Int>,
    /// Their signs there, `[2n]`.
    signs: Tensor<1>,
}

impl Frequencies {
    /// `count` of a layer's frequencies, as torch draws them: each is a place in torch's weight,
    /// `[out, in]`.
    fn new(seed: u64, count: usize, [d_in, out]: [usize; 2], device: &Device) -> Self {
        let drawn = TorchGenerator::new(seed).randperm(d_in * out, count);
        let inputs = Waves::new(drawn.iter().map(|place| place % d_in), d_in);
        let outputs = Waves::new(drawn.iter().map(|place| place / d_in), out);
        let columns = 2 * outputs.used.len();
        let (mut places, mut signs) = (Vec::new(), Vec::new());
        for sine in [0, 1] {
            for ((row, up), (column, down)) in inputs.of.iter().zip(&outputs.of) {
                places.push(((row + sine) * columns + column + sine) as i64);
                signs.push(if sine == 0 { 1.0 } else { -up * down });
            }
        }
        Self {
            of_inputs: inputs.values(device),
            of_outputs: outputs.values(device).transpose(),
            places: Tensor::from_data(TensorData::new(places, [2 * count]), device),
            signs: Tensor::from_data(TensorData::new(signs, [2 * count]), device),
        }
    }
}

/// The waves of one side.
struct Waves {
    /// Frequencies in use, at most half of the width.
    used: Vec<usize>,
    /// For each coefficient: the column of its cosine, which its sine follows, and the sign of the sine.
    of: Vec<(usize, f32)>,
    width: usize,
}

impl Waves {
    fn new(frequencies: impl Iterator<Item = usize>, width: usize) -> Self {
        let folded: Vec<(usize, f32)> = frequencies
            .map(|frequency| match width - frequency {
                other if other < frequency => (other, -1.0),
                _ => (frequency, 1.0),
            })
            .collect();
        let used: BTreeSet<usize> = folded.iter().map(|(frequency, _)| *frequency).collect();
        let used: Vec<usize> = used.into_iter().collect();
        let column = |frequency: &usize| 2 * used.partition_point(|other| other < frequency);
        let of = folded
            .iter()
            .map(|(at, sign)| (column(at), *sign))
            .collect();
        Self { used, of, width }
    }

    /// `[width, 2 · used]`.
    fn values(&self, device: &Device) -> Tensor<2> {
        let mut values = Vec::with_capacity(2 * self.width * self.used.len());
        for feature in 0..self.width {
            for frequency in &self.used {
                let turns = (feature * frequency % self.width) as f64 / self.width as f64;
                let (sine, cosine) = (TAU * turns).sin_cos();
                values.extend([cosine as f32, sine as f32]);
            }
        }
        let shape = [self.width, 2 * self.used.len()];
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// `W' = W + s·Re(ifft2(S))` for a spectrum S that is zero but at n random places.
///
/// As a product, `s·A (C B)`: A and B are fixed waves over inputs and outputs, C holds the coefficients.
/// With few frequencies that is low rank.
#[derive(Module, Adapter, Debug)]
pub struct FourierFtLinear {
    /// Coefficients, `[n]`.
    #[tensor("fourierft_spectrum")]
    pub spectrum: Param<Tensor<1>>,
    #[no_tensor]
    frequencies: Frequencies,
    /// s: scaling / (in · out).
    pub scale: f64,
}

impl FourierFtLinear {
    /// The change as factors, as many as there are waves over the inputs. In `f32` at least, as upstream transforms:
    /// the waves cancel each other, so what a number of 16 bits loses of each is much of their sum.
    fn factors(&self) -> LowRank {
        let spectrum = self.spectrum.val();
        let dtype = match spectrum.dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let (spectrum, device) = (spectrum.cast(dtype), self.spectrum.device());
        let Frequencies {
            of_inputs,
            of_outputs,
            places,
            signs,
        } = self.frequencies.clone();
        let ([_, rows], [columns, _]) = (of_inputs.dims(), of_outputs.dims());
        let values = Tensor::cat(vec![spectrum.clone(), spectrum], 0) * signs.cast(dtype);
        let coefficients = Tensor::<1>::zeros([rows * columns], (&device, dtype))
            .select_assign(0, places, values, IndexingUpdateOp::Add)
            .reshape([rows, columns]);
        LowRank {
            down: of_inputs.cast(dtype),
            up: coefficients.matmul(of_outputs.cast(dtype)),
            scale: self.scale,
            dropout: 0.0,
        }
    }

    /// The change of the weight, `[in, out]`, in `f32` where the weight has 16 bits.
    pub fn delta(&self) -> Tensor<2> {
        let LowRank {
            down, up, scale, ..
        } = self.factors();
        down.matmul(up * scale)
    }
}

impl WeightAdapter for FourierFtLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, dtype) = (weight.shape(), weight.dtype());
        weight + self.delta().cast(dtype).reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let [d_in, rank] = self.frequencies.of_inputs.dims();
        let [_, out] = self.frequencies.of_outputs.dims();
        (rank * (d_in + out) < d_in * out).then(|| self.factors())
    }
}

/// FourierFT's configuration. Fields are called and behave as in Hugging Face PEFT's `FourierFTConfig`.
#[method_config(
    FOURIERFT, peft_type = "FOURIERFT", title = "FourierFT", family = Reparameterization, mergeable, new(n_frequency),
    reference = "Gao et al. 2024, Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, section 3",
    unsupported("fan_in_fan_out")
)]
pub struct FourierFtConfig {
    /// Frequencies of a layer's change, n: at most the layer's inputs times its outputs.
    #[field(default = 1000, at_least = 1)]
    pub n_frequency: usize,
    /// Other numbers of frequencies for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub n_frequency_pattern: ByLayer<usize>,
    /// What the change is multiplied by.
    #[field(default = 150.0, finite)]
    pub scaling: f64,
    /// Seed of the frequencies; they are not in the file. Layers of one shape have the same.
    #[field(default = 777, any)]
    pub random_loc_seed: i64,
    /// Whether a fresh adapter changes nothing; else its coefficients are standard normal.
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl LinearMethod for FourierFtConfig {
    type State = FourierFtLinear;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<FourierFtLinear> {
        let (name, d_in, out, like) = (target.name(), target.d_in, target.d_out, target.like());
        // A file's own number counts: it bounds what is drawn, and upstream matches patterns otherwise.
        let stored = plan.stored_shape(target.layer, "fourierft_spectrum");
        let count = match stored.and_then(|shape| shape.first()) {
            Some(count) => *count,
            None => self.n_frequency_pattern.of(name, self.n_frequency)?,
        };
        let most = d_in * out;
        if count > most {
            let (field, expected) = (
                "n_frequency",
                format!("`{name}` is {d_in} × {out}, so at most {most}"),
            );
            return Err(Error::config(FOURIERFT.title, field, count, expected));
        }
        let (seed, device) = (self.random_loc_seed as u64, like.0);
        let frequencies = plan.in_common(([count, d_in, out], device.clone()), || {
            Frequencies::new(seed, count, [d_in, out], device)
        });
        let spectrum = plan
            .init()
            .zeros_or_normal(self.init_weights, [count], 1.0, like);
        Ok(FourierFtLinear {
            spectrum,
            frequencies,
            scale: self.scaling / (d_in * out) as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;
    use peft_core::device::cpu_devices;

    /// The definition: `Re(ifft2(S))`, transposed, times `in · out`.
    fn transform(spectrum: &[f32], seed: u64, [d_in, out]: [usize; 2]) -> Vec<f32> {
        let places = TorchGenerator::new(seed).randperm(d_in * out, spectrum.len());
        let mut change = Vec::new();
        for input in 0..d_in {
            for output in 0..out {
                let waves = places.iter().zip(spectrum).map(|(place, coefficient)| {
                    let turns = (place / d_in * output) as f64 / out as f64
                        + (place % d_in * input) as f64 / d_in as f64;
                    f64::from(*coefficient) * (TAU * turns).cos()
                });
                change.push(waves.sum::<f64>() as f32);
            }
        }
        change
    }

    #[test]
    fn the_change_is_the_inverse_transform_of_the_spectrum() {
        for (_, device) in cpu_devices() {
            // Even and odd widths, few frequencies and all of them.
            for (count, [d_in, out]) in [(3, [16, 12]), (40, [9, 7]), (63, [9, 7]), (48, [6, 8])] {
                let spectrum: Vec<f32> = (0..count).map(|at| (at as f32 * 1.3).sin()).collect();
                let data = TensorData::new(spectrum.clone(), [count]);
                let adapter = FourierFtLinear {
                    spectrum: Param::from_tensor(Tensor::from_data(data, &device)),
                    frequencies: Frequencies::new(777, count, [d_in, out], &device),
                    scale: 1.0,
                };
                assert_eq!(adapter.low_rank().is_some(), count == 3);
                let expected = transform(&spectrum, 777, [d_in, out]);
                adapter.delta().into_data().assert_approx_eq(
                    &TensorData::new(expected, [d_in, out]),
                    Tolerance::<f32>::relative(1e-4).set_absolute(1e-4),
                );
            }
        }
    }
}
