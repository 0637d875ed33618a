//! Initial values of LoRA's factors.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{Init, LayoutParam};
use peft_core::{Error, Result};

use crate::lora::config::InitLora;
use crate::lora::config::LORA;
use crate::lora::state::InitialFactors;
use crate::lora::values::{computed, on_device};
use crate::math::linalg::{qr, svd, svd_fast};

/// What [`InitLora`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A Kaiming-uniform; B zero or random.
    Kaiming { zero: bool },
    /// A normal, B zero.
    Gaussian,
    /// Rows and columns of one orthogonal matrix.
    Orthogonal,
    /// A from activations, by [`eva`](crate::eva); B zero.
    Eva,
    /// The largest singular values, taken out of the base; exactly, or by so many iterations.
    Pissa(Option<usize>),
    /// The first rows of the triangular factor, taken out of the base.
    Olora,
    /// B the directions of the smallest singular values, frozen; A zero.
    Mica,
    /// What quantization to four bits takes from the base, which is left as that quantization leaves it.
    Loftq,
    /// Of the base times the second moment of its inputs, taken out of the base; from a calibration.
    Corda,
    /// Of the gradients of the base, taken out of the base; from a calibration.
    LoraGa,
}

impl InitLora {
    /// What it says.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a name that nobody knows.
    pub(crate) fn start(&self) -> Result<Start> {
        let name = match self {
            Self::Default(zero) => return Ok(Start::Kaiming { zero: *zero }),
            Self::Named(name) => name.to_lowercase(),
        };
        let iterations = name.strip_prefix("pissa_niter_");
        match (name.as_str(), iterations.map(str::parse)) {
            ("gaussian", _) => Ok(Start::Gaussian),
            ("orthogonal", _) => Ok(Start::Orthogonal),
            ("eva", _) => Ok(Start::Eva),
            ("pissa", _) => Ok(Start::Pissa(None)),
            ("olora", _) => Ok(Start::Olora),
            ("mica", _) => Ok(Start::Mica),
            ("loftq", _) => Ok(Start::Loftq),
            ("corda", _) => Ok(Start::Corda),
            ("lora_ga", _) => Ok(Start::LoraGa),
            (_, Some(Ok(iterations))) if iterations <= 1000 => Ok(Start::Pissa(Some(iterations))),
            _ => Err(Error::config(
                LORA.title,
                "init_lora_weights",
                name,
                "true, false, \"gaussian\", \"orthogonal\", \"eva\", \"olora\", \"pissa\", \"pissa_niter_4\", \"mica\", \"loftq\", \
                 \"corda\" or \"lora_ga\"",
            )),
        }
    }
}

impl Start {
    /// Whether the base is without what the factors begin as.
    pub(crate) fn subtracts_from_base(self) -> bool {
        matches!(self, Self::Pissa(_) | Self::Olora)
    }

    /// The largest rank of a new adapter on a layer whose smaller side is `side`.
    pub(crate) fn most(self, side: usize) -> usize {
        match self {
            Self::Kaiming { .. } | Self::Gaussian | Self::Orthogonal | Self::Eva => usize::MAX,
            Self::Pissa(_) | Self::Olora | Self::Mica | Self::Loftq | Self::Corda => side,
            Self::LoraGa => side / 2,
        }
    }

    /// The factors that are taken out of a weight `[in, out]`: `[in, r]` and `[r, out]`, in `f32`, whose
    /// product times the scale is the part of the weight.
    fn part(self, weight: Tensor<2>, rank: usize, scale: f64) -> Option<[Tensor<2>; 2]> {
        let weight = weight.without_autodiff().cast(DType::F32);
        let svd = match self {
            Self::Pissa(None) => svd(weight)?.truncated(rank),
            Self::Pissa(Some(iterations)) => svd_fast(weight, rank, iterations)?,
            _ => {
                // Upstream's weight is the transposed one.
                let (q, r) = qr(weight.transpose());
                let [out, all] = q.dims();
                let d_in = r.dims()[1];
                let rank = rank.min(all);
                let a = r.slice([0..rank, 0..d_in]).transpose();
                let b = q.slice([0..out, 0..rank]).transpose();
                return Some([a, b]);
            }
        };
        let root = (svd.s / scale).sqrt();
        Some([
            svd.u * root.clone().unsqueeze(),
            svd.vt * root.unsqueeze_dim(1),
        ])
    }

    /// The factors to be taken out of `param`.
    pub(crate) fn removed(self, param: &LayoutParam, rank: usize, scale: f64) -> InitialFactors {
        let weight = param.value::<2>();
        computed(param, rank, move || self.part(weight.clone(), rank, scale))
    }

    /// The rows of B, `[rank, out]`, for a weight `[in, out]`; `None` where it is not finite.
    pub(crate) fn minor(weight: Tensor<2>, rank: usize) -> Option<Tensor<2>> {
        let vt = svd(weight.without_autodiff().cast(DType::F32))?.vt;
        let [all, out] = vt.dims();
        Some(vt.slice([all.saturating_sub(rank)..all, 0..out]))
    }
}

/// Rows `[in, r]` and columns `[r, out]` that begin orthogonal to one another, so that the product is
/// zero: random combinations of the odd and the even rows of an orthogonal matrix.
pub(crate) fn orthogonal(
    init: &mut Init,
    [d_in, rank, d_out]: [usize; 3],
    like: (&Device, DType),
) -> [Param<Tensor<2>>; 2] {
    let plain = like.0.clone().without_autodiff();
    let mut random = |shape: [usize; 2]| init.normal(shape, 1.0, (&plain, DType::F32)).val();
    let (q, _) = qr(random([rank, rank]));
    let half = |offset: usize| {
        let rows: Vec<Tensor<2>> = (offset..rank)
            .step_by(2)
            .map(|row| q.clone().slice([row..row + 1, 0..rank]))
            .collect();
        Tensor::cat(rows, 0)
    };
    let (odd, even) = (half(0), half(1));
    let a = random([d_in, rank / 2]).matmul(odd) / 10.0;
    let b = even.transpose().matmul(random([rank / 2, d_out])) / 10.0;
    [a, b].map(|value| Param::from_tensor(on_device(value.cast(like.1), like.0)))
}
