//! FourierFT: the change of a weight has few frequencies, whose coefficients are trained.

use std::collections::BTreeSet;

use peft_core::method::prelude::*;
use peft_core::ops::{Sparse, Waves, add_sparse, add_waves};

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
    /// The same, as what a fast transform takes.
    #[module(skip)]
    waves: Waves,
    /// Where in `[p, q]` the coefficients belong, their rows: n times with the cosines, n times with the sines.
    rows: Tensor<1, Int>,
    /// Their columns.
    columns: Tensor<1, Int>,
    /// Their signs there, `[2n]`.
    signs: Tensor<1>,
}

impl Frequencies {
    /// `count` of a layer's frequencies, as torch draws them: each is a place in torch's weight,
    /// `[out, in]`.
    fn new(seed: u64, count: usize, [d_in, out]: [usize; 2], device: &Device) -> Self {
        let drawn = TorchGenerator::new(seed).randperm(d_in * out, count);
        let inputs = Side::new(drawn.iter().map(|place| place % d_in), d_in);
        let outputs = Side::new(drawn.iter().map(|place| place / d_in), out);
        let (mut rows, mut columns, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        for sine in [0, 1] {
            for ((row, up), (column, down)) in inputs.of.iter().zip(&outputs.of) {
                rows.push((row + sine) as i64);
                columns.push((column + sine) as i64);
                signs.push(if sine == 0 { 1.0 } else { -up * down });
            }
        }
        let waves = inputs.waves().values((device, DType::F32));
        let of_outputs = outputs.waves();
        let indices = |values| Tensor::from_data(TensorData::new(values, [2 * count]), device);
        Self {
            of_inputs: Tensor::from_data(waves.transpose().into_data(), device),
            of_outputs: of_outputs.values((device, DType::F32)),
            waves: of_outputs,
            rows: indices(rows),
            columns: indices(columns),
            signs: Tensor::from_data(TensorData::new(signs, [2 * count]), device),
        }
    }
}

/// The waves of one side.
struct Side {
    /// Frequencies in use, at most half of the width.
    used: Vec<usize>,
    /// For each coefficient: the column of its cosine, which its sine follows, and the sign of the sine.
    of: Vec<(usize, f32)>,
    width: usize,
}

impl Side {
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

    fn waves(&self) -> Waves {
        Waves::new(&self.used, self.width)
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
    /// C, `[p, q]`. In `f32` at least, as upstream transforms: the waves cancel each other, so what a number of 16 bits
    /// loses of each is much of their sum.
    fn coefficients(&self) -> Sparse {
        let spectrum = self.spectrum.val();
        let dtype = match spectrum.dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let spectrum = spectrum.cast(dtype);
        let Frequencies {
            of_inputs,
            of_outputs,
            rows,
            columns,
            signs,
            ..
        } = self.frequencies.clone();
        Sparse {
            values: Tensor::cat(vec![spectrum.clone(), spectrum], 0) * signs.cast(dtype),
            inputs: rows,
            outputs: columns,
            shape: [of_inputs.dims()[1], of_outputs.dims()[0]],
        }
    }

    /// The change as factors, as many as there are waves over the inputs.
    fn factors(&self) -> LowRank {
        let coefficients = self.coefficients().dense();
        let dtype = coefficients.dtype();
        let Frequencies {
            of_inputs,
            of_outputs,
            ..
        } = self.frequencies.clone();
        let up = coefficients.matmul(of_outputs.cast(dtype));
        LowRank::new(of_inputs.cast(dtype), up, self.scale)
    }

    /// `weight` and the change, `[in, out]`, in `f32` at least. The waves over the inputs are multiplied with the few
    /// coefficients, and transformed over the outputs.
    fn added(&self, weight: Tensor<2>) -> Tensor<2> {
        let coefficients = self.coefficients();
        let dtype = coefficients.values.dtype();
        let of_inputs = self.frequencies.of_inputs.clone().cast(dtype);
        let shape = [of_inputs.dims()[0], coefficients.shape[1]];
        let none = Tensor::zeros(shape, (&of_inputs.device(), dtype));
        let coefficients = add_sparse(none, of_inputs, coefficients);
        add_waves(weight, coefficients, &self.frequencies.waves, self.scale)
    }

    /// The change of the weight, `[in, out]`, in `f32` where the weight has 16 bits.
    pub fn delta(&self) -> Tensor<2> {
        let [d_in, _] = self.frequencies.of_inputs.dims();
        let [_, out] = self.frequencies.of_outputs.dims();
        let dtype = match self.spectrum.val().dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        self.added(Tensor::zeros([d_in, out], (&self.spectrum.device(), dtype)))
    }
}

impl WeightAdapter for FourierFtLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, dtype) = (weight.shape(), weight.dtype());
        if matches!(dtype, DType::F16 | DType::BF16) {
            return weight + self.delta().cast(dtype).reshape(shape);
        }
        from_matrix(self.added(matrix_of(weight)), shape)
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
    use std::f64::consts::TAU;

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
