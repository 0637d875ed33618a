//! What goes into a layer, by the rows of the batch and their tasks.

use burn::tensor::{Int, Tensor};
use peft_core::nn::ForwardContext;

/// The tasks of a batch's rows at one layer.
pub(crate) struct ByTask {
    /// None where there is one task for all.
    index: Option<Tensor<1, Int>>,
    rows: usize,
    tokens: usize,
}

impl ByTask {
    /// Those that the forward pass says, of an adapter for so many `tasks`, at a layer with this input `[rows · tokens,
    /// in]`.
    ///
    /// # Panics
    ///
    /// If it says none and there are several tasks, or if it says those of other rows.
    pub(crate) fn of(
        context: &ForwardContext,
        tasks: usize,
        method: &str,
        input: &Tensor<2>,
    ) -> Self {
        let all = input.dims()[0];
        let Some(ids) = context.tasks() else {
            assert!(
                tasks == 1,
                "{method} has {tasks} tasks, and the forward pass does not say which each row is of: give them with \
                 `ForwardContext::with_tasks`"
            );
            return Self {
                index: None,
                rows: 1,
                tokens: all,
            };
        };
        let rows = ids.ids().len();
        assert!(
            rows > 0 && all.is_multiple_of(rows),
            "the forward pass was given the tasks of {rows} rows, and a layer sees {all} tokens, which are not equally \
             many for each row"
        );
        Self {
            index: Some(ids.index(rows, tasks, &input.device())),
            rows,
            tokens: all / rows,
        }
    }

    /// How many rows there are; one for all where they are of one task.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The entry of each row's task along the first axis.
    pub(crate) fn select<const D: usize>(&self, of_tasks: Tensor<D>) -> Tensor<D> {
        match &self.index {
            None => of_tasks.narrow(0, 0, 1),
            Some(index) => of_tasks.select(0, index.clone()),
        }
    }

    /// `[rows · tokens, features]` as `[rows, tokens, features]`.
    pub(crate) fn by_rows(&self, flat: Tensor<2>) -> Tensor<3> {
        let features = flat.dims()[1];
        flat.reshape([self.rows, self.tokens, features])
    }

    /// The other way round.
    pub(crate) fn flat(&self, by_rows: Tensor<3>) -> Tensor<2> {
        let features = by_rows.dims()[2];
        by_rows.reshape([self.rows * self.tokens, features])
    }
}
