//! Which task each row of a batch is of.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// The task of each row of a batch, for methods that have parameters of their own for each of several tasks.
///
/// Hugging Face PEFT calls it `task_ids`. It flows with the forward pass:
///
/// ```
/// use peft_core::nn::{ForwardContext, TaskIds};
///
/// // A batch of three rows: the first and the last are of task 0, the one between them of task 2.
/// let context = ForwardContext::new().with_tasks(TaskIds::new([0, 2, 0]));
/// assert_eq!(context.tasks().unwrap().ids(), [0, 2, 0]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskIds(Arc<[usize]>);

impl TaskIds {
    /// The task of each row, counted from 0.
    pub fn new(ids: impl Into<Arc<[usize]>>) -> Self {
        Self(ids.into())
    }

    /// The task of each row.
    pub fn ids(&self) -> &[usize] {
        &self.0
    }

    /// The ids as a tensor `[rows]`, to select by in a table that has a row for each of `tasks` tasks.
    ///
    /// # Panics
    ///
    /// If there is not one id for each of `rows` rows, or if one of them is not below `tasks`.
    pub fn index(&self, rows: usize, tasks: usize, device: &Device) -> Tensor<1, Int> {
        let count = self.0.len();
        assert_eq!(
            count, rows,
            "the forward pass was given the tasks of {count} rows, and the batch has {rows}"
        );
        if let Some(id) = self.0.iter().find(|id| **id >= tasks) {
            panic!("task {id}, and the adapter has {tasks} tasks, counted from 0");
        }
        let ids: Vec<i64> = self.0.iter().map(|id| id.cast_signed() as i64).collect();
        Tensor::from_data(TensorData::new(ids, [count]), device)
    }

    /// The tasks of some rows.
    pub(crate) fn of_rows(&self, rows: &[i64]) -> Self {
        let of_row = |row: &i64| self.0.get(*row as usize).copied();
        Self(rows.iter().filter_map(of_row).collect())
    }
}
