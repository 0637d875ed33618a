//! A nested composition at a site of a hidden state.

use burn::tensor::{Int, Tensor};

use crate::adapter::site_context::{HiddenParts, SiteContext};
use crate::attached::nested::Nested;
use crate::attached::stack::Stack;

/// Runs adapters, one on the other, of a stack that has them alone.
type Run<'a> = dyn Fn(&Stack, Tensor<3>, &SiteContext<'_>) -> Tensor<3> + 'a;

/// A site whose composition is a tree.
pub(crate) struct TreeSite<'a> {
    pub(crate) stack: &'a Stack,
    /// Whether what the adapters did is undone, the last one first.
    pub(crate) backward: bool,
    pub(crate) run: &'a Run<'a>,
}

impl TreeSite<'_> {
    /// The state `[batch, seq, d]` after a part of the tree.
    pub(crate) fn of(
        &self,
        tree: &Nested,
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
    ) -> Tensor<3> {
        match tree {
            Nested::Adapter(name) => self.named(name, hidden, context),
            Nested::Above { adapter, stacks } => {
                let below = |name: &str, hidden: Tensor<3>| {
                    let stack = stacks
                        .iter()
                        .find(|stack| stack.last().is_some_and(|last| last == name));
                    self.parts(stack.map_or(&[], Vec::as_slice), name, hidden, context)
                };
                let around = context.with_siblings(&below);
                self.alone(adapter, hidden, &around)
            }
            Nested::Stack(parts) => {
                let each = |hidden, part: &Nested| self.of(part, hidden, context);
                if self.backward {
                    parts.iter().rev().fold(hidden, each)
                } else {
                    parts.iter().fold(hidden, each)
                }
            }
            Nested::Rows(parts) => self.rows(parts, hidden, context),
            Nested::Tokens(parts) => self.tokens(parts, hidden, context),
            Nested::Weighted(parts) => parts.iter().fold(hidden.clone(), |sum, (part, weight)| {
                let changed = self.of(part, hidden.clone(), context);
                sum + (changed - hidden.clone()) * *weight
            }),
        }
    }

    /// The state after the adapter of this name, or as it is where that is not here.
    fn named(&self, name: &str, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let at = self
            .stack
            .entries
            .iter()
            .position(|entry| entry.name == name);
        match at {
            Some(at) => (self.run)(&self.stack.only(Some(at)), hidden, context),
            None => hidden,
        }
    }

    /// The same with siblings of the caller's.
    fn alone(&self, name: &str, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        match self.stack.entry(name) {
            Some(entry) if self.backward => entry.adapter.hidden_adapter().inverse(hidden, context),
            Some(entry) => entry.adapter.hidden_adapter().forward(hidden, context),
            None => hidden,
        }
    }

    /// What the last adapter of a stack adds on those below it, beside what it sees and keeps without them.
    fn parts(
        &self,
        stack: &[String],
        last: &str,
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
    ) -> Option<HiddenParts> {
        let adapter = self.stack.entry(last)?.adapter.hidden_adapter().frozen();
        let parts = adapter.parts(hidden.clone(), context);
        let below: Vec<&String> = stack.iter().filter(|name| *name != last).collect();
        if below.is_empty() {
            return Some(parts);
        }
        let hidden = below
            .into_iter()
            .fold(hidden, |hidden, name| match self.stack.entry(name) {
                Some(entry) => entry
                    .adapter
                    .hidden_adapter()
                    .frozen()
                    .forward(hidden, context),
                None => hidden,
            });
        Some(HiddenParts {
            added: adapter.parts(hidden, context).added,
            ..parts
        })
    }

    fn rows(
        &self,
        parts: &[(Nested, usize)],
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
    ) -> Tensor<3> {
        let told: usize = parts.iter().map(|(_, count)| count).sum();
        let batch = hidden.dims()[0];
        assert_eq!(
            batch, told,
            "the model was told the adapters of {told} rows, and the batch has {batch}"
        );
        let mut first = 0;
        let outputs = parts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(part, count)| {
                let rows: Vec<i64> = (first..first + count).map(|row| row as i64).collect();
                first += count;
                let index = Tensor::<1, Int>::from_data(rows.as_slice(), &hidden.device());
                let forward = context.forward.of_rows(&rows, &index);
                let state = hidden.clone().select(0, index.clone());
                self.of(part, state, &context.of_rows(&forward, &index))
            });
        Tensor::cat(outputs.collect(), 0)
    }

    fn tokens(
        &self,
        parts: &[(Nested, usize)],
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
    ) -> Tensor<3> {
        let told: usize = parts.iter().map(|(_, count)| count).sum();
        let length = hidden.dims()[1];
        assert_eq!(
            length, told,
            "the model was told the adapters of {told} tokens, and a row has {length}"
        );
        let mut first = 0;
        let outputs = parts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(part, count)| {
                let from = first;
                first += count;
                let forward = context.forward.of_tokens(from, *count, length);
                let state = hidden.clone().narrow(1, from, *count);
                self.of(part, state, &context.of_tokens(&forward, from, *count))
            });
        Tensor::cat(outputs.collect(), 1)
    }
}
