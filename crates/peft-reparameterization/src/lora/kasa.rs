//! KaSA: a LoRA with singular values of its own, on a base without its smallest ones.

use burn::nn::Dropout;
use peft_core::method::prelude::*;
use peft_core::method::{MethodHooks, States};
use peft_core::nn::dropout_rate;
use serde::{Deserialize, Serialize};

use crate::lora::state::InitialFactors;
use crate::lora::values::{Size, computed, refuse};
use crate::math::linalg::svd;
use crate::math::orthogonality::beside_identity;

/// Weights of KaSA's penalties (Wang et al. 2024, KaSA, section 3.3). Upstream's `KasaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KasaConfig {
    /// Of the sum of the squared singular values. At least 0. Default: 1e-4.
    pub beta: f64,
    /// Of the distances of AᵀA and B Bᵀ from the identity. At least 0. Default: 1e-3.
    pub gamma: f64,
}

impl Default for KasaConfig {
    fn default() -> Self {
        Self {
            beta: 1e-4,
            gamma: 1e-3,
        }
    }
}

impl KasaConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let fits = |value: f64| value >= 0.0 && value.is_finite();
        if fits(self.beta) && fits(self.gamma) {
            return Ok(());
        }
        let expected = "finite numbers of at least 0 for `beta` and `gamma`";
        refuse("kasa_config", self, expected)
    }

    /// The hooks of a training: the penalties, where they weigh something.
    pub(crate) fn hooks(&self) -> Option<Box<dyn MethodHooks>> {
        let weighs = self.beta > 0.0 || self.gamma > 0.0;
        weighs.then(|| Box::new(KasaPenalty(self.clone())) as Box<dyn MethodHooks>)
    }
}

/// Wang et al. 2024, section 3.2: `y = x (W − W_r) + s·((drop(x) A) ⊙ σ) B`, W_r being the part of W with its r smallest
/// singular values.
#[derive(Module, Adapter, Debug)]
pub struct KasaLinear {
    /// Down-projection A, `[in, r]`.
    #[tensor("lora_A.weight", transposed)]
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`.
    #[tensor("lora_B.weight", transposed)]
    pub lora_b: Param<Tensor<2>>,
    /// σ, `[r]`.
    #[tensor("lora_diag")]
    pub lora_diag: Param<Tensor<1>>,
    /// s: alpha / r, or alpha / sqrt(r).
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// Factors of W_r; the scale is not theirs. Frozen.
    #[nested]
    pub removed: InitialFactors,
}

impl KasaLinear {
    /// A fresh one, or one whose values a file will give.
    pub(crate) fn new(
        [lora_a, lora_b]: [Param<Tensor<2>>; 2],
        Size { rank, scale }: Size,
        dropout: Dropout,
        weight: &LayoutParam,
        init: &mut Init,
    ) -> Self {
        let like = (&weight.device(), weight.dtype());
        Self {
            lora_a,
            lora_b,
            // B is zero, so the change is, whatever these are.
            lora_diag: init.normal([rank], 1.0, like),
            scale,
            dropout,
            removed: smallest(weight, rank),
        }
    }

    /// `s·A diag(σ) B`.
    fn trained(&self) -> LowRank {
        let down = self.lora_a.val() * self.lora_diag.val().unsqueeze();
        LowRank {
            dropout: dropout_rate(&self.dropout),
            ..LowRank::new(down, self.lora_b.val(), self.scale)
        }
    }

    /// `−W_r`.
    fn taken(&self) -> LowRank {
        LowRank::new(self.removed.a.val(), self.removed.b.val(), -1.0)
    }

    /// Both, as one.
    fn change(&self) -> LowRank {
        let (trained, taken) = (self.trained(), self.taken());
        LowRank::new(
            Tensor::cat(vec![trained.down, taken.down], 1),
            Tensor::cat(vec![trained.up * self.scale, -taken.up], 0),
            1.0,
        )
    }

    fn drops(&self) -> bool {
        dropout_rate(&self.dropout) > 0.0 && self.lora_a.val().is_autodiff()
    }
}

impl WeightAdapter for KasaLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let change = self.change().cast(weight.dtype());
        weight + change.product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        // W_r sees all of the input.
        (!self.drops()).then(|| self.change())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        if !self.drops() {
            return base.forward_with(input, self.change());
        }
        let output = base.forward_with(input.clone(), self.taken());
        peft_core::ops::add_low_rank(output, input, self.trained())
    }
}

/// Factors of the part of a weight with its `rank` smallest singular values.
fn smallest(weight: &LayoutParam, rank: usize) -> InitialFactors {
    let value = weight.value::<2>();
    computed(weight, rank, move || {
        let whole = svd(value.clone().without_autodiff().cast(DType::F32))?;
        let ([rows, all], columns) = (whole.u.dims(), whole.vt.dims()[1]);
        let from = all.saturating_sub(rank);
        let values = whole.s.narrow(0, from, all - from).unsqueeze();
        Some([
            whole.u.slice([0..rows, from..all]) * values,
            whole.vt.slice([from..all, 0..columns]),
        ])
    })
}

/// `β ‖σ‖² + γ (‖AᵀA − I‖ + ‖B Bᵀ − I‖)`, summed over layers (section 3.3; Frobenius norms).
#[derive(Debug)]
struct KasaPenalty(KasaConfig);

impl MethodHooks for KasaPenalty {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let layers = states.of::<KasaLinear>().map(|(_, state)| {
            let (a, b) = (state.lora_a.val(), state.lora_b.val());
            let squares = state.lora_diag.val().powi_scalar(2).sum() * self.0.beta;
            let apart = beside_identity(a.clone().transpose().matmul(a))
                + beside_identity(b.clone().matmul(b.transpose()));
            squares + apart * self.0.gamma
        });
        layers.reduce(|sum, layer| sum + layer)
    }
}
