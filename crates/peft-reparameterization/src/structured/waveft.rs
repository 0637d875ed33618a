//! WaveFT: the change of a weight has few wavelet coefficients, which are trained.

use burn::tensor::IndexingUpdateOp;
use burn::tensor::module::conv_transpose2d;
use burn::tensor::ops::ConvTransposeOptions;
use peft_core::method::prelude::*;

use crate::math::torch_random::TorchGenerator;
use crate::math::wavelets::{high_pass, low_pass, names};

/// One axis of a weight, padded so that its inverse transform is as wide as the weight: the first half of the padded
/// numbers are averages, the second half differences.
#[derive(Clone, Copy)]
struct Axis {
    width: usize,
    /// Half of the padded width.
    half: usize,
    /// Where the weight's first number is among the padded ones.
    offset: usize,
    /// How many numbers of the inverse transform are cut off in front.
    cut: usize,
}

impl Axis {
    /// For filters of this length.
    fn new(width: usize, length: usize) -> Self {
        let cut = length - 2;
        let padded = (width + cut).next_multiple_of(2);
        Self {
            width,
            half: padded / 2,
            offset: (padded - width) / 2,
            cut,
        }
    }

    /// Where a number of the weight's width lies: in its half, and whether that is the second one.
    fn locate(self, at: usize) -> (usize, bool) {
        let padded = at + self.offset;
        (padded % self.half, padded >= self.half)
    }
}

/// Where coefficients are, `[input, output]`, as torch draws them: each is a place in torch's weight, `[out, in]`.
fn drawn(seed: u64, count: usize, [d_in, out]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    let drawn = TorchGenerator::new(seed).randperm(d_in * out, count);
    drawn
        .into_iter()
        .map(move |place| [place % d_in, place / d_in])
}

/// How coefficients become the change of a weight. The same for all layers of one shape.
#[derive(Module, Debug)]
enum Synthesis {
    /// By what each adds to single elements.
    Elements(Elements),
    /// By the transform of all coefficients, most of which are zero.
    Transform(Transform),
}

/// What coefficients add to single elements of the weight.
#[derive(Module, Debug)]
struct Elements {
    /// Which coefficient, `[m]`.
    coefficient: Tensor<1, Int>,
    /// Which element of the weight, `[m]`.
    element: Tensor<1, Int>,
    /// With which factor, `[m]`.
    factor: Tensor<1>,
}

/// A transposed convolution: its four channels are for averages and differences over the inputs and over the outputs.
#[derive(Module, Debug)]
struct Transform {
    /// Where in `[4, in / 2, out / 2]`, padded, the coefficients belong, `[n]`.
    place: Tensor<1, Int>,
    /// `[4, 1, length, length]`.
    kernel: Tensor<4>,
    /// Padded inputs and outputs, halved.
    halves: [usize; 2],
    /// How many rows and columns are cut off in front.
    cut: usize,
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

impl Synthesis {
    /// Of `count` coefficients; without a wavelet they are elements of the change themselves.
    fn new(
        seed: u64,
        count: usize,
        shape: [usize; 2],
        wavelet: Option<&[f64]>,
        device: &Device,
    ) -> Self {
        let Some(low) = wavelet else {
            let elements = drawn(seed, count, shape).map(|[row, column]| row * shape[1] + column);
            return Self::Elements(Elements {
                coefficient: indices((0..count as i64).collect(), device),
                element: indices(elements.map(|element| element as i64).collect(), device),
                factor: Tensor::ones([count], device),
            });
        };
        // A coefficient reaches as many elements as the filters have numbers, over inputs and over outputs.
        let reached = count.saturating_mul(low.len() * low.len());
        let axes = shape.map(|width| Axis::new(width, low.len()));
        let filters = [low.to_vec(), high_pass(low)];
        let coefficients = drawn(seed, count, shape).map(|at| {
            let [(row, far), (column, right)] = [axes[0].locate(at[0]), axes[1].locate(at[1])];
            // Upstream's filters over one axis go by the half over the other one.
            ([row, column], [usize::from(right), usize::from(far)])
        });
        if reached <= shape[0] * shape[1] {
            Self::Elements(Elements::new(coefficients, axes, &filters, device))
        } else {
            Self::Transform(Transform::new(coefficients, axes, &filters, device))
        }
    }

    /// The change of a weight of this shape.
    fn change(&self, coefficients: Tensor<1>, [d_in, out]: [usize; 2]) -> Tensor<2> {
        match self {
            Self::Elements(Elements {
                coefficient,
                element,
                factor,
            }) => {
                let parts = coefficients.select(0, coefficient.clone());
                let parts = parts * factor.clone();
                Tensor::<1>::zeros([d_in * out], &parts.device())
                    .select_assign(0, element.clone(), parts, IndexingUpdateOp::Add)
                    .reshape([d_in, out])
            }
            Self::Transform(Transform {
                place,
                kernel,
                halves: [rows, columns],
                cut,
            }) => {
                let all = Tensor::<1>::zeros([4 * rows * columns], &coefficients.device())
                    .select_assign(0, place.clone(), coefficients, IndexingUpdateOp::Add)
                    .reshape([1, 4, *rows, *columns]);
                let options = ConvTransposeOptions::new([2, 2], [0, 0], [0, 0], [1, 1], 1);
                let whole = conv_transpose2d(all, kernel.clone(), None, options);
                let [_, _, height, width] = whole.dims();
                whole
                    .reshape([height, width])
                    .slice([*cut..cut + d_in, *cut..cut + out])
            }
        }
    }
}

impl Elements {
    /// Of coefficients at these positions, with these filters over inputs and outputs.
    fn new(
        coefficients: impl Iterator<Item = ([usize; 2], [usize; 2])>,
        axes: [Axis; 2],
        filters: &[Vec<f64>; 2],
        device: &Device,
    ) -> Self {
        let [inputs, outputs] = axes;
        let (mut of, mut element, mut factor) = (Vec::new(), Vec::new(), Vec::new());
        for (number, ([row, column], which)) in coefficients.enumerate() {
            let [over_inputs, over_outputs] = which.map(|which| &filters[which]);
            for (down, a) in over_inputs.iter().enumerate() {
                let Some(to) = (2 * row + down).checked_sub(inputs.cut) else {
                    continue;
                };
                for (along, b) in over_outputs.iter().enumerate() {
                    let Some(out) = (2 * column + along).checked_sub(outputs.cut) else {
                        continue;
                    };
                    if to < inputs.width && out < outputs.width {
                        of.push(number as i64);
                        element.push((to * outputs.width + out) as i64);
                        factor.push((a * b) as f32);
                    }
                }
            }
        }
        Self {
            coefficient: indices(of, device),
            element: indices(element, device),
            factor: Tensor::from_data(factor.as_slice(), device),
        }
    }
}

impl Transform {
    fn new(
        coefficients: impl Iterator<Item = ([usize; 2], [usize; 2])>,
        axes: [Axis; 2],
        filters: &[Vec<f64>; 2],
        device: &Device,
    ) -> Self {
        let halves = axes.map(|axis| axis.half);
        let places = coefficients.map(|([row, column], [over_inputs, over_outputs])| {
            (((2 * over_inputs + over_outputs) * halves[0] + row) * halves[1] + column) as i64
        });
        let length = filters[0].len();
        let mut kernel = Vec::with_capacity(4 * length * length);
        for over_inputs in filters {
            for over_outputs in filters {
                for a in over_inputs {
                    kernel.extend(over_outputs.iter().map(|b| (a * b) as f32));
                }
            }
        }
        let kernel = TensorData::new(kernel, [4, 1, length, length]);
        Self {
            place: indices(places.collect(), device),
            kernel: Tensor::from_data(kernel, device),
            halves,
            cut: axes[0].cut,
        }
    }
}

/// `W' = W + s·T(C)` for coefficients C that are zero but at n random places, and the inverse wavelet transform T.
#[derive(Module, Debug)]
pub struct WaveFtLinear {
    /// Coefficients, `[n]`.
    pub spectrum: Param<Tensor<1>>,
    synthesis: Synthesis,
    /// s.
    pub scaling: f64,
    /// Whether there is a transform; if not, each coefficient changes one element of the weight.
    pub use_idwt: bool,
    /// The weight's inputs and outputs.
    pub shape: [usize; 2],
}

impl WaveFtLinear {
    /// The change of the weight, `[in, out]`, in `f32` where the weight has 16 bits: many coefficients add up in one
    /// element.
    pub fn delta(&self) -> Tensor<2> {
        let spectrum = self.spectrum.val().cast(DType::F32);
        self.synthesis.change(spectrum * self.scaling, self.shape)
    }
}

impl Adapter for WaveFtLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let spectrum = CheckpointKey::layer("spectrum", "waveft_spectrum");
        vec![if self.use_idwt {
            spectrum
        } else {
            spectrum.sparse()
        }]
    }
}

impl WeightAdapter for WaveFtLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, dtype) = (weight.shape(), weight.dtype());
        weight + self.delta().cast(dtype).reshape(shape)
    }
}

/// WaveFT's configuration. Fields are called and behave as in Hugging Face PEFT's `WaveFTConfig`.
#[method_config(
    WAVEFT, peft_type = "WAVEFT", title = "WaveFT", family = Reparameterization, identity_at_init, mergeable, new(n_frequency),
    reference = "Bilican et al. 2025, Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets, section 3",
    unsupported("fan_in_fan_out")
)]
pub struct WaveFtConfig {
    /// Coefficients of a layer's change, n: at most the layer's inputs times its outputs.
    #[field(default = 2592, at_least = 1)]
    pub n_frequency: usize,
    /// Other numbers of coefficients for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub n_frequency_pattern: ByLayer<usize>,
    /// Whether the layers share `n_frequency` times their number by the size of their weights, instead of having as many
    /// each. Patterns do not count then.
    pub proportional_parameters: bool,
    /// What the change is multiplied by.
    #[field(default = 25.0, finite)]
    pub scaling: f64,
    /// The wavelet: `db1` (Haar's) to `db10`, `sym2` to `sym10`, `coif1` to `coif3`.
    #[field(default = "db1".into())]
    pub wavelet_family: String,
    /// Whether coefficients are those of wavelets; else they are elements of the change themselves.
    #[field(default = true)]
    pub use_idwt: bool,
    /// Seed of the places; they are not in the file. Layers of one shape have the same.
    #[field(default = 777, any)]
    pub random_loc_seed: i64,
    /// Whether a fresh adapter changes nothing; else its coefficients are normal with standard deviation 0.01.
    #[field(default = true)]
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl WaveFtConfig {
    /// The low-pass filter; none without a transform.
    fn filter(&self) -> Option<&'static [f64]> {
        low_pass(&self.wavelet_family).filter(|_| self.use_idwt)
    }

    /// How many coefficients the target has, of all of `targets`.
    fn count(
        &self,
        target: &TargetLayer<'_>,
        targets: &[TargetLayer<'_>],
        plan: &Plan,
    ) -> Result<usize> {
        // A file's own number counts: it bounds what is drawn, and upstream matches patterns otherwise.
        let stored = plan.stored_shape(target.layer, "waveft_spectrum");
        let size = target.d_in * target.d_out;
        let count = match stored.and_then(|shape| shape.first()) {
            Some(count) => *count,
            None if self.proportional_parameters => {
                let sizes = targets.iter().map(|target| target.d_in * target.d_out);
                let share = size as f64 / sizes.sum::<usize>() as f64;
                let all = self.n_frequency as f64 * targets.len() as f64;
                ((share * all).round_ties_even() as usize).max(1)
            }
            None => self
                .n_frequency_pattern
                .of(target.name(), self.n_frequency)?,
        };
        if count > size {
            let (name, d_in, out) = (target.name(), target.d_in, target.d_out);
            let expected = format!("`{name}` is {d_in} × {out}, so at most {size}");
            return Err(Error::config(WAVEFT.title, "n_frequency", count, expected));
        }
        Ok(count)
    }
}

impl Method for WaveFtConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if self.use_idwt && self.filter().is_none() {
            let known: Vec<&str> = names().collect();
            let expected = format!("one of {}", known.join(", "));
            let (field, value) = ("wavelet_family", &self.wavelet_family);
            return Err(Error::config(WAVEFT.title, field, value, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let (seed, filter) = (self.random_loc_seed.cast_unsigned(), self.filter());
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let count = self.count(target, &targets, plan)?;
            let (shape, like) = ([target.d_in, target.d_out], target.like());
            let synthesis = plan.in_common((count, shape, like.0.clone()), || {
                Synthesis::new(seed, count, shape, filter, like.0)
            });
            let spectrum = plan
                .init()
                .zeros_or_normal(self.init_weights, [count], 0.01, like);
            Ok(WaveFtLinear {
                spectrum,
                synthesis,
                scaling: self.scaling,
                use_idwt: self.use_idwt,
                shape,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;
    use peft_core::device::cpu_devices;

    /// One axis by its definition: averages and differences spread to every second place, each through its filter, and
    /// the middle of the sum.
    fn inverse(padded: &[f64], filters: [&[f64]; 2], width: usize) -> Vec<f64> {
        let (half, length) = (padded.len() / 2, filters[0].len());
        let mut whole = vec![0.0; padded.len() + length];
        for (filter, numbers) in filters.iter().zip(padded.chunks(half)) {
            for (at, number) in numbers.iter().enumerate() {
                for (to, factor) in filter.iter().enumerate() {
                    whole[2 * at + to] += number * factor;
                }
            }
        }
        whole[length - 2..length - 2 + width].to_vec()
    }

    /// The whole change by its definition, `[in, out]`.
    fn definition(spectrum: &[f32], name: &str, [d_in, out]: [usize; 2]) -> Vec<f32> {
        let low = low_pass(name).unwrap();
        let high = high_pass(low);
        let padded = |width: usize| (width + low.len() - 2).next_multiple_of(2);
        let (rows, columns) = (padded(d_in), padded(out));
        let mut matrix = vec![vec![0.0; columns]; rows];
        for ([row, column], value) in drawn(777, spectrum.len(), [d_in, out]).zip(spectrum) {
            let (row, column) = (row + (rows - d_in) / 2, column + (columns - out) / 2);
            // Differences over the inputs and averages over the outputs lie where one would look for the opposite.
            let (far, right) = (row >= rows / 2, column >= columns / 2);
            let row = row % (rows / 2) + if right { rows / 2 } else { 0 };
            let column = column % (columns / 2) + if far { columns / 2 } else { 0 };
            matrix[row][column] = f64::from(*value);
        }
        let filters = [low, &high[..]];
        let wide: Vec<Vec<f64>> = matrix
            .iter()
            .map(|row| inverse(row, filters, out))
            .collect();
        let columns: Vec<Vec<f64>> = (0..out)
            .map(|at| {
                let column: Vec<f64> = wide.iter().map(|row| row[at]).collect();
                inverse(&column, filters, d_in)
            })
            .collect();
        let element = |at: usize| columns[at % out][at / out] as f32;
        (0..d_in * out).map(element).collect()
    }

    fn coefficients(count: usize) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * 1.3).sin()).collect()
    }

    #[test]
    fn the_change_is_the_inverse_transform_of_the_coefficients() {
        for (_, device) in cpu_devices() {
            // Few coefficients and many, even widths and odd ones.
            for (name, count, shape, by_elements) in [
                ("db1", 5, [8, 6], true),
                ("db1", 35, [7, 5], false),
                ("sym3", 4, [12, 16], true),
                ("sym3", 60, [9, 10], false),
                ("coif2", 30, [11, 8], false),
                ("db4", 2, [16, 13], true),
            ] {
                let low = low_pass(name);
                let synthesis = Synthesis::new(777, count, shape, low, &device);
                let elements = matches!(synthesis, Synthesis::Elements(_));
                assert_eq!(elements, by_elements, "{name}");
                let spectrum = coefficients(count);
                let tensor = Tensor::from_data(spectrum.as_slice(), &device);
                let expected = TensorData::new(definition(&spectrum, name, shape), shape);
                synthesis
                    .change(tensor, shape)
                    .into_data()
                    .assert_approx_eq(
                        &expected,
                        Tolerance::<f32>::relative(1e-4).set_absolute(1e-5),
                    );
            }
        }
    }

    /// Haar's wavelet needs no padding at even widths, so that lengths stay.
    #[test]
    fn the_transform_is_orthonormal() {
        for (_, device) in cpu_devices() {
            let (count, shape) = (48, [6, 8]);
            let synthesis = Synthesis::new(3, count, shape, low_pass("db1"), &device);
            let spectrum = coefficients(count);
            let length: f32 = spectrum.iter().map(|x| x * x).sum();
            let tensor = Tensor::from_data(spectrum.as_slice(), &device);
            let change = synthesis.change(tensor, shape);
            let found = (change.clone() * change).sum().into_scalar::<f32>();
            assert!((found / length - 1.0).abs() < 1e-5, "{found} {length}");
        }
    }

    #[test]
    fn without_a_transform_coefficients_are_elements() {
        for (_, device) in cpu_devices() {
            let shape = [5, 4];
            let synthesis = Synthesis::new(777, 6, shape, None, &device);
            let spectrum = coefficients(6);
            let tensor = Tensor::from_data(spectrum.as_slice(), &device);
            let found: Vec<f32> = synthesis.change(tensor, shape).into_data().iter().collect();
            let mut expected = vec![0.0; 20];
            for ([row, column], value) in drawn(777, 6, shape).zip(&spectrum) {
                expected[row * 4 + column] = *value;
            }
            assert_eq!(found, expected);
        }
    }
}
