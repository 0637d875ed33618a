//! A gate: one number for each text.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, activation};
use peft_ops::linear;

use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::Adapter;
use crate::adapter::init::Init;

/// Standard deviation of a gate's weights in the beginning, as AdapterHub has it.
const STD: f64 = 0.02;

/// A gate for each text, as AdapterHub has it at linear layers: the mean of `sigmoid(x G + c)` over the tokens of a text,
/// padding included.
#[derive(Module, Debug)]
pub struct TextGate {
    /// G, `[in, 1]`.
    pub weight: Param<Tensor<2>>,
    /// c, `[1]`.
    pub bias: Param<Tensor<1>>,
}

impl Adapter for TextGate {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, list: &str| {
            let key = CheckpointKey::layer(field, &format!("{list}gate.{field}"));
            if field == "weight" {
                key.transposed()
            } else {
                key
            }
        };
        let both = |field: &str| key(field, "").in_adapterhub(key(field, "loras.{adapter}."));
        vec![both("weight"), both("bias")]
    }
}

impl TextGate {
    /// A new gate of a layer with so many inputs: weights from N(0, 0.02²), c as torch's linear layers begin.
    pub fn new(d_in: usize, init: &mut Init, like: (&Device, DType)) -> Self {
        Self {
            weight: init.normal([d_in, 1], STD, like),
            bias: init.kaiming_uniform([1], d_in, like),
        }
    }

    /// `output` `[tokens, out]` times the gate of each token's text. `input` `[tokens, in]` is what goes into the layer,
    /// and the tokens are of `batch` texts of equal length.
    pub fn times(&self, output: Tensor<2>, input: Tensor<2>, batch: usize) -> Tensor<2> {
        let [tokens, d_out] = output.dims();
        let length = tokens / batch;
        let gate = linear(input, self.weight.val(), Some(self.bias.val()), None);
        let gate = activation::sigmoid(gate).reshape([batch, length, 1]);
        let output = output.reshape([batch, length, d_out]) * gate.mean_dim(1);
        output.reshape([tokens, d_out])
    }
}
