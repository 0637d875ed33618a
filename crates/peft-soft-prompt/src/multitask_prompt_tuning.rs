//! Multitask prompt tuning: a prompt that tasks share, times a matrix of low rank of the row's own task.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{
    Adapter, Common, Layout, Method, MethodConfig as _, Plan, PromptAdapter, Value, config_to_json,
    method_config,
};
use peft_core::nn::{ForwardContext, TaskIds};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};
use serde::{Deserialize, Serialize};

use crate::prompt_init::PromptInit;
use crate::start::Start;
use crate::trained_prompt::TrainedPrompt;
use crate::vocabulary::only_site;

/// The prompts of all tasks.
#[derive(Module, Adapter, Debug)]
pub struct TaskPrompts {
    /// The prompt that they share, `[virtual_tokens, d]`.
    #[tensor(root = "prompt_embeddings")]
    pub embeddings: Param<Tensor<2>>,
    /// The left factor of each task, `[tasks, virtual_tokens, r]`.
    #[tensor(root = "prefix_task_cols")]
    pub cols: Param<Tensor<3>>,
    /// The right factor of each task, `[tasks, r, d]`.
    #[tensor(root = "prefix_task_rows")]
    pub rows: Param<Tensor<3>>,
}

impl TaskPrompts {
    /// How many tasks.
    pub fn tasks(&self) -> usize {
        self.cols.lazy_shape()[0]
    }

    /// The prompts of some tasks, `[tasks.len(), virtual_tokens, d]`.
    ///
    /// # Panics
    ///
    /// If one of them is not below [`tasks`](Self::tasks).
    pub fn of_tasks(&self, tasks: &TaskIds) -> Tensor<3> {
        let (cols, rows) = (self.cols.val(), self.rows.val());
        let index = tasks.index(tasks.ids().len(), self.tasks(), &cols.device());
        let factors = cols.select(0, index.clone()).matmul(rows.select(0, index));
        self.embeddings.val().unsqueeze::<3>() * factors
    }
}

impl PromptAdapter for TaskPrompts {
    fn virtual_tokens(&self) -> usize {
        self.embeddings.lazy_shape()[0]
    }

    fn num_tasks(&self) -> Option<usize> {
        Some(self.tasks())
    }

    /// The prompt that the tasks share, which no row has by itself.
    fn prompt(&self) -> Tensor<2> {
        self.embeddings.val()
    }

    /// # Panics
    ///
    /// If the context has no task for each row, and there are several.
    fn prompts(&self, rows: usize, context: &ForwardContext) -> Tensor<3> {
        let count = self.tasks();
        let Some(tasks) = context.tasks() else {
            assert_eq!(
                count, 1,
                "multitask prompt tuning of {count} tasks, and the forward pass does not say which each row is of: give \
                 `TaskIds` with `ForwardContext::with_tasks`, or with `LmBatch::tasks`"
            );
            return self.of_tasks(&TaskIds::new([0]));
        };
        let given = tasks.ids().len();
        assert_eq!(
            given, rows,
            "the forward pass was given the tasks of {given} rows, and the batch has {rows}"
        );
        self.of_tasks(tasks)
    }
}

/// Where the prompts start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum MultitaskPromptInit {
    /// The shared prompt normal with mean 0 and standard deviation 1, the factors with 0.02.
    #[default]
    Random,
    /// The shared prompt from the embeddings of tokens that are drawn from the vocabulary, the factors as with `Random`.
    SampleVocab,
    /// The shared prompt from the embeddings of a text's tokens, the factors as with `Random`.
    Text,
    /// From a trained adapter: its shared prompt, and for each task the mean of its tasks' factors.
    AverageSourceTasks,
    /// From a trained adapter: its shared prompt, and for each task the factors of one of its tasks.
    ExactSourceTask,
    /// From a trained adapter: its shared prompt. The factors as with `Random`.
    OnlySourceShared,
}

impl MultitaskPromptInit {
    fn needs_source(self) -> bool {
        matches!(
            self,
            Self::AverageSourceTasks | Self::ExactSourceTask | Self::OnlySourceShared
        )
    }

    /// Of the shared prompt, where there is no source.
    fn of_shared(self) -> PromptInit {
        match self {
            Self::SampleVocab => PromptInit::SampleVocab,
            Self::Text => PromptInit::Text,
            _ => PromptInit::Random,
        }
    }
}

/// A trained adapter of multitask prompt tuning, to start another from.
#[derive(Clone, Debug, PartialEq)]
pub struct MultitaskSource {
    shared: TrainedPrompt,
    /// `[tasks, virtual_tokens, r]`.
    cols: TensorData,
    /// `[tasks, r, d]`.
    rows: TensorData,
}

impl MultitaskSource {
    /// The adapter that is on `model` under this name. To start from a file, load it onto the model first.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Config`] if it is of another method.
    pub fn of<M: PeftModule>(model: &M, adapter: &str) -> Result<Self> {
        let states = model.adapter_states::<TaskPrompts>(adapter)?;
        let Some((_, state)) = states.first() else {
            let expected = "the name of an adapter of multitask prompt tuning";
            return Err(refuse("source", adapter, expected));
        };
        Ok(Self {
            shared: TrainedPrompt::of_tensor(state.embeddings.val()),
            cols: state.cols.val().into_data(),
            rows: state.rows.val().into_data(),
        })
    }

    fn tasks(&self) -> usize {
        self.cols.shape()[0]
    }
}

/// Multitask prompt tuning's configuration. Fields are called as in Hugging Face PEFT's
/// `MultitaskPromptTuningConfig`.
#[method_config(
    MULTITASK_PROMPT_TUNING, peft_type = "MULTITASK_PROMPT_TUNING", title = "Multitask prompt tuning",
    family = SoftPrompt, new(num_virtual_tokens, num_tasks), to_json = MultitaskPromptTuningConfig::json,
    reference = "Wang et al. 2023, Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning, section 3.2"
)]
pub struct MultitaskPromptTuningConfig {
    /// How many virtual tokens. Default: 10. At least 1; each takes one of the model's positions.
    #[field(default = 10, at_least = 1)]
    pub num_virtual_tokens: usize,
    /// How many tasks. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub num_tasks: usize,
    /// Rank of a task's matrix. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub num_ranks: usize,
    /// Initial values. Default: random.
    pub prompt_tuning_init: MultitaskPromptInit,
    /// The source's task, for [`MultitaskPromptInit::ExactSourceTask`], counted from 0. Default: 0.
    #[field(any)]
    pub prompt_tuning_init_task: usize,
    /// The text for [`MultitaskPromptInit::Text`].
    pub prompt_tuning_init_text: Option<String>,
    /// The text's token ids, without special tokens; not stored.
    #[field(skip)]
    pub init_token_ids: Vec<u32>,
    /// The adapter to start from; not stored.
    #[field(skip)]
    pub source: Option<MultitaskSource>,
    /// Width of the embeddings; recorded when attached.
    #[field(any)]
    pub token_dim: Option<usize>,
    /// Encoders or decoders with a prompt; recorded when attached, always 1.
    #[field(any)]
    pub num_transformer_submodules: Option<usize>,
    /// Fields that every method has.
    pub common: Common,
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(MULTITASK_PROMPT_TUNING.title, field, value, expected)
}

/// Standard deviation of fresh factors.
const FACTORS: f64 = 0.02;

impl MultitaskPromptTuningConfig {
    // Upstream wants the source's file, or a tokenizer, again; trained values need neither.
    fn json(&self) -> Value {
        let stored = self
            .clone()
            .with_prompt_tuning_init(MultitaskPromptInit::Random);
        config_to_json(&stored, &MULTITASK_PROMPT_TUNING)
    }

    /// Starts the shared prompt from the embeddings of `text`, whose `token_ids` the model's tokenizer gives (without
    /// special tokens).
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>, token_ids: impl Into<Vec<u32>>) -> Self {
        self.prompt_tuning_init = MultitaskPromptInit::Text;
        self.prompt_tuning_init_text = Some(text.into());
        self.init_token_ids = token_ids.into();
        self
    }

    /// Starts every task from the mean of the factors of `source`'s tasks, and from its shared prompt.
    #[must_use]
    pub fn with_average_of(mut self, source: MultitaskSource) -> Self {
        self.prompt_tuning_init = MultitaskPromptInit::AverageSourceTasks;
        self.source = Some(source);
        self
    }

    /// Starts every task from the factors of one of `source`'s tasks, counted from 0, and from its shared prompt.
    #[must_use]
    pub fn with_task_of(mut self, source: MultitaskSource, task: usize) -> Self {
        self.prompt_tuning_init = MultitaskPromptInit::ExactSourceTask;
        self.prompt_tuning_init_task = task;
        self.source = Some(source);
        self
    }

    /// Starts from the shared prompt of `source`, with fresh factors.
    #[must_use]
    pub fn with_shared_of(mut self, source: MultitaskSource) -> Self {
        self.prompt_tuning_init = MultitaskPromptInit::OnlySourceShared;
        self.source = Some(source);
        self
    }

    /// The source, where the initial values ask for one.
    fn used_source(&self) -> Result<Option<&MultitaskSource>> {
        let init = self.prompt_tuning_init;
        if !init.needs_source() {
            return Ok(None);
        }
        let source = self.source.as_ref().ok_or_else(|| {
            let expected = "a source: load the trained adapter onto the model, and give `MultitaskSource::of` of it \
                            with `with_average_of`, `with_task_of` or `with_shared_of`. A path in \
                            `prompt_tuning_init_state_dict_path` is not read";
            refuse("prompt_tuning_init", init, expected)
        })?;
        if init == MultitaskPromptInit::OnlySourceShared {
            return Ok(Some(source));
        }
        let (ranks, task) = (source.cols.shape()[2], self.prompt_tuning_init_task);
        if ranks != self.num_ranks {
            let expected = format!("{ranks}, the source's rank");
            return Err(refuse("num_ranks", self.num_ranks, &expected));
        }
        if init == MultitaskPromptInit::ExactSourceTask && task >= source.tasks() {
            let expected = format!("below {}, the number of the source's tasks", source.tasks());
            return Err(refuse("prompt_tuning_init_task", task, &expected));
        }
        Ok(Some(source))
    }

    /// What every task starts with, of the factors `[tasks, …]` of a source's tasks; `None` for fresh ones.
    fn of_source(&self, factors: &TensorData, plan: &Plan, layout: &Layout) -> Option<Tensor<3>> {
        if !plan.is_new() {
            return None;
        }
        let (device, dtype) = layout.like();
        let factors = Tensor::<3>::from_data(factors.clone(), (&device, dtype));
        let one = match self.prompt_tuning_init {
            MultitaskPromptInit::AverageSourceTasks => factors.mean_dim(0),
            MultitaskPromptInit::ExactSourceTask => {
                factors.narrow(0, self.prompt_tuning_init_task, 1)
            }
            _ => return None,
        };
        Some(one.repeat_dim(0, self.num_tasks))
    }
}

impl Method for MultitaskPromptTuningConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let submodules = self.num_transformer_submodules;
        if submodules.is_some_and(|count| count != 1) {
            let expected = "1: prompts of encoder and decoder together are not supported";
            return Err(refuse("num_transformer_submodules", submodules, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let (tokens, tasks, ranks) = (self.num_virtual_tokens, self.num_tasks, self.num_ranks);
        let site = only_site(layout, &MULTITASK_PROMPT_TUNING, tokens)?;
        let source = if plan.is_new() {
            self.used_source()?
        } else {
            None
        };
        let start = Start {
            method: &MULTITASK_PROMPT_TUNING,
            init: self.prompt_tuning_init.of_shared(),
            token_ids: &self.init_token_ids,
            source: source.map(|source| &source.shared),
            tokens,
        };
        let embeddings = start.draw(&site, layout, plan)?;
        let (device, dtype) = layout.like();
        let mut factors = |shape, of: fn(&MultitaskSource) -> &TensorData| {
            let given = source.and_then(|source| self.of_source(of(source), plan, layout));
            match given {
                Some(given) => Param::from_tensor(given),
                None => plan.init().normal(shape, FACTORS, (&device, dtype)),
            }
        };
        let cols = factors([tasks, tokens, ranks], |source| &source.cols);
        let rows = factors([tasks, ranks, site.width], |source| &source.rows);
        let state = TaskPrompts {
            embeddings,
            cols,
            rows,
        };
        plan.set_config_field("token_dim", site.width);
        plan.set_config_field("num_transformer_submodules", 1);
        plan.add_prompt(site, state);
        Ok(())
    }
}
