//! LoRA with a gate for each text, as UniPELT has it.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::{Tensor, activation};
use peft_core::method::{Adapter, BaseLinear, WeightAdapter};
use peft_core::nn::AdaptedForward as _;
use peft_core::ops::linear;

/// Mao et al. 2022, UniPELT, section 3: `y = xW + g·(drop(x) A) B`, where `g` is the mean of `sigmoid(x G + c)` over the
/// tokens of a text, padding included. There is no scale.
#[derive(Module, Adapter, Debug)]
pub struct GatedLoraLinear {
    /// Down-projection A, `[in, r]`.
    #[tensor("lora_A.weight", transposed, adapterhub = "loras.{adapter}.lora_A")]
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`.
    #[tensor("lora_B.weight", transposed, adapterhub = "loras.{adapter}.lora_B")]
    pub lora_b: Param<Tensor<2>>,
    /// G, `[in, 1]`.
    #[tensor("gate.weight", transposed, adapterhub = "loras.{adapter}.gate.weight")]
    pub gate: Param<Tensor<2>>,
    /// c, `[1]`.
    #[tensor("gate.bias", adapterhub = "loras.{adapter}.gate.bias")]
    pub gate_bias: Param<Tensor<1>>,
    /// On the input of A.
    pub dropout: Dropout,
}

impl WeightAdapter for GatedLoraLinear {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "LoRA with a gate is no change of a weight: the gate depends on the input. Call the model's layer with \
             `adapted`, or attach LoRA without `use_gating`"
        )
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let [tokens, _] = input.dims();
        let batch = base.batch();
        let gate = linear(
            input.clone(),
            self.gate.val(),
            Some(self.gate_bias.val()),
            None,
        );
        let gate = activation::sigmoid(gate).reshape([batch, tokens / batch]);
        let gate = gate.mean_dim(1).reshape([batch, 1, 1]);
        let down = linear(
            self.dropout.adapted(input.clone()),
            self.lora_a.val(),
            None,
            None,
        );
        let change = linear(down, self.lora_b.val(), None, None);
        let [_, d_out] = change.dims();
        let change = change.reshape([batch, tokens / batch, d_out]) * gate;
        base.forward(input) + change.reshape([tokens, d_out])
    }
}
