//! Trained prompts of adapters, their mixtures, and how similar they are (SPoT).

use burn::tensor::{Tensor, TensorData};
use peft_core::method::{Adapter, PromptAdapter};
use peft_core::nn::TaskIds;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use crate::cpt::ContextPrompt;
use crate::intrinsic_prompt::IntrinsicPrompt;
use crate::multitask_prompt_tuning::TaskPrompts;
use crate::p_tuning::EncodedPrompt;
use crate::prompt_tuning::{PROMPT_TUNING, SoftPrompt};
use crate::trained_prompt::TrainedPrompt;

/// How the similarity of two prompts is measured (Vu et al. 2022).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Similarity {
    /// The cosine of the means of their tokens.
    OfMeans,
    /// The mean of the cosines of all pairs of a token of one and a token of the other.
    OfPairs,
}

impl TrainedPrompt {
    /// The prompt of the adapter that is on `model` under this name: of prompt tuning, P-tuning, CPT or an intrinsic
    /// prompt, as its file would hold it. To have that of a file, load it onto the model first.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Config`] if it is of another method: of multitask prompt tuning see
    /// [`of_task`](Self::of_task).
    pub fn of<M: PeftModule>(model: &M, adapter: &str) -> Result<Self> {
        let found = [
            prompt_of::<M, SoftPrompt>,
            prompt_of::<M, EncodedPrompt>,
            prompt_of::<M, ContextPrompt>,
            prompt_of::<M, IntrinsicPrompt>,
        ];
        for prompt in found {
            if let Some(prompt) = prompt(model, adapter)? {
                return Ok(Self::of_tensor(prompt));
            }
        }
        let expected = "the name of an adapter with one prompt for all tasks: of prompt tuning, P-tuning, CPT or an \
                        intrinsic prompt";
        Err(refuse("source", adapter, expected))
    }

    /// The prompt of one task, counted from 0, of an adapter of multitask prompt tuning.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`]; [`Error::Config`] if it is of another method or has no such task.
    pub fn of_task<M: PeftModule>(model: &M, adapter: &str, task: usize) -> Result<Self> {
        let states = model.adapter_states::<TaskPrompts>(adapter)?;
        let Some((_, state)) = states.first() else {
            let expected = "the name of an adapter of multitask prompt tuning";
            return Err(refuse("source", adapter, expected));
        };
        let tasks = state.tasks();
        if task >= tasks {
            let expected = format!("below {tasks}, the number of tasks");
            return Err(refuse("task", task, &expected));
        }
        let prompts = state.of_tasks(&TaskIds::new([task]));
        Ok(Self::of_tensor(prompts.squeeze_dim(0)))
    }

    /// The sum of prompts, each times its weight: Vu et al. 2022 mix those of the most similar tasks, with
    /// their similarities over the sum of these as weights.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is none, or if they are not of one shape.
    pub fn mixture(prompts: &[(&Self, f64)]) -> Result<Self> {
        let Some((first, _)) = prompts.first() else {
            return Err(refuse("prompts", "empty", "at least one prompt"));
        };
        let dims = first.dims();
        let mut sum = vec![0.0_f64; dims[0] * dims[1]];
        for (prompt, weight) in prompts {
            first.check_shape(prompt)?;
            for (sum, value) in sum.iter_mut().zip(prompt.embeddings.iter::<f64>()) {
                *sum += weight * value;
            }
        }
        let sum: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        Ok(Self {
            embeddings: TensorData::new(sum, dims),
        })
    }

    /// How similar two prompts are, from -1 to 1. The numbers of their tokens may differ.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if their tokens are not of one width.
    pub fn similarity(&self, other: &Self, similarity: Similarity) -> Result<f64> {
        let ([_, width], [_, found]) = (self.dims(), other.dims());
        if width != found {
            let expected = format!("a prompt of width {width}");
            return Err(refuse("source", other.dims(), &expected));
        }
        let (ours, theirs) = (self.tokens(), other.tokens());
        Ok(match similarity {
            Similarity::OfMeans => cosine(&mean(&ours, width), &mean(&theirs, width)),
            Similarity::OfPairs => {
                // The mean of all products of unit vectors is the product of their means.
                let unit = |tokens: &[Vec<f64>]| -> Vec<Vec<f64>> {
                    tokens.iter().map(|token| normalised(token)).collect()
                };
                dot(&mean(&unit(&ours), width), &mean(&unit(&theirs), width))
            }
        })
    }

    /// Which of `sources` are most similar to this prompt: indices and similarities, the most similar first.
    ///
    /// # Errors
    ///
    /// As [`similarity`](Self::similarity).
    pub fn most_similar(
        &self,
        sources: &[Self],
        similarity: Similarity,
    ) -> Result<Vec<(usize, f64)>> {
        let all = sources.iter().enumerate();
        let all = all.map(|(at, source)| Ok((at, self.similarity(source, similarity)?)));
        let mut all = all.collect::<Result<Vec<_>>>()?;
        all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Ok(all)
    }

    fn tokens(&self) -> Vec<Vec<f64>> {
        let values: Vec<f64> = self.embeddings.iter().collect();
        let tokens = values.chunks(self.dims()[1]);
        tokens.map(<[f64]>::to_vec).collect()
    }

    fn check_shape(&self, other: &Self) -> Result<()> {
        let (expected, found) = (self.dims(), other.dims());
        if expected == found {
            return Ok(());
        }
        let expected = format!("{expected:?} as the first prompt");
        Err(refuse("prompts", found, &expected))
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(PROMPT_TUNING.title, field, value, expected)
}

/// The prompt of an adapter whose state is of type `A`, without dropout.
fn prompt_of<M: PeftModule, A: Adapter + PromptAdapter>(
    model: &M,
    adapter: &str,
) -> Result<Option<Tensor<2>>> {
    let states = model.adapter_states::<A>(adapter)?;
    Ok(states.first().map(|(_, state)| state.valid().prompt()))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// 0 where one of them is 0.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(&normalised(a), &normalised(b))
}

/// The vector with length 1; zeros stay.
fn normalised(vector: &[f64]) -> Vec<f64> {
    let norm = dot(vector, vector).sqrt();
    let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    vector.iter().map(|value| value * scale).collect()
}

fn mean(tokens: &[Vec<f64>], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for token in tokens {
        for (mean, value) in mean.iter_mut().zip(token) {
            *mean += value / tokens.len() as f64;
        }
    }
    mean
}
