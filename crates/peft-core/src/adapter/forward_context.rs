//! What flows with a forward pass, besides the activations.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use burn::tensor::{Bool, Int, Tensor};
use peft_ops::Segments;

use crate::adapter::handed_on::{Lane, Memory, Pass};
use crate::adapter::routing::Routing;
use crate::adapter::task_ids::TaskIds;

/// What the layers and sites of one forward pass share: where the tokens are, which of them are padding, which see which,
/// and how much of which adapter each row or token gets.
///
/// A model makes one in its `forward` and passes it to
/// [`adapted_in`](crate::nn::AdaptedForward::adapted_in) and to its [`Site`](crate::nn::Site)s. Everything in it is
/// optional: an adapter that needs what a model does not say has to do without, or panics with a message that names
/// what is missing.
///
/// ```
/// use burn::prelude::*;
/// use peft_core::nn::{ForwardContext, Routing};
///
/// let device = Device::default();
/// let weights = Tensor::<2>::from_data([[0.9, 0.1], [0.0, 1.0]], &device);
/// let context = ForwardContext::new()
///     .with_positions(1, [0, 1, 2])
///     .with_routing(Routing::per_row(["chat", "code"], weights));
/// assert!(context.padding().is_none());
/// ```
#[derive(Clone, Default)]
pub struct ForwardContext {
    token_ids: Option<Tensor<2, Int>>,
    positions: Option<Positions>,
    padding: Option<Tensor<2, Bool>>,
    virtual_tokens: usize,
    first_token: usize,
    causal: bool,
    segments: Option<Segments>,
    cached_tokens: usize,
    routing: Option<Routing>,
    tasks: Option<TaskIds>,
    rows: Option<Tensor<1, Int>>,
    values: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
    pass: Pass,
    memory: Option<Arc<Memory>>,
}

/// Positions, row after row.
#[derive(Clone, Debug)]
struct Positions {
    values: Arc<[usize]>,
    /// How many rows have positions of their own; 1 where all rows have the same.
    rows: usize,
}

impl ForwardContext {
    /// An empty context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which tokens the pass is of: the ids `[batch, seq]` that the model was called with, without virtual tokens.
    #[must_use]
    pub fn with_token_ids(mut self, ids: Tensor<2, Int>) -> Self {
        self.token_ids = Some(ids);
        self
    }

    /// Sets the position of each token in its text, row after row, of `rows` rows; 1 where all rows have the same
    /// positions.
    ///
    /// # Panics
    ///
    /// If the rows do not have equally many positions, at least one each.
    #[must_use]
    pub fn with_positions(mut self, rows: usize, positions: impl Into<Arc<[usize]>>) -> Self {
        let values = positions.into();
        assert!(
            rows > 0 && values.len() >= rows && values.len() % rows == 0,
            "{} positions are not equally many for each of {rows} rows",
            values.len()
        );
        self.positions = Some(Positions { values, rows });
        self
    }

    /// Sets which tokens only fill up their row: `[batch, seq]`, true where padded.
    #[must_use]
    pub fn with_padding(mut self, padding: Option<Tensor<2, Bool>>) -> Self {
        self.padding = padding;
        self
    }

    /// Sets how many of the leading positions of every row are virtual tokens. Default: 0.
    #[must_use]
    pub fn with_virtual_tokens(mut self, count: usize) -> Self {
        self.virtual_tokens = count;
        self
    }

    /// Says that a token sees no later ones. Default: each token sees all of its row.
    #[must_use]
    pub fn with_causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Sets the documents of the last tokens of each row, of which each sees itself only. Default: a row is one document.
    #[must_use]
    pub fn with_segments(mut self, segments: Option<Segments>) -> Self {
        self.segments = segments;
        self
    }

    /// Sets what adapters keep of the text that this pass goes on with. Default: the pass sees all of its text.
    #[must_use]
    pub fn with_memory(mut self, memory: &Memory) -> Self {
        self.memory = Some(Arc::new(memory.shared()));
        self
    }

    /// Sets how many tokens of every row came in earlier passes, and are in a cache now. Default: 0.
    #[must_use]
    pub fn with_cached_tokens(mut self, count: usize) -> Self {
        self.cached_tokens = count;
        self
    }

    /// Sets the weights of adapters for
    /// [`Composition::Routed`](crate::Composition::Routed).
    #[must_use]
    pub fn with_routing(mut self, routing: Routing) -> Self {
        self.routing = Some(routing);
        self
    }

    /// Sets the task of each row.
    #[must_use]
    pub fn with_tasks(mut self, tasks: TaskIds) -> Self {
        self.tasks = Some(tasks);
        self
    }

    /// Adds a value of a method's own, found again by its type.
    #[must_use]
    pub fn with_value<T: Any + Send + Sync>(mut self, value: T) -> Self {
        self.values.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// Which tokens the pass is of, `[batch, seq]`, without virtual tokens. With a cache, these are the new ones.
    pub fn token_ids(&self) -> Option<Tensor<2, Int>> {
        self.token_ids.clone()
    }

    /// The positions of the tokens of row `row` of the batch in their text.
    pub fn positions(&self, row: usize) -> Option<&[usize]> {
        let Positions { values, rows } = self.positions.as_ref()?;
        let row = if *rows == 1 { 0 } else { row };
        values.chunks(values.len() / rows).nth(row)
    }

    /// Which tokens only fill up their row: `[batch, seq]`, true where padded.
    pub fn padding(&self) -> Option<Tensor<2, Bool>> {
        self.padding.clone()
    }

    /// How many of the leading positions of every row are virtual tokens.
    pub fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    /// The place of the token that stands for its text where the first one does: 0, which is a virtual token where there are
    /// any in front, as Hugging Face PEFT has it; the text's own first token where these stand behind it.
    pub fn first_token(&self) -> usize {
        self.first_token
    }

    /// Whether a token sees no later ones.
    pub fn is_causal(&self) -> bool {
        self.causal
    }

    /// The documents of the last tokens of each row, where some must not see all others.
    pub fn segments(&self) -> Option<Segments> {
        self.segments.clone()
    }

    /// What adapters keep of the text from pass to pass; none where the pass sees all of its text.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_deref()
    }

    /// Hands a value on to the adapter's place that runs next in this pass, in the place of what was handed on before. A
    /// clone of the context is for another pass.
    pub fn hand_on<T: Any + Clone + Send + Sync>(&self, lane: &Lane, value: T) {
        self.pass.put(lane, value);
    }

    /// Takes what the adapter's place before has handed on in this pass, if it is of this type.
    pub fn handed_on<T: Any>(&self, lane: &Lane) -> Option<T> {
        self.pass.take(lane)
    }

    /// Whether some adapter has handed a value on in this pass. Then a layer cannot run again by itself.
    pub fn hands_on(&self) -> bool {
        self.pass.is_used()
    }

    /// Asks the model to score a state `[batch, seq, d]` as well, in training: its loss, as the head gives it of this state in
    /// place of the last one, is added `weight` times. Only models that say so do it, as a Llama in its own loss. The state
    /// is as long as the pass's stream.
    pub fn score_too(&self, state: Tensor<3>, weight: f64) {
        self.pass.score_too(state, weight);
    }

    /// Takes what adapters want scored, with the weights: for a model that computes its own loss.
    pub fn take_scored(&self) -> Vec<(Tensor<3>, f64)> {
        self.pass.take_scored()
    }

    /// How many tokens of every row came in earlier passes: of a text that is generated with a cache, all but the new ones.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    /// The weights of adapters.
    pub fn routing(&self) -> Option<&Routing> {
        self.routing.as_ref()
    }

    /// The task of each row.
    pub fn tasks(&self) -> Option<&TaskIds> {
        self.tasks.as_ref()
    }

    /// Which rows of the batch an adapter sees, where it sees only some of them, because others have another adapter.
    pub fn rows(&self) -> Option<Tensor<1, Int>> {
        self.rows.clone()
    }

    /// The value of this type that the model's caller added, of all rows of the batch.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>())?.downcast_ref()
    }

    /// The context with `count` virtual tokens more in front of each of `batch` rows. They are no padding, and have
    /// position 0 where positions are known.
    pub(crate) fn with_tokens_in_front(mut self, batch: usize, count: usize) -> Self {
        self.virtual_tokens += count;
        self.first_token = 0;
        self.padding = self.padding.map(|padding| {
            let kept = Tensor::<2, Bool>::full([batch, count], false, &padding.device());
            Tensor::cat(vec![kept, padding], 1)
        });
        self.positions = self.positions.map(|Positions { values, rows }| {
            let of_row = |row: &[usize]| [&vec![0; count], row].concat();
            let values = values.chunks(values.len() / rows).flat_map(of_row);
            Positions {
                values: values.collect(),
                rows,
            }
        });
        self
    }

    /// The context where the virtual tokens that are in front stand behind the text's first token.
    pub(crate) fn with_text_first(mut self) -> Self {
        self.first_token = self.virtual_tokens;
        self
    }

    /// The context of the last `count` of the pass's `of` tokens: for what a model goes on with, as a head that needs no
    /// others.
    ///
    /// # Panics
    ///
    /// If `count` is above `of`.
    #[must_use]
    pub fn of_last_tokens(&self, count: usize, of: usize) -> Self {
        assert!(count <= of, "{count} tokens are not the last of {of}");
        let mut last = self.clone();
        if count == of {
            return last;
        }
        last.virtual_tokens = self.virtual_tokens.saturating_sub(of - count);
        last.first_token = self.first_token.saturating_sub(of - count);
        last.padding = last
            .padding
            .map(|padding| padding.narrow(1, of - count, count));
        last.segments = None;
        last.routing = last.routing.map(|routing| routing.of_last_tokens(count));
        last.positions = last.positions.map(|Positions { values, rows }| {
            let of_row = |row: &[usize]| row[row.len() - count..].to_vec();
            let values = values.chunks(values.len() / rows).flat_map(of_row);
            Positions {
                values: values.collect(),
                rows,
            }
        });
        last
    }

    /// The context of the `count` tokens from `from` on, of the pass's `of`: of a part of each row.
    pub(crate) fn of_tokens(&self, from: usize, count: usize, of: usize) -> Self {
        let mut part = self.of_last_tokens(of - from, of);
        part.virtual_tokens = part.virtual_tokens.min(count);
        part.padding = part.padding.map(|padding| padding.narrow(1, 0, count));
        part.segments = None;
        part.positions = part.positions.map(|Positions { values, rows }| {
            let of_row = |row: &[usize]| row[..count.min(row.len())].to_vec();
            let values = values.chunks(values.len() / rows).flat_map(of_row);
            Positions {
                values: values.collect(),
                rows,
            }
        });
        part
    }

    /// The context of some rows of the batch.
    pub(crate) fn of_rows(&self, rows: &[i64], index: &Tensor<1, Int>) -> Self {
        let positions = self.positions.clone().map(|all| match all.rows {
            1 => all,
            _ => Positions {
                values: rows
                    .iter()
                    .filter_map(|row| self.positions(*row as usize))
                    .flatten()
                    .copied()
                    .collect(),
                rows: rows.len(),
            },
        });
        let padding = self.padding.clone();
        let ids = self.token_ids.clone();
        Self {
            token_ids: ids.map(|ids| ids.select(0, index.clone())),
            positions,
            padding: padding.map(|padding| padding.select(0, index.clone())),
            virtual_tokens: self.virtual_tokens,
            first_token: self.first_token,
            causal: self.causal,
            segments: self.segments.as_ref().map(|all| all.of_rows(rows)),
            cached_tokens: self.cached_tokens,
            routing: None,
            tasks: self.tasks.as_ref().map(|tasks| tasks.of_rows(rows)),
            rows: Some(index.clone()),
            values: self.values.clone(),
            pass: self.pass.shared(),
            memory: self.memory.clone(),
        }
    }
}

impl fmt::Debug for ForwardContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardContext")
            .field("token_ids", &self.token_ids.as_ref().map(Tensor::dims))
            .field(
                "positions",
                &self.positions.as_ref().map(|all| all.values.len()),
            )
            .field("padding", &self.padding.as_ref().map(Tensor::dims))
            .field("virtual_tokens", &self.virtual_tokens)
            .field("causal", &self.causal)
            .field("memory", &self.memory)
            .field("cached_tokens", &self.cached_tokens)
            .field("routing", &self.routing)
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}
