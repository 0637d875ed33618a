//! DEFT: a subspace of a layer's outputs is taken from the weight, and filled anew. PaRa: it is taken only.

use burn::nn::DropoutConfig;
use peft_core::method::prelude::*;
use peft_core::method::{MethodHooks, States};

use crate::lora::values::on_device;
use crate::weight_aware::deft_schedule::DeftSchedule;
use crate::weight_aware::deft_state::{DeftDecomposition, DeftLinear, projection};

/// DEFT's configuration. Fields are called and behave as in Hugging Face PEFT's `DeftConfig`.
#[method_config(
    DEFT, peft_type = "DEFT", title = "DEFT", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Kumar et al. 2025, DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models",
    unsupported("fan_in_fan_out")
)]
pub struct DeftConfig {
    /// Dimensions of the subspace; all outputs of a layer where it has fewer.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// How the subspace is made of P. Default: `relu`.
    pub decomposition_method: DeftDecomposition,
    /// With `init_weights` false, R is normal with standard deviation 0.02 times this.
    #[field(default = 1.0, finite)]
    pub init_scale: f64,
    /// Scaling numerator of R: R is scaled by alpha / r. Default: none, as 0. R then counts as it is.
    #[field(finite)]
    pub alpha: Option<f64>,
    /// PaRa: the subspace is taken from the weight, and nothing is put there. A fresh adapter does change outputs.
    pub para: bool,
    /// Dropout probability on the input of R, on the activation side only.
    #[field(probability)]
    pub deft_dropout: f64,
    /// Whether R begins as what is taken from the weight, so that a fresh adapter changes nothing. Else it is random.
    #[field(default = true)]
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl DeftConfig {
    /// PaRa of rank `r`, whose subspace is a projection.
    pub fn para(r: usize) -> Self {
        let qr = DeftDecomposition::Qr;
        Self::new(r).with_para(true).with_decomposition_method(qr)
    }

    fn on(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> DeftLinear {
        let (d_in, out, like) = (target.d_in, target.d_out, target.like());
        let rank = self.r.min(out);
        let scale = match self.alpha {
            Some(alpha) if alpha != 0.0 => alpha / rank as f64,
            _ => 1.0,
        };
        let deft_p = plan.init().normal([out, rank], STD, like);
        let deft_r = if self.para {
            None
        } else if self.init_weights && plan.is_new() {
            let p = deft_p.val().without_autodiff();
            let dtype = p.dtype();
            let (taken, _) = projection(p.cast(DType::F32), self.decomposition_method);
            let weight: Tensor<2> = target.weight.value().without_autodiff();
            let taken = weight.cast(DType::F32).matmul(taken) / scale;
            Some(Param::from_tensor(on_device(taken.cast(dtype), like.0)))
        } else {
            let std = STD * self.init_scale;
            Some(plan.init().normal([d_in, rank], std, like))
        };
        DeftLinear {
            deft_p,
            deft_r,
            decomposition: self.decomposition_method,
            scale,
            dropout: DropoutConfig::new(self.deft_dropout).init(),
        }
    }
}

/// Standard deviation of initial values.
const STD: f64 = 0.02;

impl Method for DeftConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        adapt_each(self, &targets, layout, plan, |target, plan| {
            Ok(self.on(target, plan))
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn schedule(&self, _steps: usize, _states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let turns = self.decomposition_method == DeftDecomposition::Qr && !self.para;
        Ok(turns.then(|| Box::new(DeftSchedule::default()) as _))
    }
}
