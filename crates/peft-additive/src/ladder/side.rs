//! The side network's states, and what they compute.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use peft_core::method::{Adapter, HiddenAdapter, SiteContext};
use peft_core::nn::Lane;
use peft_core::ops::{linear, rms_norm, swiglu};

use crate::Activation;
use crate::attend::Attend;

/// Added to the mean square of a normalisation.
const EPSILON: f64 = 1e-6;

/// The start of the side network: the down-projection of what goes into the model's first block.
#[derive(Module, Adapter, Debug)]
pub struct SideInput {
    /// `[d, d / reduction_factor]`.
    #[tensor("side_first_downsample.weight", transposed)]
    pub weight: Param<Tensor<2>>,
    /// `[d / reduction_factor]`.
    #[tensor("side_first_downsample.bias")]
    pub bias: Param<Tensor<1>>,
}

/// A block of the side network, with the rung of the ladder that leads to it. w is `d / reduction_factor`.
///
/// A transformer block as T5 has it (the paper's backbone): normalisation before each sublayer, no biases.
#[derive(Module, Adapter, Debug)]
pub struct SideBlock {
    /// The down-projection of the model's state, `[d, w]`.
    #[tensor("side_downsample.weight", transposed)]
    pub down: Param<Tensor<2>>,
    /// `[w]`.
    #[tensor("side_downsample.bias")]
    pub down_bias: Param<Tensor<1>>,
    /// α of the gate, `[1]`.
    #[tensor("side_gate")]
    pub gate: Param<Tensor<1>>,
    /// Before attention, `[w]`.
    #[tensor("side_block.attention_norm.weight")]
    pub attention_norm: Param<Tensor<1>>,
    /// Queries, `[w, heads · width of a head]`.
    #[tensor("side_block.query.weight", transposed)]
    pub query: Param<Tensor<2>>,
    /// Keys, `[w, kv_heads · width of a head]`.
    #[tensor("side_block.key.weight", transposed)]
    pub key: Param<Tensor<2>>,
    /// Values, as the keys.
    #[tensor("side_block.value.weight", transposed)]
    pub value: Param<Tensor<2>>,
    /// The way back, `[heads · width of a head, w]`.
    #[tensor("side_block.attention_output.weight", transposed)]
    pub attention_output: Param<Tensor<2>>,
    /// Before the feed-forward part, `[w]`.
    #[tensor("side_block.feed_forward_norm.weight")]
    pub feed_forward_norm: Param<Tensor<1>>,
    /// The gate of the feed-forward part, `[w, inside]`, where the model's has one.
    #[tensor("side_block.feed_forward_gate.weight", transposed)]
    pub feed_forward_gate: Option<Param<Tensor<2>>>,
    /// `[w, inside]`.
    #[tensor("side_block.feed_forward_up.weight", transposed)]
    pub feed_forward_up: Param<Tensor<2>>,
    /// `[inside, w]`.
    #[tensor("side_block.feed_forward_down.weight", transposed)]
    pub feed_forward_down: Param<Tensor<2>>,
    /// T of the gate.
    pub gate_temperature: f64,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// The non-linearity of the feed-forward part.
    #[module(skip)]
    pub activation: Activation,
}

/// The end of the side network: normalisation, and the way up to the model's last hidden state.
#[derive(Module, Adapter, Debug)]
pub struct SideOutput {
    /// `[d / reduction_factor]`.
    #[tensor("side_norm.weight")]
    pub norm: Param<Tensor<1>>,
    /// `[d / reduction_factor, d]`.
    #[tensor("side_upsample.weight", transposed)]
    pub weight: Param<Tensor<2>>,
    /// `[d]`.
    #[tensor("side_upsample.bias")]
    pub bias: Param<Tensor<1>>,
}

/// The part of the side network at one block of the model. The first place begins it, the last one ends it, and a place
/// whose side block is left out has no more than that.
#[derive(Module, Adapter, Debug)]
pub struct Rung {
    /// At the model's first block.
    #[nested]
    pub input: Option<SideInput>,
    /// The side block, unless it is left out.
    #[nested]
    pub block: Option<SideBlock>,
    /// At the model's last block.
    #[nested]
    pub output: Option<SideOutput>,
    /// Index of the model's block.
    pub index: usize,
    /// What the side state goes by from rung to rung.
    #[module(skip)]
    pub lane: Lane,
}

impl SideInput {
    fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        linear(hidden, self.weight.val(), Some(self.bias.val()), None)
    }
}

impl SideBlock {
    /// The side state after the block, for that before it and the model's hidden state, `[batch, seq, w]` and `[batch, seq,
    /// d]`.
    fn forward(&self, side: Tensor<3>, hidden: Tensor<3>, attend: &Attend<'_>) -> Tensor<3> {
        let down = linear(hidden, self.down.val(), Some(self.down_bias.val()), None);
        let gate = activation::sigmoid(self.gate.val() / self.gate_temperature);
        // gate·side + (1 − gate)·down
        let mixed = down.clone() + (side - down) * gate.unsqueeze::<3>();
        let side = mixed.clone() + self.attention(mixed, attend);
        side.clone() + self.feed_forward(side)
    }

    fn attention(&self, side: Tensor<3>, attend: &Attend<'_>) -> Tensor<3> {
        let side = rms_norm(side, self.attention_norm.val(), EPSILON);
        let project = |weight: &Param<Tensor<2>>| linear(side.clone(), weight.val(), None, None);
        let projected = [&self.query, &self.key, &self.value].map(project);
        let attended = attend.attention(projected, [self.heads, self.kv_heads]);
        linear(attended, self.attention_output.val(), None, None)
    }

    fn feed_forward(&self, side: Tensor<3>) -> Tensor<3> {
        let side = rms_norm(side, self.feed_forward_norm.val(), EPSILON);
        let up = linear(side.clone(), self.feed_forward_up.val(), None, None);
        let inner = match &self.feed_forward_gate {
            None => self.activation.apply(up),
            Some(gate) => {
                let gate = linear(side, gate.val(), None, None);
                match self.activation {
                    Activation::Swish => swiglu(gate, up),
                    other => other.apply(gate) * up,
                }
            }
        };
        linear(inner, self.feed_forward_down.val(), None, None)
    }
}

impl HiddenAdapter for Rung {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let pass = context.forward;
        let mut side: Tensor<3> = match &self.input {
            Some(input) => {
                let first = context.sublayer_input.clone().expect(
                    "ladder side-tuning needs what goes into a block: the model has to give it with \
                     `SiteContext::of_block`",
                );
                input.forward(first.detach())
            }
            None => pass.handed_on(&self.lane).expect(
                "ladder side-tuning hands its state on from block to block: the model has to give all of its blocks \
                 one context, and run them in their order",
            ),
        };
        if let Some(block) = &self.block {
            let attend = Attend {
                context: pass,
                lane: &self.lane,
                index: self.index,
            };
            // No gradient goes back into the model.
            side = block.forward(side, hidden.clone().detach(), &attend);
        }
        match &self.output {
            None => {
                pass.hand_on(&self.lane, side);
                hidden
            }
            Some(output) => {
                let side = rms_norm(side, output.norm.val(), EPSILON);
                hidden + linear(side, output.weight.val(), Some(output.bias.val()), None)
            }
        }
    }
}
