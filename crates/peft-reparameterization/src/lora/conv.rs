//! What LoRA adds to a convolution.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use peft_core::method::{Adapter, BaseConv2d, CheckpointKey, WeightAdapter};
use peft_core::nn::AdaptedForward;

use crate::lora::dora::{self, Magnitude};

/// LoRA on a convolution of one or two axes: a convolution to r channels, then one of a kernel of one element.
///
/// Of a layer with groups, A sees all channels and B has the layer's groups, as upstream has it. What is added is then no change
/// of the layer's kernel, which sees a group's channels only: it cannot be merged, and the layer must be called through
/// [`AdaptedForward`]. Where the model does not say how many groups the layer has
/// ([`KeyMapping::with_groups`](peft_core::KeyMapping::with_groups)), A is of one group's channels and B has one group: a change of
/// the kernel, which upstream does not know. Dropout is left out then.
#[derive(Module, Debug)]
pub struct LoraConv2d {
    /// A, `[r, in, h, w]`; of a layer of one axis `[r, in, k, 1]`.
    pub lora_a: Param<Tensor<4>>,
    /// B, `[out, r / groups, 1, 1]`.
    pub lora_b: Param<Tensor<4>>,
    /// s.
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// DoRA's magnitude of each output channel, `[1, out, 1, 1]`.
    pub magnitude: Option<Magnitude<4>>,
    /// Axes of the layer's kernel: 1 or 2. A file has as many.
    pub axes: usize,
}

impl Adapter for LoraConv2d {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let stored = |field: &str, key: &str, shape: [usize; 4]| {
            CheckpointKey::layer(field, key).shaped(&shape[..2 + self.axes])
        };
        let (a, b) = (self.lora_a.lazy_shape(), self.lora_b.lazy_shape());
        let out = b[0];
        vec![
            stored("lora_a", "lora_A.weight", a.dims()),
            stored("lora_b", "lora_B.weight", b.dims()),
            stored("magnitude.value", "lora_magnitude_vector", [1, out, 1, 1]),
        ]
    }
}

impl LoraConv2d {
    /// How many groups B has.
    pub fn groups(&self) -> usize {
        self.lora_a.lazy_shape()[0] / self.lora_b.lazy_shape()[1].max(1)
    }

    /// The change of the kernel, `[out, in / groups · h · w]`, before DoRA's normalisation. Of a layer with groups it is what
    /// upstream takes for it where it needs norms: numbers of both factors side by side in the memory's order.
    pub fn delta(&self) -> Tensor<2> {
        let rank = self.lora_a.dims()[0] as isize;
        let out = self.lora_b.dims()[0] as isize;
        let down = self.lora_a.val().reshape([rank, -1]);
        let up: Tensor<2> = self.lora_b.val().reshape([-1, rank]);
        (up * self.scale).matmul(down).reshape([out, -1])
    }

    /// Magnitude over norm of each output channel, `[out]`.
    fn factor(&self, kernel: Tensor<2>) -> Option<Tensor<1>> {
        let magnitude = self.magnitude.as_ref()?;
        let sum = kernel.detach() + self.delta().detach();
        Some(magnitude.over(dora::norms_of_rows(sum)))
    }
}

impl WeightAdapter for LoraConv2d {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        assert!(
            self.is_mergeable(),
            "LoRA adds to a convolution with groups what its kernel cannot: call the layer through \
             `peft_core::nn::AdaptedForward`, with no other adapter above that needs the kernel"
        );
        let shape = weight.shape();
        let kernel: Tensor<2> = weight.reshape([self.lora_b.dims()[0] as isize, -1]);
        let sum = kernel.clone() + self.delta();
        match self.factor(kernel) {
            None => sum,
            Some(factor) => sum * factor.unsqueeze_dim(1),
        }
        .reshape(shape)
    }

    fn is_mergeable(&self) -> bool {
        self.groups() == 1
    }

    fn needs_weight(&self) -> bool {
        self.magnitude.is_some() || self.groups() == 1
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let options = inner.options();
        let groups = self.groups();
        if groups == 1 && options.groups != 1 {
            // A's channels are those of one group, so it cannot run on all of the input.
            return conv2d(input, self.compose(inner.weight()), None, options);
        }
        let mut of_a = options;
        of_a.groups = 1;
        let dropped = self.dropout.adapted(input.clone());
        let down = conv2d(dropped, self.lora_a.val(), None, of_a);
        let of_b = ConvOptions::new([1, 1], [0, 0], [1, 1], groups);
        let up = conv2d(down * self.scale, self.lora_b.val(), None, of_b);
        let output = inner.forward(input) + up;
        if self.magnitude.is_none() {
            return output;
        }
        let out = self.lora_b.dims()[0];
        let kernel = inner.weight().reshape([out as isize, -1]);
        match self.factor(kernel) {
            None => output,
            Some(factor) => output * factor.reshape([1, out, 1, 1]),
        }
    }

    fn keeps_weight(&self) -> bool {
        self.magnitude.is_some()
    }
}
