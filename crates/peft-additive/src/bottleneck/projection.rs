//! The projections of a bottleneck: linear layers, or sums of Kronecker products.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{CheckpointKey, Init};
use peft_core::ops::linear;

use super::fields::BottleneckInit;
use super::phm::Phm;

/// A linear layer.
#[derive(Module, Debug)]
pub struct Dense {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Dense {
    /// With normally distributed weights and no bias, as `init_weights = "bert"` has every linear layer.
    pub(crate) fn normal(shape: [usize; 2], init: &mut Init, like: (&Device, DType)) -> Self {
        Self {
            weight: init.normal(shape, 0.02, like),
            bias: init.zeros([shape[1]], like),
        }
    }

    /// Of a bottleneck's Down, or of its Up.
    pub(crate) fn of_bottleneck(
        shape: [usize; 2],
        how: BottleneckInit,
        is_up: bool,
        init: &mut Init,
        like: (&Device, DType),
    ) -> Self {
        let weight = match how {
            BottleneckInit::Bert => return Self::normal(shape, init, like),
            BottleneckInit::MamAdapter if is_up => init.zeros(shape, like),
            BottleneckInit::MamAdapter => init.kaiming_uniform(shape, shape[0], like),
            BottleneckInit::Houlsby => init.truncated_normal(shape, (0.01, 0.02), like),
        };
        Self {
            weight,
            bias: init.zeros([shape[1]], like),
        }
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val(), Some(self.bias.val()), None)
    }

    /// The same, with a weight that stays 0 where it is 0.
    pub(crate) fn sparse_forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weight = self.weight.val();
        if !weight.is_autodiff() {
            return self.forward(x);
        }
        let kept = weight.clone().detach().not_equal_elem(0.0).float();
        let weight = weight.clone() * kept.cast(weight.dtype());
        linear(x, weight, Some(self.bias.val()), None)
    }

    /// The tensors, of the layer `key` in the file and the field `field` of the state.
    pub(crate) fn tensors(field: &str, key: &str) -> Vec<CheckpointKey> {
        let tensor =
            |of: &str| CheckpointKey::layer(&format!("{field}.{of}"), &format!("{key}.{of}"));
        vec![tensor("weight").transposed(), tensor("bias")]
    }
}

/// Down or Up.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has few of them, and Burn's modules are not boxed"
)]
pub enum Projection {
    /// A linear layer.
    Dense(Dense),
    /// A sum of Kronecker products.
    Phm(Phm),
}

impl Projection {
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::Phm(phm) => phm.forward(x),
        }
    }

    pub(crate) fn tensors(&self, field: &str, key: &str) -> Vec<CheckpointKey> {
        match self {
            Self::Dense(_) => Dense::tensors(&format!("{field}.Dense"), key),
            Self::Phm(phm) => phm.tensors(&format!("{field}.Phm"), key),
        }
    }
}
