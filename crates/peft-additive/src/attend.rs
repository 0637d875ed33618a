//! What the attention of a network beside the model sees.

use burn::tensor::Tensor;
use peft_core::nn::{ForwardContext, Lane};
use peft_core::ops::{AttentionInputs, AttentionOptions, Segments};

/// What the attention of one block beside the model sees besides the pass's own tokens.
pub(crate) struct Attend<'a> {
    pub(crate) context: &'a ForwardContext,
    /// Of the adapter.
    pub(crate) lane: &'a Lane,
    /// Of the block.
    pub(crate) index: usize,
}

impl Attend<'_> {
    /// Attention over the text so far, where the model goes on with one, and this pass.
    pub(crate) fn attention(
        &self,
        [query, key, value]: [Tensor<3>; 3],
        [heads, kv_heads]: [usize; 2],
    ) -> Tensor<3> {
        let (mask, segments) = self.hidden(query.dims()[1]);
        let (key, value) = self.all((key, value));
        let inputs = AttentionInputs {
            query,
            key,
            value,
            mask,
            segments,
            options: AttentionOptions {
                kv_heads,
                causal: self.context.is_causal(),
                ..AttentionOptions::new(heads)
            },
        };
        inputs.attention()
    }

    /// Keys and values of the text so far, where the model goes on with one, and of this pass.
    fn all(&self, new: (Tensor<3>, Tensor<3>)) -> (Tensor<3>, Tensor<3>) {
        let Some(memory) = self.context.memory() else {
            return new;
        };
        let before = memory.take::<(Tensor<3>, Tensor<3>)>(self.lane, self.index);
        let all = match before {
            None => new,
            Some((key, value)) => (
                Tensor::cat(vec![key, new.0], 1),
                Tensor::cat(vec![value, new.1], 1),
            ),
        };
        memory.put(self.lane, self.index, all.clone());
        all
    }

    /// What none of the pass's last `tokens` tokens may see: documents that are not its own, or padding.
    fn hidden(&self, tokens: usize) -> (Option<Tensor<3>>, Option<Segments>) {
        if let Some(segments) = self.context.segments() {
            return (None, Some(segments));
        }
        let mask = self.context.padding().map(|padding| {
            let [_, all] = padding.dims();
            let padding = padding
                .narrow(1, all - tokens, tokens)
                .unsqueeze_dim::<3>(1);
            // Finite, so that a row of nothing but padding gives no NaN.
            Tensor::zeros(padding.dims(), &padding.device()).mask_fill(padding, f32::MIN)
        });
        (mask, None)
    }
}
