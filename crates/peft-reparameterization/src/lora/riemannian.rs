//! The Riemannian preconditioner of LoRA's gradients.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::method::{MethodHooks, States};

use crate::lora::loftq::LoftqLinear;
use crate::lora::state::LoraLinear;
use crate::math::linalg::inverse;

/// Zhang and Pilanci 2024, Riemannian Preconditioned LoRA, section 3: before each step the gradient of A becomes
/// `∇A (B Bᵀ + δI)⁻¹`, and that of B `(AᵀA + δI)⁻¹ ∇B`.
#[derive(Debug)]
struct Preconditioner {
    /// δ.
    damping: f64,
}

/// The hooks of a training with this δ.
pub(crate) fn hooks(damping: f64) -> Box<dyn MethodHooks> {
    Box::new(Preconditioner { damping })
}

impl MethodHooks for Preconditioner {
    fn before_step(&mut self, _step: usize, states: &States, gradients: &mut GradientsParams) {
        let plain = states.of::<LoraLinear>().map(|(_, state)| state);
        let beside = states.of::<LoftqLinear>().map(|(_, state)| &state.lora);
        for state in plain.chain(beside) {
            let a = state.lora_a.val().inner();
            let b = state.lora_b.val().inner();
            // Where one factor is frozen, the other's product has no length to take out: as upstream has it.
            if !state.lora_a.is_require_grad() || !state.lora_b.is_require_grad() {
                continue;
            }
            if let Some(gradient) = gradients.remove::<2>(state.lora_a.id) {
                let metric = inverse(b.clone().matmul(b.clone().transpose()), self.damping);
                gradients.register(state.lora_a.id, times(gradient, metric, false));
            }
            if let Some(gradient) = gradients.remove::<2>(state.lora_b.id) {
                let metric = inverse(a.clone().transpose().matmul(a), self.damping);
                gradients.register(state.lora_b.id, times(gradient, metric, true));
            }
        }
    }
}

/// The gradient times the metric, which is on its left if `left`; as it is where there is none.
fn times(gradient: Tensor<2>, metric: Option<Tensor<2>>, left: bool) -> Tensor<2> {
    let Some(metric) = metric else {
        return gradient;
    };
    let metric = metric.cast(gradient.dtype());
    if left {
        metric.matmul(gradient)
    } else {
        gradient.matmul(metric)
    }
}
