//! C3A: the change of a weight is a matrix of circulant blocks.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, Layout, Method, MethodInfo, Patterns, Plan,
    WeightAdapter, by_peft_type, config_from_json,
};
use peft_core::{Error, Result, Targets, ops};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use peft_core::method::{
    Bias, LINEAR, at_least_one, patterns, refuse_unused, select, train_biases,
};
use peft_core::{common_method, target_builders};

/// C3A's registration.
pub static C3A: MethodInfo = MethodInfo {
    name: "c3a",
    peft_type: "C3A",
    title: "C3A",
    family: Family::Reparameterization,
    reference: "Chen et al. 2024, Parameter-Efficient Fine-Tuning via Circular Convolution, section 3",
    identity_at_init: false,
    mergeable: true,
    parse: config_from_json::<C3aConfig>,
    recognises: by_peft_type,
};

/// `W' = W + C / in`: every block of C, of b inputs and b outputs, is circulant.
///
/// With w the kernel of a block, its output t gets `Σ_j x_j·w_((j − t) mod b) / in`.
#[derive(Module, Debug)]
pub struct C3aLinear {
    /// Kernels, `[out / b, in / b, b]`.
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

impl Adapter for C3aLinear {
    const METHOD: &'static str = "c3a";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("kernel", "c3a_kernel")]
    }
}

impl WeightAdapter for C3aLinear {
    // The layer composes, too: without a fast Fourier transform, convolving activations costs no less than
    // a dense matrix does.
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.delta().reshape(shape)
    }

    fn linear(&self, input: Tensor<2>, inner: &BaseLinear<'_>) -> Tensor<2> {
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

/// Initial values of the kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitC3a {
    /// `true`: zeros, so that the fresh adapter changes nothing. `false`: as `"xavier_uniform"`.
    Default(bool),
    /// `"xavier_uniform"`: uniform with bound sqrt(6 / (in + out)). `"kaiming_uniform"`: uniform with bound
    /// sqrt(1 / in). `"gaussian"`: normal with standard deviation 1.
    Named(String),
}

impl Default for InitC3a {
    fn default() -> Self {
        Self::Named(XAVIER.into())
    }
}

const XAVIER: &str = "xavier_uniform";
const KAIMING: &str = "kaiming_uniform";
const GAUSSIAN: &str = "gaussian";

/// C3A's configuration. Fields are called and behave as in Hugging Face PEFT's `C3AConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct C3aConfig {
    /// Features of a block, b. Default: 256. A divisor of the layer's inputs and outputs; the larger, the
    /// fewer parameters.
    #[serde(default = "default_block_size")]
    pub block_size: usize,
    /// Other sizes for some layers: the key is a regular expression for the end of the name.
    #[serde(default)]
    pub block_size_pattern: Map<String, Value>,
    /// Initial values. Default: `"xavier_uniform"`, with which a fresh adapter does change outputs.
    #[serde(default)]
    pub init_weights: InitC3a,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Computes the gradient of the layers' inputs as Hugging Face PEFT 0.21 does, to repeat its runs. It is
    /// not the gradient of what the layer computes: kernels are run through in the other direction.
    /// Default: false. Not a field of upstream's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upstream_gradient: bool,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_block_size() -> usize {
    256
}

impl Default for C3aConfig {
    fn default() -> Self {
        Self::new(default_block_size())
    }
}

impl C3aConfig {
    /// C3A with blocks of `block_size` features on all linear layers but the output head.
    pub fn new(block_size: usize) -> Self {
        Self {
            block_size,
            block_size_pattern: Map::new(),
            init_weights: InitC3a::default(),
            bias: Bias::None,
            upstream_gradient: false,
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets the initial values.
    #[must_use]
    pub fn with_init(mut self, init: InitC3a) -> Self {
        self.init_weights = init;
        self
    }

    /// Sets which biases are trained.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// Computes the inputs' gradients as upstream does.
    #[must_use]
    pub fn with_upstream_gradient(mut self, upstream_gradient: bool) -> Self {
        self.upstream_gradient = upstream_gradient;
        self
    }

    target_builders!();

    /// Sets another size of blocks for layers whose name ends in `pattern`, a regular expression.
    #[must_use]
    pub fn with_block_size_for(mut self, pattern: &str, block_size: usize) -> Self {
        self.block_size_pattern
            .insert(pattern.into(), block_size.into());
        self
    }

    fn sizes(&self) -> Result<Patterns<usize>> {
        let field = (&C3A, "block_size_pattern");
        let expected = "a whole number of at least 1";
        patterns(&self.block_size_pattern, field, expected, at_least_one)
    }
}

impl Method for C3aConfig {
    common_method!(C3A);

    fn validate(&self) -> Result<()> {
        if self.block_size == 0 {
            return Err(Error::config(C3A.title, "block_size", 0, "at least 1"));
        }
        if let InitC3a::Named(name) = &self.init_weights
            && ![XAVIER, KAIMING, GAUSSIAN].contains(&name.as_str())
        {
            let expected = "true, false, \"xavier_uniform\", \"kaiming_uniform\" or \"gaussian\"";
            return Err(Error::config(C3A.title, "init_weights", name, expected));
        }
        self.sizes().map(|_| ())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = select(&self.targets, layout, plan, &C3A, LINEAR)?;
        let sizes = self.sizes()?;
        refuse_unused(&sizes, &targets, plan)?;
        for &(layer, weight) in &targets {
            // A file's own size counts: upstream matches patterns otherwise.
            let stored = plan.stored_shape(layer, "c3a_kernel");
            let size = match stored.and_then(|shape| shape.get(2)) {
                Some(size) => (*size).max(1),
                None => sizes.get(&layer.name)?.unwrap_or(self.block_size),
            };
            let shape = weight.shape();
            let (d_in, out) = (shape[0], shape[1]);
            if !(d_in.is_multiple_of(size) && out.is_multiple_of(size)) {
                let expected = format!("`{}` is {d_in} × {out}, so a divisor of both", layer.name);
                return Err(Error::config(C3A.title, "block_size", size, expected));
            }
            let shape = [out / size, d_in / size, size];
            let like = (&weight.device(), weight.dtype());
            let init = plan.init();
            let kernel = match &self.init_weights {
                InitC3a::Default(true) => init.zeros(shape, like),
                InitC3a::Named(name) if name == GAUSSIAN => init.normal(shape, 1.0, like),
                InitC3a::Named(name) if name == KAIMING => init.kaiming_uniform(shape, d_in, like),
                _ => init.uniform(shape, (6.0 / (d_in + out) as f64).sqrt(), like),
            };
            let state = C3aLinear {
                kernel,
                upstream_gradient: self.upstream_gradient,
            };
            plan.adapt_weight(weight, state);
        }
        train_biases(self.bias, layout, &targets, plan);
        Ok(())
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
