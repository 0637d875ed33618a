//! aLoRA: a LoRA that acts from its invocation on, and leaves what comes before to the base.

use std::sync::Arc;

use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward as _, ForwardContext, Lane};
use peft_core::ops::linear;

use crate::lora::state::LoraLinear;

/// What calls the adapter, and where a state keeps whether it was called.
#[derive(Clone, Debug)]
pub struct Invocation {
    tokens: Arc<[i64]>,
    /// Of all states of the adapter, and the place of this one.
    lane: Lane,
    place: usize,
}

/// What is known of a text from its earlier passes.
#[derive(Clone, Debug)]
struct Earlier {
    /// Whether the adapter was called, 1 or 0: `[batch, 1]`.
    called: Tensor<2, Int>,
    /// The last tokens, one fewer than the invocation has, or all if there were fewer.
    last: Tensor<2, Int>,
}

impl Invocation {
    pub(crate) fn new(tokens: &[usize], lane: Lane, place: usize) -> Self {
        Self {
            tokens: tokens.iter().map(|&token| token as i64).collect(),
            lane,
            place,
        }
    }

    /// 1 for tokens that the adapter acts on, 0 for others: `[batch, tokens of the pass]`.
    ///
    /// It acts from the last invocation of the pass on; where there is none, from the start if it was called in an
    /// earlier pass of the text, and nowhere otherwise.
    fn mask(&self, ids: Tensor<2, Int>, context: &ForwardContext) -> Tensor<2, Int> {
        let memory = context.memory();
        let earlier = memory.and_then(|memory| memory.take::<Earlier>(&self.lane, self.place));
        let [batch, new] = ids.dims();
        let seen = match &earlier {
            Some(earlier) => Tensor::cat(vec![earlier.last.clone(), ids], 1),
            None => ids,
        };
        let [_, count] = seen.dims();
        // Counted from 1; 0 for none.
        let start = self.last_start(&seen);
        let positions = Tensor::<1, Int>::arange(1..count as i64 + 1, &seen.device());
        let after = positions
            .unsqueeze::<2>()
            .expand([batch, count])
            .greater_equal(start.clone().expand([batch, count]))
            .int();
        let found = start.greater_elem(0).int();
        let mut mask = after * found.clone();
        let mut called = found.clone();
        if let Some(earlier) = earlier {
            mask = (mask + earlier.called.clone()).greater_elem(0).int();
            called = (called + earlier.called).greater_elem(0).int();
        }
        if let Some(memory) = memory {
            let kept = count.min(self.tokens.len() - 1);
            let last = seen.slice([0..batch, count - kept..count]);
            memory.put(&self.lane, self.place, Earlier { called, last });
        }
        mask.slice([0..batch, count - new..count])
    }

    /// Where the last invocation of each row begins, counted from 1; 0 where there is none: `[batch, 1]`.
    fn last_start(&self, ids: &Tensor<2, Int>) -> Tensor<2, Int> {
        let [batch, count] = ids.dims();
        let length = self.tokens.len();
        if count < length {
            return Tensor::zeros([batch, 1], &ids.device());
        }
        let starts = count - length + 1;
        let equal = |at: usize| {
            let there = ids.clone().slice([0..batch, at..at + starts]);
            there.equal_elem(self.tokens[at]).int()
        };
        let all = (1..length).fold(equal(0), |all, at| all * equal(at));
        let positions = Tensor::<1, Int>::arange(1..starts as i64 + 1, &ids.device());
        (all * positions.unsqueeze()).max_dim(1)
    }
}

/// Greenewald et al. 2025, Activated LoRA, section 3: `y = xW + m·s·(drop(x) A) B`, where m is 1 for the tokens from the
/// invocation on, and 0 before: what the base has computed of them is right with and without the adapter.
#[derive(Module, Adapter, Debug)]
pub struct ALoraLinear {
    /// The factors.
    #[nested]
    pub lora: LoraLinear,
    /// What calls it.
    #[module(skip)]
    pub invocation: Invocation,
}

impl ALoraLinear {
    /// m as a column, `[tokens, 1]`.
    fn mask(&self, base: &dyn BaseLinear, tokens: usize) -> Tensor<2, Int> {
        let context = base.context();
        let Some(ids) = context.token_ids() else {
            panic!(
                "aLoRA acts from its invocation tokens on, and the forward pass does not say which tokens it is of: call \
                 `ForwardContext::with_token_ids` in the model's forward"
            );
        };
        assert!(
            context.segments().is_none(),
            "aLoRA does not know where the documents of a row begin: give each document a row of its own"
        );
        let [batch, length] = ids.dims();
        let mask = self.invocation.mask(ids, context);
        let of_each = tokens / batch;
        let mask = if of_each == 1 && length > 1 {
            // A layer that sees one state of a text, as a pooler does.
            mask.max_dim(1)
        } else if of_each > length {
            let front = Tensor::zeros([batch, of_each - length], &mask.device());
            Tensor::cat(vec![front, mask], 1)
        } else {
            mask
        };
        mask.reshape([tokens, 1])
    }
}

impl WeightAdapter for ALoraLinear {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "aLoRA is no change of a weight: it acts on some tokens only. Call the model's layer with `adapted`"
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
        let mask = self.mask(base, tokens).float().cast(input.dtype());
        let cast = |factor: Tensor<2>| factor.cast(input.dtype());
        let down = linear(
            self.lora.dropout.adapted(input.clone()),
            cast(self.lora.lora_a.val()),
            None,
            None,
        );
        let mask = if input.is_autodiff() {
            Tensor::from_inner(mask.without_autodiff())
        } else {
            mask
        };
        let up = cast(self.lora.lora_b.val()) * self.lora.scale;
        base.forward(input) + linear(down * mask, up, None, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::device::cpu_devices;
    use peft_core::nn::Memory;

    fn of(tokens: &[usize]) -> Invocation {
        Invocation::new(tokens, Lane::default(), 0)
    }

    fn mask(invocation: &Invocation, ids: &[[i64; 6]], context: &ForwardContext) -> Vec<i64> {
        let (_, device) = &cpu_devices()[0];
        let values: Vec<i64> = ids.iter().flatten().copied().collect();
        let data = burn::tensor::TensorData::new(values, [ids.len(), 6]);
        let ids = Tensor::<2, Int>::from_data(data, device);
        invocation
            .mask(ids, context)
            .into_data()
            .iter::<i64>()
            .collect()
    }

    #[test]
    fn it_acts_from_the_last_invocation_on() {
        let invocation = of(&[7, 8]);
        let ids = [
            [1, 7, 8, 2, 3, 4],
            [7, 8, 1, 7, 8, 2],
            [7, 1, 8, 7, 7, 1],
            [1, 2, 3, 4, 7, 8],
        ];
        let found = mask(&invocation, &ids, &ForwardContext::new());
        let expected = [
            [0, 1, 1, 1, 1, 1],
            [0, 0, 0, 1, 1, 1],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
        ];
        assert_eq!(found, expected.as_flattened());
        assert_eq!(
            mask(&of(&[1; 7]), &ids[..1], &ForwardContext::new()),
            [0; 6]
        );
    }

    #[test]
    fn it_remembers_from_pass_to_pass() {
        let invocation = of(&[7, 8, 9]);
        let memory = Memory::new();
        let context = ForwardContext::new().with_memory(&memory);
        let first = [[1, 2, 3, 4, 7, 8], [1, 2, 3, 7, 8, 9], [1, 1, 1, 1, 1, 1]];
        let found = mask(&invocation, &first, &context);
        assert_eq!(found[..6], [0; 6]);
        assert_eq!(found[6..12], [0, 0, 0, 1, 1, 1]);
        assert_eq!(found[12..], [0; 6]);
        // The invocation of the first row ends in the second pass.
        let second = [[9, 2, 3, 4, 5, 6], [5, 5, 5, 5, 5, 5], [2, 2, 2, 2, 2, 2]];
        let found = mask(&invocation, &second, &context);
        assert_eq!(found[..12], [1; 12]);
        assert_eq!(found[12..], [0; 6]);
        let third = [[1; 6], [1; 6], [1; 6]];
        let found = mask(&invocation, &third, &context);
        assert_eq!(found[..12], [1; 12]);
        assert_eq!(found[12..], [0; 6]);
    }
}
