//! Ladder side-tuning's configuration, and what it puts on a model.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::method::{Common, Layout, LayoutParam, Method, Plan, method_config};
use peft_core::nn::Lane;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::Activation;
use crate::ladder::pruning::{WeighedBlock, add, most_important};
use crate::ladder::side::{Rung, SideBlock, SideInput, SideOutput};
use crate::ladder::sizes::{Block, Sizes, blocks};

/// Initial values of the side network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LstInit {
    /// The rows and columns of the model's matrices with the largest absolute values.
    #[default]
    Magnitude,
    /// Those with the largest Fisher information. The adapter is attached with statistics of gradients
    /// ([`Calibrate::attach_with`](peft_core::calibration::Calibrate::attach_with)).
    Fisher,
    /// At random.
    Random,
}

/// Ladder side-tuning's configuration. There is no upstream; names of fields are this library's.
#[method_config(
    LST, name = "lst", peft_type = "LADDER_SIDE_TUNING", title = "Ladder side-tuning", family = Additive,
    identity_at_init, new(),
    reference = "Sung et al. 2022, LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning, section 3"
)]
pub struct LstConfig {
    /// All widths of the model over those of the side network. Default: 8. At least 1.
    #[field(default = 8, at_least = 1)]
    pub reduction_factor: usize,
    /// T of the gates `sigmoid(α / T)`. Default: 0.1. Above 0.
    #[field(default = 0.1, positive)]
    pub gate_temperature: f64,
    /// Initial values of the side blocks and of the way down to them. Default: by magnitude.
    pub init: LstInit,
    /// Non-linearity of the feed-forward parts. Default: swish where the model's feed-forward parts have a gate, as
    /// Llama's, and gelu otherwise.
    pub non_linearity: Option<Activation>,
    /// Indices of the model's blocks that have no side block. Default: none.
    pub leave_out: Vec<usize>,
    /// Fields that every method has.
    pub common: Common,
}

/// What the initial values of a side network come from.
enum Source {
    /// The features of the hidden states that are kept, and the blocks' matrices.
    Pruned(Vec<usize>, Vec<WeighedBlock>),
    Random,
}

impl LstConfig {
    fn source(&self, blocks: &[Block<'_>], plan: &Plan) -> Result<Source> {
        if self.init == LstInit::Random || !plan.is_new() {
            return Ok(Source::Random);
        }
        let refused = |expected: &str| Error::config(LST.title, "init", self.init, expected);
        let importance = |param: &LayoutParam| match self.init {
            LstInit::Fisher => {
                let calibration = plan.calibration().ok_or_else(|| {
                    refused(
                        "statistics of gradients besides: attach the adapter with `attach_with`",
                    )
                })?;
                calibration.gradients(&param.name)?.mean_square::<2>()
            }
            _ => Ok(param.value::<2>().abs()),
        };
        let mut weighed = Vec::new();
        let mut features = vec![0.0; blocks[0].sizes.width];
        for block in blocks {
            let Some(matrices) = &block.matrices else {
                return Err(refused(
                    "\"random\": the layers of this model's blocks are not called as those of BERT or Llama are",
                ));
            };
            let block = WeighedBlock::new(matrices, importance)?;
            add(&mut features, &block.of_features());
            weighed.push(block);
        }
        let kept = blocks[0].sizes.reduced(self.reduction_factor).width;
        Ok(Source::Pruned(most_important(&features, kept), weighed))
    }

    fn side_block(
        &self,
        (index, sizes): (usize, Sizes),
        source: &Source,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> SideBlock {
        let side = sizes.reduced(self.reduction_factor);
        let (wide, narrow) = (side.heads * side.head, side.kv_heads * side.head);
        let (down, down_bias) = down(sizes.width, side.width, source, plan, like);
        let init = plan.init();
        let usual = if sizes.gated {
            Activation::Swish
        } else {
            Activation::Gelu
        };
        let random = |init: &mut peft_core::method::Init, shape: [usize; 2]| {
            init.kaiming_uniform(shape, shape[0], like)
        };
        let mut block = SideBlock {
            down,
            down_bias,
            gate: init.zeros([1], like),
            attention_norm: init.ones([side.width], like),
            query: random(init, [side.width, wide]),
            key: random(init, [side.width, narrow]),
            value: random(init, [side.width, narrow]),
            attention_output: random(init, [wide, side.width]),
            feed_forward_norm: init.ones([side.width], like),
            feed_forward_gate: (sizes.gated).then(|| random(init, [side.width, side.inside])),
            feed_forward_up: random(init, [side.width, side.inside]),
            feed_forward_down: random(init, [side.inside, side.width]),
            gate_temperature: self.gate_temperature,
            heads: side.heads,
            kv_heads: side.kv_heads,
            activation: self.non_linearity.unwrap_or(usual),
        };
        if let Source::Pruned(features, blocks) = source {
            let pruned = blocks[index].pruned(features, sizes, side, like);
            block.query = pruned.query;
            block.key = pruned.key;
            block.value = pruned.value;
            block.attention_output = pruned.attention_output;
            block.feed_forward_gate = pruned.gate;
            block.feed_forward_up = pruned.up;
            block.feed_forward_down = pruned.down;
        }
        block
    }
}

/// A way down to the side network: the kept features where it is pruned.
fn down(
    width: usize,
    side: usize,
    source: &Source,
    plan: &mut Plan,
    like: (&Device, DType),
) -> (Param<Tensor<2>>, Param<Tensor<1>>) {
    let bias = plan.init().zeros([side], like);
    let Source::Pruned(features, _) = source else {
        return (
            plan.init().kaiming_uniform([width, side], width, like),
            bias,
        );
    };
    let mut values = vec![0.0_f32; width * side];
    for (column, row) in features.iter().enumerate() {
        values[row * side + column] = 1.0;
    }
    let values = Tensor::from_data(TensorData::new(values, [width, side]), like);
    (Param::from_tensor(values), bias)
}

impl Method for LstConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let blocks = blocks(layout, LST.title)?;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        let left_out = |index: usize| self.leave_out.contains(&index);
        if (0..blocks.len()).all(left_out) {
            let expected = "some block must keep its side block";
            return Err(Error::config(
                LST.title,
                "leave_out",
                &self.leave_out,
                expected,
            ));
        }
        let source = self.source(&blocks, plan)?;
        let lane = Lane::default();
        let last = blocks.len() - 1;
        for (index, block) in blocks.into_iter().enumerate() {
            let sizes = block.sizes;
            let side = sizes.reduced(self.reduction_factor).width;
            let input = (index == 0).then(|| {
                let (weight, bias) = down(sizes.width, side, &source, plan, like);
                SideInput { weight, bias }
            });
            let inner =
                (!left_out(index)).then(|| self.side_block((index, sizes), &source, plan, like));
            let output = (index == last).then(|| SideOutput {
                norm: plan.init().ones([side], like),
                weight: plan.init().zeros([side, sizes.width], like),
                bias: plan.init().zeros([sizes.width], like),
            });
            if input.is_none() && inner.is_none() && output.is_none() {
                continue;
            }
            let rung = Rung {
                input,
                block: inner,
                output,
                index,
                lane: lane.clone(),
            };
            plan.adapt_hidden(block.site, rung);
        }
        Ok(())
    }
}
