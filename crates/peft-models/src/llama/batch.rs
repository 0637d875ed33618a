//! A batch of token sequences and their targets.

use burn::tensor::{Bool, Device, Tensor, TensorData};
use peft_core::nn::{ForwardContext, TaskIds};
use peft_core::ops::Segments;

/// A batch for [`Llama::loss`](super::Llama::loss): rows of equally many tokens, filled up where a text is
/// shorter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LmBatch {
    /// Token ids, row after row: `rows * length` of them.
    pub ids: Vec<u32>,
    /// What shall follow each token, negative (upstream's -100) where nothing is to be learnt; as long as
    /// `ids`. `targets[i]` is the token after `ids[i]`: shifted already.
    pub targets: Vec<i64>,
    /// The document that each token is of, where rows hold several: each sees itself only, and counts its
    /// positions from 0. As long as `ids`.
    pub segments: Option<Vec<u32>>,
    /// The task of each row, for adapters that have several; none where no adapter asks.
    pub tasks: Option<TaskIds>,
    /// True where a token only fills up its row; as long as `ids`, or empty where there is none.
    pub padding: Vec<bool>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens of a row.
    pub length: usize,
}

impl LmBatch {
    /// A batch of one text, each token the target of the one before.
    pub fn of_text(ids: &[u32]) -> Self {
        let next = ids.iter().skip(1).map(|id| i64::from(*id));
        Self {
            ids: ids.to_vec(),
            targets: next.chain([-100]).take(ids.len()).collect(),
            rows: 1,
            length: ids.len(),
            ..Self::default()
        }
    }

    /// How many tokens are to be learnt.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }

    /// What adapters see of the batch.
    pub(super) fn context(&self, device: &Device) -> ForwardContext {
        let padding = self.padding.contains(&true).then(|| {
            let data = TensorData::new(self.padding.clone(), [self.rows, self.length]);
            Tensor::<2, Bool>::from_data(data, device)
        });
        let context = ForwardContext::new().with_padding(padding);
        match &self.tasks {
            Some(tasks) => context.with_tasks(tasks.clone()),
            None => context,
        }
    }

    /// # Panics
    ///
    /// If the parts do not fit each other or the vocabulary.
    pub(super) fn check(&self, vocab: usize) {
        let count = self.rows * self.length;
        assert!(
            self.ids.len() == count
                && self.targets.len() == count
                && self
                    .segments
                    .as_ref()
                    .is_none_or(|segments| segments.len() == count)
                && (self.padding.is_empty() || self.padding.len() == count),
            "a batch of {} rows of {} has {} ids, {} targets, {} marks of padding",
            self.rows,
            self.length,
            self.ids.len(),
            self.targets.len(),
            self.padding.len(),
        );
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocab) {
            panic!("token {id}, and the model knows {vocab}");
        }
    }

    /// Positions of all tokens, row after row, with `prompt` virtual tokens in front of each row. Padding before the
    /// text does not count if `follows`: the text follows virtual tokens.
    pub(super) fn positions(&self, prompt: usize, follows: bool) -> Vec<usize> {
        let skips = follows && !self.padding.is_empty();
        let mut positions = Vec::with_capacity(self.rows * (prompt + self.length));
        for row in 0..self.rows {
            positions.extend(0..prompt);
            let mut next = prompt;
            let mut before = skips;
            for at in row * self.length..(row + 1) * self.length {
                if let Some(segments) = &self.segments
                    && at > row * self.length
                    && segments[at] != segments[at - 1]
                {
                    next = prompt;
                }
                positions.push(next);
                before = before && self.padding[at];
                next += usize::from(!before);
            }
        }
        positions
    }

    /// The document of each token, where some must not see all tokens before them. Virtual tokens in front are
    /// seen by all.
    pub(super) fn visible(&self) -> Option<Segments> {
        let rows = |row: usize| row * self.length..(row + 1) * self.length;
        // At the end of a row padding is after everything that could see it.
        let padded = !self.padding.is_empty()
            && (0..self.rows).any(|row| {
                self.padding[rows(row)]
                    .windows(2)
                    .any(|two| two[0] && !two[1])
            });
        let several = self.segments.as_ref().is_some_and(|segments| {
            (0..self.rows).any(|row| segments[rows(row)].windows(2).any(|two| two[0] != two[1]))
        });
        if !padded && !several {
            return None;
        }
        let ids = (0..self.rows * self.length).map(|at| {
            let filler = padded && self.padding[at];
            let segment = self.segments.as_ref().map_or(0, |segments| segments[at]);
            (!filler).then_some(segment)
        });
        Some(Segments::new(ids, self.length))
    }
}
