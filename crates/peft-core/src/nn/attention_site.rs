//! Places inside an attention layer where adapters act: its keys and values, and what its heads give.

use burn::tensor::{Device, Tensor};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::attention_context::{AttentionContext, PrefixContext};
use crate::adapter::site_type::{Attention, KeyValue, SiteKind};
use crate::attached::stack::{Entry, Stack};
use crate::nn::mixture::mix;
use crate::nn::site::{Site, count, entry_of_rows, plain, rows_of, virtual_tokens};

impl Site<KeyValue> {
    /// An empty site for keys of `width` features, those of all heads together, and as many for values.
    pub fn new(width: usize) -> Self {
        Self::empty(SiteKind::KeyValue, width)
    }

    /// How many heads share the features of keys and values: upstream's configurations say it. Default: 1.
    #[must_use]
    pub fn with_heads(mut self, heads: usize) -> Self {
        self.head.heads = heads;
        self
    }

    /// How many features go into the attention layer. Default: as many as keys have.
    #[must_use]
    pub fn with_input_width(mut self, width: usize) -> Self {
        self.head.input_width = width;
        self
    }

    /// How many virtual tokens the active adapters put before the keys and values.
    pub fn virtual_tokens(&self) -> usize {
        virtual_tokens(&self.stack)
    }

    /// How many of the model's positions those take: positions of the text's tokens begin with it.
    pub fn positions(&self) -> usize {
        count(&self.stack, AnyAdapter::positions)
    }

    /// `key` and `value` `[batch, seq, width]`, and the `mask` `[batch, 1 or queries, seq]` that is added to the
    /// scores, with the active adapters' keys and values in front: all queries of all rows see them.
    ///
    /// Call it behind whatever positions do to keys, and once for a cache: when it is empty. Positions of
    /// the text's tokens begin with [`positions`](Self::positions), as upstream's do.
    pub fn add_prefix(
        &self,
        key: Tensor<3>,
        value: Tensor<3>,
        mask: Option<Tensor<3>>,
        context: &PrefixContext<'_>,
    ) -> (Tensor<3>, Tensor<3>, Option<Tensor<3>>) {
        if let Some(recorder) = self.stack.recorder.upgrade() {
            let both = Tensor::cat(vec![key.clone(), value.clone()], 2);
            let width = both.dims()[2] as isize;
            recorder.record(both.reshape([-1, width]));
        }
        if !self.is_active() {
            return (key, value, mask);
        }
        let (mut keys, mut values) = self.in_front(key.dims()[0], &key.device(), context);
        let tokens = keys.iter().map(|part| part.dims()[1]).sum();
        keys.push(key);
        values.push(value);
        let mask = mask.map(|mask| {
            let [rows, queries, _] = mask.dims();
            let open = Tensor::zeros([rows, queries, tokens], (&mask.device(), mask.dtype()));
            Tensor::cat(vec![open, mask], 2)
        });
        (Tensor::cat(keys, 1), Tensor::cat(values, 1), mask)
    }

    /// Keys and values of the active adapters, one behind the other.
    fn in_front(
        &self,
        batch: usize,
        device: &Device,
        context: &PrefixContext<'_>,
    ) -> (Vec<Tensor<3>>, Vec<Tensor<3>>) {
        let of = |entry: &Entry, rows, context: &PrefixContext<'_>| {
            let adapter = entry.adapter.key_value_adapter();
            adapter.key_value_of(self.key_value(entry), rows, context)
        };
        let stack = &self.stack;
        let Some(mixture) = stack.mixed() else {
            return stack
                .active()
                .map(|entry| of(entry, batch, context))
                .unzip();
        };
        if let Some(plain) = plain(mixture) {
            let entries = plain.iter().map(|at| &stack.entries[*at]);
            return entries.map(|entry| of(entry, batch, context)).unzip();
        }
        let rows = rows_of(mixture, batch);
        // Keys and values side by side, so that each adapter computes them once.
        let both = rows.run(device, |at, rows, index| {
            let forward = context.forward.of_rows(rows, &index);
            let context = context.of_rows(&forward, index);
            let (key, value) = of(entry_of_rows(stack, at), rows.len(), &context);
            Tensor::cat(vec![key, value], 2)
        });
        let width = both.dims()[2] / 2;
        let half = |from| vec![both.clone().narrow(2, from, width)];
        (half(0), half(width))
    }

    /// What an adapter puts before the keys and values of any row. Of one that is alone it is kept between forward passes:
    /// a network may lie behind it.
    fn key_value(&self, entry: &Entry) -> (Tensor<2>, Tensor<2>) {
        let adapter = entry.adapter.key_value_adapter();
        if self.stack.entries.len() > 1 {
            return adapter.key_value();
        }
        let width = self.head.width;
        let bytes = adapter.virtual_tokens() * 2 * width * size_of::<f32>();
        let compose = || {
            let (key, value) = adapter.key_value();
            AnyTensor::new(Tensor::cat(vec![key, value], 1))
        };
        let Some(both) = self.stack.kept.get(bytes, || true, compose) else {
            return adapter.key_value();
        };
        let both = both.get::<2>();
        (
            both.clone().narrow(1, 0, width),
            both.narrow(1, width, width),
        )
    }
}

impl Site<Attention> {
    /// An empty site for the heads of an attention layer whose tokens have `width` features.
    pub fn new(width: usize) -> Self {
        Self::empty(SiteKind::Attention, width)
    }

    /// What the heads give, `[batch, seq, heads · head_dim]`, after the active adapters.
    pub fn forward(&self, attended: Tensor<3>, context: &AttentionContext<'_>) -> Tensor<3> {
        let run = |stack: &Stack, attended: Tensor<3>, context: &AttentionContext<'_>| {
            stack.active().fold(attended, |attended, entry| {
                entry.adapter.attention_adapter().forward(attended, context)
            })
        };
        let Some(mixture) = self.stack.mixed() else {
            return run(&self.stack, attended, context);
        };
        let forward = context.forward;
        mix(
            &self.stack,
            mixture,
            attended,
            forward,
            |stack, part, forward| match forward.rows() {
                Some(rows) => run(stack, part, &context.of_rows(forward, rows)),
                None => run(stack, part, context),
            },
        )
    }
}
