//! A training step of every registered method, over LoRA's on the same model.
//!
//! Both models share the base's weights and lie in one process. They take turns, step by step, and a ratio is that of two
//! steps one behind the other, as [`every_method`](crate::every_method)'s are of forward passes.

use std::time::Instant;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Int, Tensor};
use peft::core::PeftModule;
use peft::core::method::MethodInfo;
use peft::reparameterization::LoraConfig;
use peft_models::{BertClassifier, Llama, LlamaConfig, LmBatch};
use peft_train::{AdamW, TrainConfig};
use serde::Serialize;
use serde_json::{Value, json};

use crate::case::RANK;
use crate::every_method::{entry, few_tokens, with};
use crate::models::minilm;
use crate::process::median;
use crate::ratio::{Needed, Spread};

type Failure = Box<dyn std::error::Error>;

/// What the names of all ratios here begin with.
const NAME: &str = "every_step";
/// Steps before the first that counts.
const WARM_UP: usize = 2;
/// What a method's step may take of LoRA's.
const NEEDED: Needed = Needed::AtMost(1.5);

/// What was measured of one method.
#[derive(Serialize)]
pub(crate) struct Step {
    /// `every_step/SHAPE/METHOD`.
    pub(crate) name: String,
    /// Median milliseconds of LoRA's step.
    lora_ms: f64,
    /// Median milliseconds of the method's.
    method_ms: f64,
    /// Over the pairs of steps.
    pub(crate) ratio: Spread,
    /// Whether the method has its defaults (on all linear layers, if it has targets), or the comparison's configuration.
    default: bool,
}

/// Measures the methods whose names contain `only`.
pub(crate) fn run(only: &str, rounds: usize, device: &str) -> Result<Vec<Step>, Failure> {
    let device = peft::core::device::device(device)?.autodiff();
    device.seed(1);
    let mut all = Vec::new();
    let encoder = || Encoder::new([32, 64], &device);
    all.extend(of("minilm", only, rounds, encoder)?);
    let decoder = || Ok(Decoder::new(&device));
    all.extend(of("llama", only, rounds, decoder)?);
    Ok(all)
}

/// A base, and the gradients of a model made of it.
trait Subject {
    type Model: PeftModule + Module;

    const TITLE: &str;
    /// Whether the comparison's configurations for Llama-like models are the right ones.
    const LLAMA: bool;

    fn base(&self) -> &Self::Model;
    fn gradients(&self, model: &Self::Model) -> GradientsParams;
    /// Something to differentiate, of a few tokens, for methods that choose by gradients what they train.
    fn loss(model: &Self::Model) -> Tensor<1>;
}

/// MiniLM-L6 as a classifier.
struct Encoder {
    model: BertClassifier,
    ids: Tensor<2, Int>,
    padding: Tensor<2, Bool>,
    labels: Tensor<1, Int>,
}

impl Encoder {
    fn new([rows, length]: [usize; 2], device: &Device) -> Result<Self, Failure> {
        let (ids, padding) = minilm::batch([rows, length], device);
        let labels: Vec<i64> = (0..rows).map(|row| (row % 2) as i64).collect();
        Ok(Self {
            model: minilm::classifier(0.0, device)?,
            ids,
            padding,
            labels: Tensor::from_data(labels.as_slice(), device),
        })
    }
}

impl Subject for Encoder {
    type Model = BertClassifier;

    const TITLE: &str = "Every method, MiniLM-L6, a training step of 32 x 64 tokens";
    const LLAMA: bool = false;

    fn base(&self) -> &Self::Model {
        &self.model
    }

    fn gradients(&self, model: &Self::Model) -> GradientsParams {
        let logits = model.forward(self.ids.clone(), Some(self.padding.clone()));
        let cross_entropy = CrossEntropyLossConfig::new().init(&logits.device());
        let loss = cross_entropy.forward(logits, self.labels.clone());
        GradientsParams::from_grads(loss.backward(), model)
    }

    fn loss(model: &Self::Model) -> Tensor<1> {
        model.forward(few_tokens(model), None).mean()
    }
}

/// Four layers of SmolLM2-135M's shape, with a small vocabulary.
struct Decoder {
    model: Llama,
    batch: LmBatch,
}

impl Decoder {
    const TOKENS: usize = 512;

    fn new(device: &Device) -> Self {
        let mut config = LlamaConfig::tiny();
        config.vocab_size = 2048;
        config.hidden_size = 576;
        config.intermediate_size = 1536;
        config.num_hidden_layers = 4;
        config.num_attention_heads = 9;
        config.num_key_value_heads = 3;
        config.head_dim = 64;
        config.max_position_embeddings = 512;
        let id = |at: usize| (at * 7919 % config.vocab_size) as u32;
        let tokens = 0..Self::TOKENS;
        Self {
            batch: LmBatch {
                ids: tokens.clone().map(id).collect(),
                targets: tokens.map(|at| i64::from(id(at + 1))).collect(),
                rows: 1,
                length: Self::TOKENS,
                ..LmBatch::default()
            },
            model: config.init(device),
        }
    }
}

impl Subject for Decoder {
    type Model = Llama;

    const TITLE: &str =
        "Every method, four layers of SmolLM2's shape, a training step of 1 x 512 tokens";
    const LLAMA: bool = true;

    fn base(&self) -> &Self::Model {
        &self.model
    }

    fn gradients(&self, model: &Self::Model) -> GradientsParams {
        model.loss_and_gradients(&self.batch, false, 1.0).1
    }

    fn loss(model: &Self::Model) -> Tensor<1> {
        model.forward(few_tokens(model), None).mean()
    }
}

/// Measures and prints the methods of one shape, if any is meant.
fn of<S: Subject>(
    shape: &str,
    only: &str,
    rounds: usize,
    subject: impl FnOnce() -> Result<S, Failure>,
) -> Result<Vec<Step>, Failure> {
    let methods = peft::methods().into_iter();
    let chosen: Vec<_> = methods
        .map(|info| (info, format!("{NAME}/{shape}/{}", info.name)))
        .filter(|(_, name)| name.contains(only))
        .collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let subject = subject()?;
    println!("\n{}\n", S::TITLE);
    println!(
        "  {:<44} {:>8} {:>8}  {:>7}  {:<17} {:<8}",
        "ratio", "LoRA ms", "ms", "median", "(min - max)", "needed"
    );
    let lora = LoraConfig::new(RANK).with_alpha(16.0);
    let lora = lora.with_targets("all-linear");
    let lora = subject.base().clone().attach("bench", &lora)?;
    let mut all = Vec::new();
    for (info, name) in chosen {
        match attached(info, &subject) {
            Ok((model, default)) => {
                let step = measured(&name, rounds, &subject, lora.clone(), model, default);
                print_line(&step);
                all.push(step);
            }
            Err(reason) => println!("  {name:<44} left out: {reason}"),
        }
    }
    Ok(all)
}

/// The base with a method on all linear layers: with its defaults, or the comparison's configuration where these do not
/// fit the model. A method without targets is as it is.
fn attached<S: Subject>(info: &MethodInfo, subject: &S) -> Result<(S::Model, bool), Failure> {
    let mut comparison = entry(info.name, S::LLAMA).unwrap_or_else(|| json!({}));
    let mut everywhere = comparison.clone();
    everywhere["target_modules"] = Value::from("all-linear");
    let mut refused = None;
    for (json, default) in [
        (json!({ "target_modules": "all-linear" }), true),
        (everywhere, false),
        (json!({}), true),
        (comparison.take(), false),
    ] {
        match with(info, &json, subject.base(), S::loss) {
            Ok(model) => return Ok((model, default)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| "nothing was tried".into()))
}

/// A model that is trained.
struct Training<'a, S: Subject> {
    subject: &'a S,
    model: Option<S::Model>,
    optimizer: AdamW,
}

impl<'a, S: Subject> Training<'a, S> {
    fn new(subject: &'a S, model: S::Model) -> Self {
        let optimizer = AdamW::new(&TrainConfig::new().with_weight_decay(0.01));
        Self {
            subject,
            model: Some(model),
            optimizer,
        }
    }

    /// Seconds of a step: forward, backward and AdamW.
    fn step(&mut self) -> f64 {
        let start = Instant::now();
        if let Some(model) = self.model.take() {
            let gradients = self.subject.gradients(&model);
            self.model = Some(self.optimizer.step(1e-5, model, gradients));
        }
        start.elapsed().as_secs_f64()
    }
}

fn measured<S: Subject>(
    name: &str,
    rounds: usize,
    subject: &S,
    lora: S::Model,
    model: S::Model,
    default: bool,
) -> Step {
    let (mut lora, mut method) = (Training::new(subject, lora), Training::new(subject, model));
    for _ in 0..WARM_UP {
        lora.step();
        method.step();
    }
    let (mut loras, mut methods, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // Neither is always the first.
        let (under, over) = if round % 2 == 0 {
            let under = lora.step();
            (under, method.step())
        } else {
            let over = method.step();
            (lora.step(), over)
        };
        loras.push(under);
        methods.push(over);
        ratios.push(over / under);
    }
    Step {
        name: name.to_string(),
        lora_ms: median(&mut loras) * 1e3,
        method_ms: median(&mut methods) * 1e3,
        ratio: Spread::of(ratios),
        default,
    }
}

fn print_line(step: &Step) {
    let ratio = step.ratio;
    let verdict = match NEEDED.holds(ratio) {
        Some(false) => "NO",
        _ => "yes",
    };
    let note = if step.default {
        ""
    } else {
        "  as in the comparison"
    };
    println!(
        "  {:<44} {:>8.1} {:>8.1}  {:>7.3}  {:<17} {:<8} {verdict}{note}",
        step.name,
        step.lora_ms,
        step.method_ms,
        ratio.median,
        format!("({:.3} - {:.3})", ratio.min, ratio.max),
        NEEDED.text(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_a_method_is_measured() {
        let (_, device) = &peft::core::device::cpu_devices()[0];
        let encoder = Encoder::new([1, 3], &device.clone().autodiff()).unwrap();
        let infos = peft::methods();
        for name in ["lora", "vera", "prompt-tuning"] {
            let info = infos.iter().find(|info| info.name == name).unwrap();
            let (model, default) = attached(info, &encoder).unwrap();
            let step = measured(name, 1, &encoder, model.clone(), model, default);
            assert!(step.lora_ms > 0.0 && step.ratio.median > 0.0, "{name}");
        }
    }
}
