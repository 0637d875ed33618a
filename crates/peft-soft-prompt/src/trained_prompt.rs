//! Trained prompts as numbers: to start others from.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// A trained prompt: the embeddings of its virtual tokens, as numbers of the host.
///
/// Vu et al. 2022 (*SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer*) start the prompt of a task from
/// one that was trained on another task, and choose that one by how similar the two tasks' prompts are. The target's own
/// prompt, by which to choose, is one that was trained on it for a short time.
///
/// ```
/// use peft_soft_prompt::{PromptTuningConfig, Similarity, TrainedPrompt};
/// # use peft_core::{PeftModule as _, Result};
/// # fn main() -> Result<()> {
/// # let device = peft_core::device::cpu_devices().remove(0).1.autodiff();
/// # let base = peft_conformance::TinyTransformer::new(&device);
/// # let trained = base.attach("reviews", &PromptTuningConfig::new(4))?;
/// # let trained = trained.attach("news", &PromptTuningConfig::new(4))?;
/// # let trained = trained.attach("short", &PromptTuningConfig::new(4))?;
/// // Three adapters on one model: two sources, and a prompt that was trained on the target for a short time.
/// let sources = [TrainedPrompt::of(&trained, "reviews")?, TrainedPrompt::of(&trained, "news")?];
/// let target = TrainedPrompt::of(&trained, "short")?;
/// let ranking = target.most_similar(&sources, Similarity::OfMeans)?;
/// let (nearest, _) = ranking[0];
/// let config = PromptTuningConfig::new(4).with_source(sources[nearest].clone());
/// let model = base.attach("target", &config)?;
/// # assert_eq!(TrainedPrompt::of(&model, "target")?, sources[nearest]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedPrompt {
    /// F32, `[virtual_tokens, d]`.
    pub(crate) embeddings: TensorData,
}

impl TrainedPrompt {
    /// Of embeddings `[virtual_tokens, d]`.
    pub fn of_tensor(embeddings: Tensor<2>) -> Self {
        Self {
            embeddings: embeddings.detach().cast(DType::F32).into_data(),
        }
    }

    /// Number of virtual tokens, and width of their embeddings.
    pub fn dims(&self) -> [usize; 2] {
        let shape = self.embeddings.shape();
        [shape[0], shape[1]]
    }

    /// The embeddings, F32, `[virtual_tokens, d]`.
    pub fn data(&self) -> &TensorData {
        &self.embeddings
    }

    pub(crate) fn tensor(&self, like: (&Device, DType)) -> Tensor<2> {
        Tensor::from_data(self.embeddings.clone(), like)
    }
}
