//! What a base in 4 bits costs in quality: the same LoRA, trained on several forms of one base.
//!
//! Everything else is the same for all: rows and their order, initial values of the adapter (but LoftQ's),
//! learning rate.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use peft::core::PeftModule as _;
use peft::core::ops::{MixedPrecision, mixed_precision};
use peft::reparameterization::{LoraConfig, init_from_factors};
use peft_models::{Llama, LlamaLoader, LlamaTokenizer};
use peft_quantization::{LoftQQuantizer, QuantizationConfig};
use peft_train::{
    Control, Dataset, Length, Progress, Record, TrainConfig, TrainOutcome, Trainer, evaluate,
};
use serde_json::{Value, json};

use crate::case::RANK;
use crate::{assets, bench, models};

type Failure = Box<dyn std::error::Error>;

const TOKENS: usize = 256;
const ADAPTER: &str = "bench";
/// Steps at the end whose losses make the training loss.
const LAST: usize = 20;
/// Characters of the novel that is held out: about ten thousand tokens.
const HELD_OUT: usize = 40_000;

/// What is trained.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Steps
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = TOKENS)]
    tokens: usize,
    /// Rank of the adapters; their alpha is twice that
    #[arg(long, default_value_t = RANK)]
    rank: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 5e-4)]
    learning_rate: f64,
    /// Seeds of the adapter and of the order of rows; all bases are trained with each
    #[arg(long, value_delimiter = ',', default_value = "42")]
    seeds: Vec<u64>,
    /// LoftQ's iterations; with one the packed weights are those of NF4
    #[arg(long, default_value_t = 1)]
    loftq_iterations: usize,
    /// Only these bases
    #[arg(long, value_delimiter = ',', default_value = "f32,nf4,nf4-loftq,fp4")]
    bases: Vec<String>,
}

/// The base called `name` with its adapter, and the loss that it has without.
fn prepare(
    name: &str,
    settings: &Settings,
    seed: u64,
    held_out: &Dataset,
    device: &Device,
) -> Result<(Llama, f64), Failure> {
    let doubly = |config: QuantizationConfig| config.with_double_quantization(true);
    let nf4 = doubly(QuantizationConfig::nf4());
    let folder = assets::llama()?;
    let loader = LlamaLoader::new(&folder);
    let (base, factors) = match name {
        "f32" => (loader.load(device)?, Vec::new()),
        "nf4" => (loader.with_quantizer(&nf4).load(device)?, Vec::new()),
        "fp4" => {
            let fp4 = doubly(QuantizationConfig::fp4());
            (loader.with_quantizer(&fp4).load(device)?, Vec::new())
        }
        "nf4-loftq" => {
            let iterations = settings.loftq_iterations;
            let quantizer = LoftQQuantizer::new(&nf4, settings.rank, iterations, |_| true)?;
            let base = loader.with_quantizer(&quantizer).load(device)?;
            let factors = quantizer.into_layers(device).into_iter();
            let factors = factors.map(|layer| (layer.name, layer.down, layer.up));
            (base, factors.collect())
        }
        other => return Err(format!("no base is called {other}").into()),
    };
    let before = evaluate(&base, held_out, 1)?.nll;
    let lora = LoraConfig::new(settings.rank)
        .with_alpha(2.0 * settings.rank as f64)
        .with_targets("all-linear");
    device.seed(seed);
    let model = base.attach(ADAPTER, &lora)?;
    if factors.is_empty() {
        return Ok((model, before));
    }
    let model = init_from_factors(&model, ADAPTER, factors)?;
    let before = evaluate(&model, held_out, 1)?.nll;
    Ok((model, before))
}

/// Trains on each base for so many steps, and prints the losses as JSON.
pub(crate) fn run(settings: &Settings, device: &str, file: Option<&Path>) -> Result<(), Failure> {
    let device = peft::core::device::device(device)?.autodiff();
    let tokenizer = LlamaTokenizer::load(&assets::llama()?)?;
    let novels: Vec<PathBuf> = assets::NOVELS.into_iter().map(assets::novel).collect();
    let passage: String = models::llama::text()?.chars().take(HELD_OUT).collect();
    let mut runs = Vec::new();
    let (mut training_tokens, mut held_out_tokens) = (0, 0);
    for &seed in &settings.seeds {
        let config = TrainConfig::new()
            .with_length(Length::Steps(settings.steps))
            .with_batch_size(1)
            .with_max_length(settings.tokens)
            .with_learning_rate(settings.learning_rate)
            .with_seed(seed);
        let data = Dataset::load(&novels, &tokenizer, &config)?;
        let held_out = Dataset::new(&[Record::Text(passage.clone())], &tokenizer, &config)?;
        (training_tokens, held_out_tokens) = (data.tokens(), held_out.targets());
        for name in &settings.bases {
            eprintln!("LoRA on {name}, seed {seed}");
            let (model, before) = prepare(name, settings, seed, &held_out, &device)?;
            let mut progress = Progress::new();
            let mut trainer = Trainer::new(config.clone())?.with_observer(|event| {
                progress.show(event);
                Control::Continue
            });
            let (_, outcome) = trainer.train(model, &data, Some(&held_out))?;
            drop(trainer);
            progress.finish();
            let run = losses(name, seed, before, &outcome);
            eprintln!("{run}");
            runs.push(run);
        }
    }
    let report = json!({
        "model": assets::LLAMA,
        "steps": settings.steps,
        "tokens_per_step": settings.tokens,
        "mixed_precision": mixed_precision() == MixedPrecision::Bf16,
        "learning_rate": settings.learning_rate,
        "rank": settings.rank,
        "loftq_iterations": settings.loftq_iterations,
        "training_tokens": training_tokens,
        "held_out_tokens": held_out_tokens,
        "runs": runs,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    match file {
        Some(file) => bench::write(file, &report),
        None => Ok(()),
    }
}

/// Losses in nats a token: of the steps at the end, and on what is held out, before and after.
fn losses(base: &str, seed: u64, before: f64, outcome: &TrainOutcome) -> Value {
    let last = &outcome.losses[outcome.losses.len().saturating_sub(LAST)..];
    json!({
        "base": base,
        "seed": seed,
        "training_loss": last.iter().sum::<f64>() / last.len().max(1) as f64,
        "held_out_loss_before": before,
        "held_out_loss": outcome.evaluations.last().map(|evaluation| evaluation.nll),
        "seconds": outcome.seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_training_loss_is_that_of_the_last_steps() {
        let outcome = json!({
            "steps": 30,
            "ending": "finished",
            "losses": (0..30).map(f64::from).collect::<Vec<_>>(),
            "evaluations": [],
            "best": null,
            "tokens": 0,
            "seconds": 1.0,
            "failed_saves": [],
            "peak_rss": 0,
        });
        let outcome: TrainOutcome = serde_json::from_value(outcome).unwrap();
        let losses = losses("f32", 42, 4.0, &outcome);
        // 10 to 29.
        assert_eq!(losses["training_loss"], json!(19.5));
        assert_eq!(losses["held_out_loss"], Value::Null);
    }
}
