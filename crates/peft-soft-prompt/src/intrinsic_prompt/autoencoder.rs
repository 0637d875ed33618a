//! The space that the prompts of several tasks have in common: an auto-encoder of them.

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::Init;
use peft_core::{Error, Result};

use super::config::INTRINSIC_PROMPT;
use super::decoder::{PromptDecoder, decoded};
use crate::prompt_encoder::MlpLayer;
use crate::trained_prompt::TrainedPrompt;

/// How an auto-encoder is fitted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FitConfig {
    /// Dimensions of the space. At least 1.
    pub intrinsic_dim: usize,
    /// Width inside the decoder. At least 1. Default: that of the embeddings.
    pub hidden_size: Option<usize>,
    /// Steps of Adam, each over all prompts. Default: 2000.
    pub steps: usize,
    /// Adam's learning rate. Default: 1e-3. Above 0.
    pub learning_rate: f64,
    /// α: how much the tasks' losses count beside the distance of the prompts, where there are any. Default: 1. At least
    /// 0.
    pub task_weight: f64,
    /// Decides the initial weights. Default: 0.
    pub seed: u64,
}

impl FitConfig {
    /// With defaults for all but the dimensions of the space.
    pub fn new(intrinsic_dim: usize) -> Self {
        Self {
            intrinsic_dim,
            hidden_size: None,
            steps: 2000,
            learning_rate: 1e-3,
            task_weight: 1.0,
            seed: 0,
        }
    }

    /// Sets [`hidden_size`](Self::hidden_size).
    #[must_use]
    pub fn with_hidden_size(mut self, hidden_size: usize) -> Self {
        self.hidden_size = Some(hidden_size);
        self
    }

    /// Sets [`steps`](Self::steps).
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets [`learning_rate`](Self::learning_rate).
    #[must_use]
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets [`task_weight`](Self::task_weight).
    #[must_use]
    pub fn with_task_weight(mut self, task_weight: f64) -> Self {
        self.task_weight = task_weight;
        self
    }

    /// Sets [`seed`](Self::seed).
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<()> {
        if self.intrinsic_dim == 0 {
            return Err(refuse("intrinsic_dim", 0, "at least 1"));
        }
        if self.hidden_size == Some(0) {
            return Err(refuse("hidden_size", 0, "at least 1"));
        }
        for (field, value, fits, expected) in [
            (
                "learning_rate",
                self.learning_rate,
                self.learning_rate > 0.0,
                "above 0",
            ),
            (
                "task_weight",
                self.task_weight,
                self.task_weight >= 0.0,
                "at least 0",
            ),
        ] {
            if !(fits && value.is_finite()) {
                return Err(refuse(field, value, expected));
            }
        }
        Ok(())
    }
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: &str) -> Error {
    Error::config(INTRINSIC_PROMPT.title, field, value, expected)
}

/// An auto-encoder of prompts (Qin et al. 2021, multi-task subspace finding): one linear layer to the space, and the [`PromptDecoder`] back.
///
/// Fit it to prompts of several tasks; a further task is then trained in its space, by
/// [`IntrinsicPromptConfig::of_decoder`](super::IntrinsicPromptConfig::of_decoder).
///
/// ```
/// use peft_core::{PeftModule as _, Result};
/// use peft_soft_prompt::{FitConfig, IntrinsicPromptConfig, PromptAutoencoder, TrainedPrompt};
/// # use peft_conformance::TinyTransformer;
/// # use peft_soft_prompt::PromptTuningConfig;
/// # fn main() -> Result<()> {
/// # let device = peft_core::device::cpu_devices().remove(0).1.autodiff();
/// # let base = TinyTransformer::new(&device);
/// # let mut model = base.clone();
/// # for name in ["reviews", "news", "letters"] {
/// #     model = model.attach(name, &PromptTuningConfig::new(2))?;
/// # }
///
/// // Three prompts that were trained on three tasks.
/// let prompts = ["reviews", "news", "letters"].map(|name| TrainedPrompt::of(&model, name));
/// let prompts = prompts.into_iter().collect::<Result<Vec<_>>>()?;
/// let config = FitConfig::new(3).with_steps(20);
/// let autoencoder = PromptAutoencoder::fit(&prompts, &config, &device)?;
///
/// // A fourth task trains three numbers, from where the prompt of the first one is.
/// let start = autoencoder.encode(&prompts[0])?;
/// let config = IntrinsicPromptConfig::of_decoder(autoencoder.decoder()).with_start(start);
/// let model = base.attach("fourth", &config)?;
/// assert_eq!(model.counts().trainable, 3);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct PromptAutoencoder {
    encoder: MlpLayer,
    inner: MlpLayer,
    outer: MlpLayer,
    tokens: usize,
}

impl PromptAutoencoder {
    /// Fits to prompts: the mean square of what is between them and what is decoded of them becomes small. It is computed
    /// on `device`, in F32.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is no prompt, if they are not of one shape, or if `config` is out of range.
    pub fn fit(prompts: &[TrainedPrompt], config: &FitConfig, device: &Device) -> Result<Self> {
        Self::fitted(prompts, config, device, None)
    }

    /// As [`fit`](Self::fit), and the decoded prompts shall do their tasks as well: added is α times the mean of
    /// `task_loss(i, Pᵢ)`, the loss of task i under the decoded prompt Pᵢ, `[tokens, d]`, on the autodiff side of
    /// `device`. Gradients flow into the prompt.
    ///
    /// # Errors
    ///
    /// As `fit`.
    pub fn fit_with_tasks(
        prompts: &[TrainedPrompt],
        config: &FitConfig,
        device: &Device,
        mut task_loss: impl FnMut(usize, Tensor<2>) -> Tensor<1>,
    ) -> Result<Self> {
        Self::fitted(prompts, config, device, Some(&mut task_loss))
    }

    fn fitted(
        prompts: &[TrainedPrompt],
        config: &FitConfig,
        device: &Device,
        mut task_loss: Option<&mut dyn FnMut(usize, Tensor<2>) -> Tensor<1>>,
    ) -> Result<Self> {
        config.check()?;
        let Some(first) = prompts.first() else {
            return Err(refuse("prompts", "empty", "at least one prompt"));
        };
        let [tokens, width] = first.dims();
        if let Some(other) = prompts.iter().find(|prompt| prompt.dims() != first.dims()) {
            let expected = format!("{:?} as the first prompt", first.dims());
            return Err(refuse("prompts", other.dims(), &expected));
        }
        let device = device.clone().autodiff();
        let like = (&device, DType::F32);
        let flat = tokens * width;
        let rows = prompts
            .iter()
            .map(|prompt| prompt.tensor(like).reshape([1, flat]));
        let expected = Tensor::cat(rows.collect(), 0);
        let (space, hidden) = (config.intrinsic_dim, config.hidden_size.unwrap_or(width));
        let mut init = Init::new(config.seed);
        let mut layer = |widths| MlpLayer::new(widths, &mut init, like);
        let mut network = Self {
            encoder: layer([flat, space]),
            inner: layer([space, hidden]),
            outer: layer([hidden, flat]),
            tokens,
        };
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..config.steps {
            let found = network.reconstructed(expected.clone());
            let mut loss = (found.clone() - expected.clone()).square().mean();
            if let Some(task_loss) = &mut task_loss {
                let of_task = |at: usize| {
                    let prompt = found.clone().narrow(0, at, 1).reshape([tokens, width]);
                    task_loss(at, prompt)
                };
                let sum = (0..prompts.len())
                    .map(of_task)
                    .reduce(|sum, next| sum + next);
                let weight = config.task_weight / prompts.len() as f64;
                loss = sum.map_or(loss.clone(), |sum| loss + sum * weight);
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = optimizer.step(config.learning_rate, network, gradients);
        }
        Ok(network.valid())
    }

    fn reconstructed(&self, prompts: Tensor<2>) -> Tensor<2> {
        decoded(self.encoder.forward(prompts), &self.inner, &self.outer)
    }

    /// The prompt's point in the space.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the prompt is of another shape than those that were fitted.
    pub fn encode(&self, prompt: &TrainedPrompt) -> Result<Vec<f32>> {
        let code = self.encoder.forward(self.flat(prompt)?);
        Ok(code.into_data().iter().collect())
    }

    /// What is decoded of the prompt's point.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn reconstruct(&self, prompt: &TrainedPrompt) -> Result<TrainedPrompt> {
        let flat = self.reconstructed(self.flat(prompt)?);
        Ok(TrainedPrompt::of_tensor(flat.reshape(prompt.dims())))
    }

    /// The decoder, to train prompts of further tasks with.
    pub fn decoder(&self) -> PromptDecoder {
        let [inner, outer] = [&self.inner, &self.outer]
            .map(|layer| [layer.weight.val().into_data(), layer.bias.val().into_data()]);
        PromptDecoder {
            inner,
            outer,
            tokens: self.tokens,
        }
    }

    /// The prompt as a row.
    fn flat(&self, prompt: &TrainedPrompt) -> Result<Tensor<2>> {
        let (weight, [tokens, width]) = (self.encoder.weight.val(), prompt.dims());
        let flat = weight.dims()[0];
        if tokens != self.tokens || tokens * width != flat {
            let expected = format!(
                "{:?}, as the prompts that were fitted",
                [self.tokens, flat / self.tokens]
            );
            return Err(refuse("prompt", prompt.dims(), &expected));
        }
        let like = (&weight.device(), weight.dtype());
        Ok(prompt.tensor(like).reshape([1, flat]))
    }
}
