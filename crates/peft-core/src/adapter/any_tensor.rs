//! A tensor whose rank is known at run time only.

use std::any::Any;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Runs `$body` with `$d` as the constant that `$rank` holds.
macro_rules! with_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        match $rank {
            0 => {
                const $d: usize = 0;
                $body
            }
            1 => {
                const $d: usize = 1;
                $body
            }
            2 => {
                const $d: usize = 2;
                $body
            }
            3 => {
                const $d: usize = 3;
                $body
            }
            4 => {
                const $d: usize = 4;
                $body
            }
            5 => {
                const $d: usize = 5;
                $body
            }
            6 => {
                const $d: usize = 6;
                $body
            }
            7 => {
                const $d: usize = 7;
                $body
            }
            8 => {
                const $d: usize = 8;
                $body
            }
            rank => unreachable!("no Burn layer has a parameter of rank {rank}"),
        }
    };
}
pub(crate) use with_rank;

/// A float tensor whose rank is known at run time only.
#[derive(Clone, Debug)]
pub(crate) struct AnyTensor {
    rank: usize,
    value: Arc<dyn Any + Send + Sync>,
}

impl AnyTensor {
    pub(crate) fn new<const D: usize>(tensor: Tensor<D>) -> Self {
        Self {
            rank: D,
            value: Arc::new(tensor),
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn get<const D: usize>(&self) -> Tensor<D> {
        self.value
            .downcast_ref::<Tensor<D>>()
            .expect("the rank was checked when the adapter was placed")
            .clone()
    }

    pub(crate) fn to_device(&self, device: &Device) -> Self {
        with_rank!(self.rank, D => Self::new(self.get::<D>().to_device(device).detach()))
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        with_rank!(self.rank, D => self.get::<D>().dims().to_vec())
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    pub(crate) fn dtype(&self) -> DType {
        with_rank!(self.rank, D => self.get::<D>().dtype())
    }

    pub(crate) fn device(&self) -> Device {
        with_rank!(self.rank, D => self.get::<D>().device())
    }

    pub(crate) fn to_data(&self) -> TensorData {
        with_rank!(self.rank, D => self.get::<D>().into_data())
    }

    /// `self + factor · (after − before)`.
    pub(crate) fn add_difference(&self, after: &Self, before: &Self, factor: f64) -> Self {
        with_rank!(self.rank, D => {
            let difference = after.get::<D>() - before.get::<D>();
            Self::new(self.get::<D>() + difference * factor)
        })
    }

    /// Whether it is on a device with autodiff.
    pub(crate) fn is_autodiff(&self) -> bool {
        with_rank!(self.rank, D => self.get::<D>().is_autodiff())
    }

    /// Whether no value is NaN or infinite.
    pub(crate) fn is_finite(&self) -> bool {
        with_rank!(self.rank, D => self.get::<D>().is_finite().all().into_scalar::<bool>())
    }

    pub(crate) fn detach(&self) -> Self {
        with_rank!(self.rank, D => Self::new(self.get::<D>().detach()))
    }

    /// On the device's autodiff side, or off it.
    pub(crate) fn with_autodiff(&self, on: bool) -> Self {
        with_rank!(self.rank, D => {
            let tensor = self.get::<D>();
            Self::new(if on { Tensor::from_inner(tensor) } else { tensor.without_autodiff() })
        })
    }
}
