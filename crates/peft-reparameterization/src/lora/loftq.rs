//! LoftQ by name: a LoRA that begins as what four bits take from its layer, on what they leave of it.

use burn::module::ParamId;
use burn::tensor::{Shape, TensorData};
use peft_core::method::prelude::*;
use peft_core::ops::linear;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

use crate::lora::state::LoraLinear;
use crate::lora::values::{on_device, refuse};
use crate::math::{linalg, nf4};

/// How LoftQ quantizes. Upstream's `LoftQConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoftqConfig {
    /// Bits of a weight. Default: 4, NF4 in blocks of 64. Others are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loftq_bits: Option<usize>,
    /// How often quantization and factors are found anew, each from what the other leaves over. At least 1. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loftq_iter: Option<usize>,
    /// Takes scales as bitsandbytes 0.50 does on CPUs with AVX-512, which are wrong where a layer's inputs are no multiple of
    /// 64: for files of adapters that were trained so. Ours; upstream has no such field. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub upstream_scales: bool,
}

impl LoftqConfig {
    /// Of so many iterations.
    pub fn new(iterations: usize) -> Self {
        Self {
            loftq_bits: Some(4),
            loftq_iter: Some(iterations),
            upstream_scales: false,
        }
    }

    /// The same with every field said, as upstream wants it.
    pub(crate) fn spelled_out(&self) -> Self {
        Self {
            loftq_bits: self.loftq_bits.or(Some(4)),
            loftq_iter: Some(self.iterations()),
            upstream_scales: self.upstream_scales,
        }
    }

    fn iterations(&self) -> usize {
        self.loftq_iter.unwrap_or(1)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |expected| refuse("loftq_config", self, expected);
        if self.loftq_bits.is_some_and(|bits| bits != 4) {
            return refuse("`loftq_bits` 4: LoftQ in 8 bits is not built");
        }
        if !(1..=1000).contains(&self.iterations()) {
            return refuse("`loftq_iter` from 1 to 1000");
        }
        Ok(())
    }
}

/// Li et al. 2023, LoftQ, algorithm 1: `y = xQ + s·(drop(x) A) B`, where Q is what four bits leave of W.
///
/// The base stays what it is: what four bits took is subtracted beside it, one matrix of the layer's size.
#[derive(Module, Adapter, Debug)]
pub struct LoftqLinear {
    /// The factors. They begin as the best of their rank for W − Q.
    #[nested]
    pub lora: LoraLinear,
    /// W − Q, `[in, out]`. Frozen.
    #[unsaved]
    pub taken: Param<Tensor<2>>,
}

impl WeightAdapter for LoftqLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let taken = self
            .taken
            .val()
            .cast(weight.dtype())
            .reshape(weight.shape());
        self.lora.compose(weight - taken)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let taken = linear(input.clone(), self.taken.val(), None, None);
        self.lora.linear(input, base) - taken
    }
}

/// What LoftQ makes of a weight `[in, out]`.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// W − Q, `[in, out]`.
    taken: Tensor<2>,
    /// A, `[in, r]`, and B, `[r, out]`, whose product is nearest to that.
    factors: [Tensor<2>; 2],
}

/// Finds Q and the factors in turn; `None` for a weight that is not finite.
fn start(weight: &Tensor<2>, rank: usize, config: &LoftqConfig) -> Option<Start> {
    // In upstream's layout, whose blocks are what shares a scale.
    let weight = weight
        .clone()
        .without_autodiff()
        .cast(DType::F32)
        .transpose();
    let like = (&weight.device(), DType::F32);
    let shape = weight.dims();
    let mut left_over = weight.clone();
    let mut iteration = 0;
    loop {
        iteration += 1;
        let values: Vec<f32> = left_over.into_data().iter::<f32>().collect();
        let quantized = TensorData::new(
            nf4::rounded(&values, shape[1], config.upstream_scales),
            shape,
        );
        let taken = weight.clone() - Tensor::<2>::from_data(quantized, like);
        let svd = linalg::svd(taken.clone())?.truncated(rank);
        let root = svd.s.sqrt();
        let (up, down) = (
            svd.u * root.clone().unsqueeze(),
            svd.vt * root.unsqueeze_dim(1),
        );
        if iteration == config.iterations() {
            return Some(Start {
                taken: taken.transpose(),
                factors: [down.transpose(), up.transpose()],
            });
        }
        left_over = weight.clone() - up.matmul(down);
    }
}

/// What LoftQ makes of one layer's weight, found when it is first asked for.
#[derive(Clone)]
pub(crate) struct OfLayer {
    weight: Tensor<2>,
    rank: usize,
    config: LoftqConfig,
    found: Arc<OnceLock<Option<Start>>>,
}

impl OfLayer {
    pub(crate) fn new(weight: &LayoutParam, rank: usize, config: LoftqConfig) -> Self {
        Self {
            weight: weight.value(),
            rank,
            config,
            found: Arc::default(),
        }
    }

    fn found(&self) -> Option<&Start> {
        let find = || start(&self.weight, self.rank, &self.config);
        self.found.get_or_init(find).as_ref()
    }

    /// A and B for a scale of s, by which their product is divided, in the format and on the device of `like`.
    pub(crate) fn factors(&self, scale: f64, like: (&Device, DType)) -> [Param<Tensor<2>>; 2] {
        let plain = like.0.clone().without_autodiff();
        let missing = || {
            let [d_in, d_out] = self.weight.dims();
            [[d_in, self.rank], [self.rank, d_out]]
                .map(|shape| Tensor::full(shape, f32::NAN, &plain))
        };
        let found = self.found().map(|start| start.factors.clone());
        found.unwrap_or_else(missing).map(|factor| {
            let value = (factor / scale.sqrt()).cast(like.1);
            Param::from_tensor(on_device(value, like.0))
        })
    }

    /// W − Q; not before it is first looked at, which is after a file has been found to fit.
    pub(crate) fn taken(&self, like: (&Device, DType)) -> Param<Tensor<2>> {
        let (this, dtype) = (self.clone(), like.1);
        let shape = self.weight.dims();
        let compute = move |device: &Device, _: bool| {
            let plain = device.clone().without_autodiff();
            let value = match this.found() {
                Some(start) => start.taken.clone().to_device(&plain),
                // Not a number, so that it shows.
                None => Tensor::full(shape, f32::NAN, &plain),
            };
            on_device(value.cast(dtype), device)
        };
        let shape = Shape::from(shape.to_vec());
        Param::uninitialized(ParamId::new(), compute, like.0.clone(), false, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;
    use peft_core::device::cpu_devices;

    #[test]
    fn more_rank_and_more_iterations_leave_less() {
        for (name, device) in cpu_devices() {
            device.seed(3);
            let weight = Tensor::<2>::random([40, 24], Distribution::Normal(0.0, 0.1), &device);
            let mut before = f32::MAX;
            for (rank, iterations) in [(1, 1), (6, 1), (6, 5)] {
                let found = start(&weight, rank, &LoftqConfig::new(iterations)).unwrap();
                let [a, b] = found.factors;
                let missed = (found.taken - a.matmul(b)).powi_scalar(2).sum();
                let missed: f32 = missed.into_scalar();
                assert!(missed < before, "{name}: {missed} of {before}");
                before = missed;
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(LoftqConfig::new(0).check().is_err());
        let eight = LoftqConfig {
            loftq_bits: Some(8),
            ..LoftqConfig::default()
        };
        assert!(eight.check().unwrap_err().to_string().contains("8 bits"));
        assert_eq!(LoftqConfig::default().spelled_out(), LoftqConfig::new(1));
    }
}
