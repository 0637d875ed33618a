//! LoRA with AdapterHub's gates and with its DoRA.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::{DType, Tensor};
use peft_core::method::{Adapter, BaseLinear, TextGate, WeightAdapter};
use peft_core::nn::AdaptedForward as _;
use peft_core::ops::{LowRank, linear};

use crate::lora::dora::{self, Magnitude};

/// What a layer computes with a change of AdapterHub's: `f ∘ (x W + b + c)`, where c is the change with its scale or gate.
///
/// Without DoRA f is 1. With it `f = m / ‖W + Δ‖`, where Δ is the change of the weight **without** the scale, and f multiplies
/// the bias, too: so AdapterHub's layers compute, and so their magnitudes were trained.
#[derive(Module, Adapter, Debug)]
pub struct AdapterHubEnd {
    /// For each text; in place of the scale (Mao et al. 2022, UniPELT, section 3).
    #[nested]
    pub gate: Option<TextGate>,
    /// DoRA's magnitude of each output, `[out]`.
    #[nested]
    pub magnitude: Option<Magnitude<1>>,
    /// s, without a gate.
    pub scale: f64,
    /// Whether the layer has a bias, which DoRA changes here.
    pub has_bias: bool,
}

impl AdapterHubEnd {
    /// Whether a weight says all.
    pub(crate) fn is_mergeable(&self) -> bool {
        self.gate.is_none() && (self.magnitude.is_none() || !self.has_bias)
    }

    /// The factors of a change that is of low rank and nothing else.
    pub(crate) fn low_rank(&self, change: impl FnOnce() -> LowRank) -> Option<LowRank> {
        let plain = self.gate.is_none() && self.magnitude.is_none();
        plain.then(|| LowRank {
            scale: self.scale,
            ..change()
        })
    }

    /// W' of W and `change`, whose scale is 1.
    pub(crate) fn compose<const D: usize>(&self, weight: Tensor<D>, change: &LowRank) -> Tensor<D> {
        assert!(
            self.is_mergeable(),
            "this adapter of AdapterHub's is no change of a weight: a gate depends on the input, and its DoRA changes the \
             bias, too. Call the model's layer with `adapted`"
        );
        let shape = weight.shape();
        let change = change.clone().cast(weight.dtype());
        let delta = change.product() * self.scale;
        let Some(magnitude) = &self.magnitude else {
            return weight + delta.reshape(shape);
        };
        let weight = weight.reshape([change.down.dims()[0], change.up.dims()[1]]);
        let factor = magnitude.over(norms(weight.clone(), &change));
        ((weight + delta) * factor.unsqueeze()).reshape(shape)
    }

    /// The layer's output. `added` is `[tokens, out]`, what the change adds without its scale; `change` gives the change of
    /// the weight, of scale 1.
    pub(crate) fn linear(
        &self,
        input: Tensor<2>,
        added: Tensor<2>,
        base: &dyn BaseLinear,
        change: impl FnOnce() -> LowRank,
    ) -> Tensor<2> {
        let added = match &self.gate {
            Some(gate) => gate.times(added, input.clone(), base.batch()),
            None => added * self.scale,
        };
        let trains = input.is_autodiff() || added.is_autodiff();
        let dtype = input.dtype();
        let output = base.forward(input) + added;
        let Some(magnitude) = &self.magnitude else {
            return output;
        };
        let change = change().cast(dtype);
        let norms = if trains {
            norms(base.weight(), &change)
        } else {
            dora::norms_below(base, &change)
        };
        output * magnitude.over(norms).unsqueeze()
    }
}

/// Norms of the columns of `W + AB`, `[out]`. Unlike the paper's (section 4.3), AdapterHub's have a gradient: with it, slopes are
/// those of what the layer computes.
fn norms(weight: Tensor<2>, change: &LowRank) -> Tensor<1> {
    let dtype = weight.dtype();
    // In half precision a sum of squares would overflow.
    let change = change.clone().cast(DType::F32);
    let sum = weight.detach().cast(DType::F32) + change.product();
    let norms: Tensor<1> = sum.powi_scalar(2).sum_dim(0).sqrt().reshape([-1]);
    norms.cast(dtype)
}

/// `y = f ∘ (x W + b + g·(drop(x) A) B)` with a gate g or the scale, and f as [`AdapterHubEnd`] says.
#[derive(Module, Adapter, Debug)]
pub struct AdapterHubLoraLinear {
    /// Down-projection A, `[in, r]`.
    #[tensor("lora_A.weight", transposed, adapterhub = "loras.{adapter}.lora_A")]
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`.
    #[tensor("lora_B.weight", transposed, adapterhub = "loras.{adapter}.lora_B")]
    pub lora_b: Param<Tensor<2>>,
    /// Gate, scale and magnitude.
    #[nested]
    pub end: AdapterHubEnd,
    /// On the input of A.
    pub dropout: Dropout,
}

impl AdapterHubLoraLinear {
    fn change(&self) -> LowRank {
        LowRank::new(self.lora_a.val(), self.lora_b.val(), 1.0)
    }
}

impl WeightAdapter for AdapterHubLoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.end.compose(weight, &self.change())
    }

    fn is_mergeable(&self) -> bool {
        self.end.is_mergeable()
    }

    // DoRA's norms are of the matrix.
    fn needs_weight(&self) -> bool {
        self.end.magnitude.is_some()
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let down = linear(
            self.dropout.adapted(input.clone()),
            self.lora_a.val(),
            None,
            None,
        );
        let added = linear(down, self.lora_b.val(), None, None);
        self.end.linear(input, added, base, || self.change())
    }
}
