//! C3A: the change of a weight is a matrix of circulant blocks.

use peft_core::method::prelude::*;
use peft_core::ops;

use crate::init_name::InitWeights;

/// `W' = W + C / in`: every block of C, of b inputs and b outputs, is circulant.
///
/// With w the kernel of a block, its output t gets `Σ_j x_j·w_((j − t) mod b) / in`.
#[derive(Module, Adapter, Debug)]
pub struct C3aLinear {
    /// Kernels, `[out / b, in / b, b]`.
    #[tensor("c3a_kernel")]
    pub kernel: Param<Tensor<3>>,
    /// Whether the input's gradient is upstream's ([`C3aConfig::upstream_gradient`]).
    pub upstream_gradient: bool,
}

impl C3aLinear {
    /// What upstream multiplies the output's gradient with in place of the change, transposed: row s of a
    /// block has w_((j + s) mod b) in column j.
    fn misread(&self) -> Tensor<2> {
        let [outs, ins, size] = self.kernel.dims();
        let wide = size + 1;
        let kernels: Tensor<2> = self.kernel.val().detach().reshape([outs * ins, size]);
        let rows: Tensor<3> = kernels
            .repeat_dim(1, wide)
            .reshape([outs * ins, size, wide]);
        let blocks = rows.narrow(2, 0, size).reshape([outs, ins, size, size]);
        let matrix = blocks.permute([1, 2, 0, 3]);
        matrix.reshape([ins * size, outs * size]) / (ins * size) as f64
    }

    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        let [outs, ins, size] = self.kernel.dims();
        let wide = 2 * size - 1;
        // Rows of length 2b − 1, cut from a repeated kernel, begin one place further left each time: row t
        // has w_((j − t) mod b) in column j.
        let kernels: Tensor<2> = self.kernel.val().reshape([outs * ins, size]);
        let rows: Tensor<3> = kernels
            .repeat_dim(1, wide)
            .reshape([outs * ins, size, wide]);
        let blocks = rows.narrow(2, 0, size).reshape([outs, ins, size, size]);
        let delta = blocks.permute([1, 3, 0, 2]);
        delta.reshape([ins * size, outs * size]) / (ins * size) as f64
    }
}

impl WeightAdapter for C3aLinear {
    // The layer composes, too: without a fast Fourier transform, convolving activations costs no less than
    // a dense matrix does.
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.delta().reshape(shape)
    }

    fn needs_weight(&self) -> bool {
        !self.upstream_gradient
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        if !self.upstream_gradient {
            let weight = self.compose(inner.weight());
            return ops::linear(input, weight, inner.bias(), None);
        }
        let value = input.clone().detach();
        // Nothing, but for its gradient.
        let nothing = input.clone() - value.clone();
        inner.forward(input) + value.matmul(self.delta()) + nothing.matmul(self.misread())
    }
}

const XAVIER: &str = "xavier_uniform";
const KAIMING: &str = "kaiming_uniform";
const GAUSSIAN: &str = "gaussian";

/// C3A's configuration. Fields are called and behave as in Hugging Face PEFT's `C3AConfig`.
#[method_config(
    C3A, peft_type = "C3A", title = "C3A", family = Reparameterization, mergeable, new(block_size),
    reference = "Chen et al. 2024, Parameter-Efficient Fine-Tuning via Circular Convolution, section 3"
)]
pub struct C3aConfig {
    /// Features of a block, b: a divisor of the layer's inputs and outputs. The larger, the fewer parameters.
    #[field(default = 256, at_least = 1)]
    pub block_size: usize,
    /// Other sizes for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub block_size_pattern: ByLayer<usize>,
    /// Initial values. True: zeros, so that a fresh adapter changes nothing. False: as `"xavier_uniform"`, uniform with bound
    /// sqrt(6 / (in + out)). `"kaiming_uniform"`: uniform with bound sqrt(1 / in). `"gaussian"`: normal with standard
    /// deviation 1.
    #[field(default = XAVIER.into())]
    pub init_weights: InitWeights,
    pub bias: Bias,
    /// Computes the gradient of the layers' inputs as Hugging Face PEFT 0.21 does, to repeat its runs. It is not the
    /// gradient of what the layer computes: kernels are run through in the other direction. Not a field of upstream's.
    #[field(skip_false)]
    pub upstream_gradient: bool,
    pub targets: Targets,
    pub common: Common,
}

impl LinearMethod for C3aConfig {
    type State = C3aLinear;

    fn check(&self) -> Result<()> {
        self.init_weights.check(&C3A, &[XAVIER, KAIMING, GAUSSIAN])
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<C3aLinear> {
        let (name, d_in, out) = (target.name(), target.d_in, target.d_out);
        // A file's own size counts: upstream matches patterns otherwise.
        let stored = plan.stored_shape(target.layer, "c3a_kernel");
        let size = match stored.and_then(|shape| shape.get(2)) {
            Some(size) => (*size).max(1),
            None => self.block_size_pattern.of(name, self.block_size)?,
        };
        if !(d_in.is_multiple_of(size) && out.is_multiple_of(size)) {
            let expected = format!("`{name}` is {d_in} × {out}, so a divisor of both");
            return Err(Error::config(C3A.title, "block_size", size, expected));
        }
        let (shape, like) = ([out / size, d_in / size, size], target.like());
        let init = plan.init();
        let kernel = match &self.init_weights {
            InitWeights::Default(true) => init.zeros(shape, like),
            InitWeights::Named(name) if name == GAUSSIAN => init.normal(shape, 1.0, like),
            InitWeights::Named(name) if name == KAIMING => init.kaiming_uniform(shape, d_in, like),
            _ => init.uniform(shape, (6.0 / (d_in + out) as f64).sqrt(), like),
        };
        Ok(C3aLinear {
            kernel,
            upstream_gradient: self.upstream_gradient,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};
    use peft_core::device::cpu_devices;

    #[test]
    fn blocks_are_circulant() {
        for (_, device) in cpu_devices() {
            // One block row of outputs, two of inputs, b = 3.
            let kernel = Tensor::<3>::from_data([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], &device);
            let adapter = C3aLinear {
                kernel: Param::from_tensor(kernel),
                upstream_gradient: false,
            };
            let expected = TensorData::from([
                [1.0_f32, 3.0, 2.0],
                [2.0, 1.0, 3.0],
                [3.0, 2.0, 1.0],
                [4.0, 6.0, 5.0],
                [5.0, 4.0, 6.0],
                [6.0, 5.0, 4.0],
            ]);
            (adapter.delta() * 6.0)
                .into_data()
                .assert_approx_eq(&expected, Tolerance::<f32>::relative(1e-5));
        }
    }
}
