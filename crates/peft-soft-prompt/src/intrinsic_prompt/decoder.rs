//! What computes prompts from points of their space.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::prompt_encoder::MlpLayer;

/// What computes prompts from points of the space: `tanh(z W + b) W' + b'`, as numbers of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptDecoder {
    /// W and b, `[intrinsic_dim, h]` and `[h]`.
    pub(super) inner: [TensorData; 2],
    /// W' and b', `[h, tokens · d]` and `[tokens · d]`.
    pub(super) outer: [TensorData; 2],
    pub(super) tokens: usize,
}

impl PromptDecoder {
    /// How many virtual tokens it computes.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Dimensions of the space, width inside, and `tokens · d`.
    pub(super) fn widths(&self) -> [usize; 3] {
        let [inner, outer] = [&self.inner, &self.outer].map(|layer| layer[0].shape());
        [inner[0], inner[1], outer[1]]
    }

    pub(super) fn layers(&self, like: (&Device, DType)) -> [MlpLayer; 2] {
        [&self.inner, &self.outer].map(|[weight, bias]| MlpLayer {
            weight: Param::from_tensor(Tensor::from_data(weight.clone(), like)),
            bias: Param::from_tensor(Tensor::from_data(bias.clone(), like)),
        })
    }
}

/// Prompts `[points, tokens · d]` of points `[points, intrinsic_dim]`.
pub(super) fn decoded(points: Tensor<2>, inner: &MlpLayer, outer: &MlpLayer) -> Tensor<2> {
    outer.forward(inner.forward(points).tanh())
}
