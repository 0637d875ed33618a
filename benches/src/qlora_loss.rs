//! What a base in 4 bits costs in quality: the same LoRA, trained on three forms of one base.
//!
//! Everything else is the same for all: rows and their order, initial values of the adapter, learning rate.

use std::path::{Path, PathBuf};

use peft::core::PeftModule as _;
use peft_models::{LlamaLoader, LlamaTokenizer};
use peft_quantization::QuantizationConfig;
use peft_train::{
    Control, Dataset, Length, Progress, Record, TrainConfig, TrainOutcome, Trainer, evaluate,
};
use serde_json::{Value, json};

use crate::case::{Method, RANK};
use crate::{assets, bench, models};

type Failure = Box<dyn std::error::Error>;

const TOKENS: usize = 256;
const LEARNING_RATE: f64 = 5e-4;
const SEED: u64 = 42;
/// Steps at the end whose losses make the training loss.
const LAST: usize = 20;
/// Characters of the novel that is held out: about ten thousand tokens.
const HELD_OUT: usize = 40_000;

/// The bases, by name.
fn bases() -> [(&'static str, Option<QuantizationConfig>); 3] {
    let doubly = |config: QuantizationConfig| Some(config.with_double_quantization(true));
    [
        ("f32", None),
        ("nf4", doubly(QuantizationConfig::nf4())),
        ("fp4", doubly(QuantizationConfig::fp4())),
    ]
}

/// Trains on each base for so many steps, and prints the losses as JSON.
pub(crate) fn run(steps: usize, device: &str, file: Option<&Path>) -> Result<(), Failure> {
    let folder = assets::llama()?;
    let device = peft::core::device::device(device)?.autodiff();
    let tokenizer = LlamaTokenizer::load(&folder)?;
    let config = TrainConfig::new()
        .with_length(Length::Steps(steps))
        .with_batch_size(1)
        .with_max_length(TOKENS)
        .with_learning_rate(LEARNING_RATE)
        .with_seed(SEED);
    let novels: Vec<PathBuf> = assets::NOVELS.into_iter().map(assets::novel).collect();
    let data = Dataset::load(&novels, &tokenizer, &config)?;
    let passage: String = models::llama::text()?.chars().take(HELD_OUT).collect();
    let held_out = Dataset::new(&[Record::Text(passage)], &tokenizer, &config)?;
    let lora = models::lora(Method::LoraAll, [""; 2]);

    let mut runs = Vec::new();
    for (name, packer) in bases() {
        eprintln!("LoRA on {name}");
        let loader = LlamaLoader::new(&folder);
        let base = match &packer {
            Some(packer) => loader.with_packer(packer).load(&device)?,
            None => loader.load(&device)?,
        };
        let before = evaluate(&base, &held_out, 1)?.nll;
        // The adapter's initial values.
        device.seed(SEED);
        let model = base.attach("bench", &lora)?;
        drop(base);
        let mut progress = Progress::new();
        let mut trainer = Trainer::new(config.clone())?.with_observer(|event| {
            progress.show(event);
            Control::Continue
        });
        let (_, outcome) = trainer.train(model, &data, Some(&held_out))?;
        drop(trainer);
        progress.finish();
        runs.push(losses(name, before, &outcome));
    }
    let report = json!({
        "model": assets::LLAMA,
        "steps": steps,
        "tokens_per_step": TOKENS,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "seed": SEED,
        "training_tokens": data.tokens(),
        "held_out_tokens": held_out.targets(),
        "runs": runs,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    match file {
        Some(file) => bench::write(file, &report),
        None => Ok(()),
    }
}

/// Losses in nats a token: of the steps at the end, and on what is held out, before and after.
fn losses(base: &str, before: f64, outcome: &TrainOutcome) -> Value {
    let last = &outcome.losses[outcome.losses.len().saturating_sub(LAST)..];
    json!({
        "base": base,
        "training_loss": last.iter().sum::<f64>() / last.len().max(1) as f64,
        "held_out_loss_before": before,
        "held_out_loss": outcome.evaluations.last().map(|evaluation| evaluation.nll),
        "seconds": outcome.seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_train::Ending;

    #[test]
    fn the_training_loss_is_that_of_the_last_steps() {
        let outcome = TrainOutcome {
            steps: 30,
            ending: Ending::Finished,
            losses: (0..30).map(f64::from).collect(),
            evaluations: Vec::new(),
            best: None,
            tokens: 0,
            seconds: 1.0,
            peak_rss: 0,
        };
        let losses = losses("f32", 4.0, &outcome);
        // 10 to 29.
        assert_eq!(losses["training_loss"], json!(19.5));
        assert_eq!(losses["held_out_loss"], Value::Null);
    }
}
