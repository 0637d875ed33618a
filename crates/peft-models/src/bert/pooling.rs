//! Pooling: from hidden states to one vector for each text.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::Linear;
use burn::tensor::{Bool, Device, Tensor};
use peft_core::nn::{AdaptedForward, ForwardContext};
use serde::{Deserialize, Serialize};

use super::{Bert, BertConfig, BertOutput};

/// How one vector is made of a row's hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over the row's own tokens: neither padding nor virtual tokens count. What
    /// sentence-transformers' models are trained with.
    Mean,
    /// The pooler, `tanh(dense(hidden[0]))`: what `BertForSequenceClassification` does. With prompt
    /// adapters the first position is the first virtual token, as in HF PEFT, unless these stand behind the text's first
    /// token.
    Cls,
}

/// Projection of the first position ([`ForwardContext::first_token`]), `tanh(dense(x))`.
#[derive(Module, Debug)]
pub struct BertPooler {
    /// Projection, `hidden_size` to `hidden_size`.
    pub dense: Linear,
}

impl BertPooler {
    pub(super) fn new(config: &BertConfig, device: &Device) -> Self {
        Self {
            dense: config.linear(config.hidden_size, config.hidden_size, device),
        }
    }

    /// `[batch, hidden_size]` from hidden states `[batch, seq, hidden_size]`.
    pub fn forward(&self, hidden: Tensor<3>, context: &ForwardContext) -> Tensor<2> {
        let first = hidden
            .narrow(1, context.first_token(), 1)
            .squeeze_dim::<2>(1);
        self.dense.adapted_in(first, context).tanh()
    }
}

impl BertOutput {
    /// The mean of each row's own hidden states, `[batch, hidden_size]`.
    ///
    /// `padding` is the one that [`Bert::forward`] was given. A row of nothing but padding gives
    /// zeros.
    pub fn mean(self, padding: Option<Tensor<2, Bool>>) -> Tensor<2> {
        let [_, length, _] = self.hidden.dims();
        let own = length - self.virtual_tokens;
        let hidden = match self.virtual_tokens {
            0 => self.hidden,
            virtual_tokens => self.hidden.narrow(1, virtual_tokens, own),
        };
        let Some(padding) = padding else {
            return hidden.mean_dim(1).squeeze_dim(1);
        };
        let ones = Tensor::<2>::ones(padding.dims(), &hidden.device());
        let kept = ones.mask_fill(padding, 0.0);
        let weights = kept.clone() / kept.sum_dim(1).clamp_min(1.0);
        let weights = weights.cast(hidden.dtype());
        // As a product of matrices the masked states are never formed.
        weights.unsqueeze_dim::<3>(1).matmul(hidden).squeeze_dim(1)
    }
}

impl Bert {
    /// One vector a row, `[batch, hidden_size]`. `padding` is the one that
    /// [`forward`](Self::forward) was given.
    ///
    /// # Panics
    ///
    /// With [`Pooling::Cls`] if the model has no pooler.
    pub fn pool(
        &self,
        output: BertOutput,
        padding: Option<Tensor<2, Bool>>,
        pooling: Pooling,
    ) -> Tensor<2> {
        match pooling {
            Pooling::Mean => output.mean(padding),
            Pooling::Cls => {
                let pooler = self.pooler.as_ref();
                pooler
                    .expect("`Pooling::Cls` needs a model with a pooler")
                    .forward(output.hidden, &output.context)
            }
        }
    }
}

struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let _drawn = param.base();
    }
}

/// Draws parameters that would be drawn at their first use, in an order that depends on it.
pub(crate) fn draw_now<M: Module>(module: &M) {
    module.visit(&mut Draw);
}
