//! LoHa's form for convolutions (`use_effective_conv2d`): both factors of the product are kernels with a core.

use burn::tensor::module::conv2d;
use peft_core::method::prelude::*;

use crate::lycoris::change_dropout::ChangeDropout;
use crate::lycoris::tucker;

/// `W' = W + s·K₁ ∘ K₂`, with kernels `K = Σ_ij a[i, out] b[j, in] t[i, j, …]`.
#[derive(Module, Adapter, Debug)]
pub struct LohaConv {
    /// The core t₁, `[r, r, h, w]`; of a layer of one axis `[r, r, k, 1]`, as upstream has it.
    #[tensor("hada_t1")]
    pub core_1: Param<Tensor<4>>,
    /// a₁, `[r, out]`.
    #[tensor("hada_w1_a")]
    pub out_1: Param<Tensor<2>>,
    /// b₁, `[r, in / groups]`.
    #[tensor("hada_w1_b")]
    pub in_1: Param<Tensor<2>>,
    /// The core t₂.
    #[tensor("hada_t2")]
    pub core_2: Param<Tensor<4>>,
    /// a₂, `[r, out]`.
    #[tensor("hada_w2_a")]
    pub out_2: Param<Tensor<2>>,
    /// b₂, `[r, in / groups]`.
    #[tensor("hada_w2_b")]
    pub in_2: Param<Tensor<2>>,
    /// s: alpha / r.
    pub scale: f64,
    /// On the change.
    #[no_tensor]
    pub dropout: ChangeDropout,
}

impl LohaConv {
    /// Of rank `rank`, for a kernel `[out, channels, height, width]`; it changes nothing if `zero`.
    pub(crate) fn draw(
        init: &mut Init,
        rank: usize,
        [out, channels, height, width]: [usize; 4],
        zero: bool,
        like: (&Device, DType),
    ) -> Self {
        let core = [rank, rank, height, width];
        let fan_in = rank * height * width;
        Self {
            core_1: init.kaiming_uniform(core, fan_in, like),
            out_1: init.kaiming_uniform([rank, out], out, like),
            in_1: init.kaiming_uniform([rank, channels], channels, like),
            core_2: init.kaiming_uniform(core, fan_in, like),
            out_2: init.kaiming_uniform([rank, out], out, like),
            in_2: if zero {
                init.zeros([rank, channels], like)
            } else {
                init.kaiming_uniform([rank, channels], channels, like)
            },
            scale: 1.0,
            dropout: ChangeDropout::new(0.0, 0.0, true),
        }
    }

    /// The change of the kernel, `[out, in / groups · h · w]`.
    pub fn delta(&self) -> Tensor<2> {
        let side = |core: &Param<Tensor<4>>, a: &Param<Tensor<2>>, b: &Param<Tensor<2>>| {
            tucker::kernel(core.val(), a.val(), b.val())
        };
        let first = side(&self.core_1, &self.out_1, &self.in_1) * self.scale;
        first * side(&self.core_2, &self.out_2, &self.in_2)
    }
}

impl WeightAdapter for LohaConv {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.delta().reshape(shape)
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let kernel = inner.weight();
        let change = self.dropout.of_rows(self.delta(), &self.out_1);
        let shape = kernel.shape();
        conv2d(input, kernel + change.reshape(shape), None, inner.options())
    }
}
