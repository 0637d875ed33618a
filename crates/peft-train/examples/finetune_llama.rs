//! Fine-tunes a Llama with LoRA or QLoRA on texts or instructions: `docs/finetune-llama.md` walks through it.

use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, ValueEnum};
use peft_core::{PeftModule as _, files};
use peft_models::{GenerateConfig, Llama, LlamaLoader, LlamaTokenizer, Message, Moment};
use peft_quantization::QLoraConfig;
use peft_reparameterization::{LoraConfig, METHODS};
use peft_train::{
    Control, Dataset, Evaluation, Length, Progress, Schedule, TrainConfig, Trainer, Warmup,
    checkpoint, evaluate,
};

/// The adapter's name in the model.
const ADAPTER: &str = "tuned";

/// Fine-tunes a Llama with LoRA or QLoRA.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Arguments {
    /// The model: a Hugging Face folder, or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// What to learn: texts, or .jsonl with instructions; .gz is decompressed
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// What to measure on, before and after
    #[arg(long, value_name = "FILE", num_args = 1..)]
    held_out: Vec<PathBuf>,
    /// LoRA on the model as it is, or on 4-bit weights
    #[arg(long, value_enum, default_value_t = Method::Lora)]
    method: Method,
    /// Begin with a saved adapter, in place of a fresh one; it has its own rank and targets
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    adapter: Option<PathBuf>,
    /// Rank of the adapter; its alpha is twice that
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Names of the layers to adapt, such as `q_proj,v_proj`; all linear layers if not given
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Steps of the optimizer
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 1)]
    accumulation: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 256)]
    max_length: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 2e-4)]
    learning_rate: f64,
    /// Compute activations again in the backward pass, to save memory
    #[arg(long)]
    checkpointing: bool,
    /// Seed of the adapter, of the data's order and of samples
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The time for chat templates that write one, such as 2026-11-30T08:15:00+01:00; the present if not given
    #[arg(long, value_name = "TIME")]
    time: Option<Moment>,
    /// Steps between checkpoints; a quarter of all if not given
    #[arg(long, value_name = "STEPS")]
    save_every: Option<usize>,
    /// Checkpoints that are kept
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    keep: usize,
    /// Where checkpoints and the adapter go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// A text to go on with, before and after training
    #[arg(long)]
    prompt: Option<String>,
    /// Give the prompt as a user's message, by the model's chat template
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// Fold the adapter in and write a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    merge: Option<PathBuf>,
    /// flex, flex:bf16 (products with weights in bfloat16: faster where the processor multiplies such), ndarray, cuda
    #[arg(long, default_value = "flex")]
    device: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    /// LoRA (Hu et al. 2021)
    Lora,
    /// LoRA on a base in NF4 with double quantization (Dettmers et al. 2023)
    Qlora,
    /// The same from what of the 4 bits' error fits the rank (Li et al. 2023, one iteration: the weights are the
    /// same)
    QloraLoftq,
}

fn main() -> ExitCode {
    peft_core::ops::keep_freed_memory();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let device = peft_core::device::device(&arguments.device)?.autodiff();
    device.seed(arguments.seed);
    let newest = checkpoint::latest(&arguments.out)?;
    if let (Some(newest), false) = (&newest, arguments.resume) {
        let newest = newest.display();
        return Err(format!(
            "{newest} is of an earlier run: --resume goes on with it, another --out begins anew"
        )
        .into());
    }
    let config = config(arguments, newest.as_deref())?;
    let tokenizer = LlamaTokenizer::load(&arguments.model)?;
    let data = Dataset::load(&arguments.data, &tokenizer, &config)?;
    let (rows, targets) = (data.len(), data.targets());
    println!("{rows} rows, {targets} tokens to learn");
    if data.truncated() > 0 {
        println!(
            "{} instructions were too long and lost a part",
            data.truncated()
        );
    }
    let held_out = if arguments.held_out.is_empty() {
        None
    } else {
        Some(Dataset::load(&arguments.held_out, &tokenizer, &config)?)
    };

    let mut lora = LoraConfig::new(arguments.rank).with_alpha(2.0 * arguments.rank as f64);
    if !arguments.targets.is_empty() {
        lora = lora.with_targets(arguments.targets.clone());
    }
    let loftq = matches!(arguments.method, Method::QloraLoftq);
    let qlora = QLoraConfig::new(arguments.rank)
        .with_lora(lora.clone())
        .with_loftq(usize::from(loftq));
    let quantizer = qlora.quantizer()?;
    let loader = LlamaLoader::new(&arguments.model);
    let base = match arguments.method {
        Method::Lora => loader.load(&device)?,
        Method::Qlora | Method::QloraLoftq => loader.with_quantizer(&quantizer).load(&device)?,
    };
    if let Some(held_out) = &held_out {
        say("before", &evaluate(&base, held_out, arguments.batch_size)?);
    }
    sample("before", arguments, &base, &tokenizer)?;

    let model = match (&arguments.adapter, arguments.method) {
        (Some(folder), _) => base.load_adapter(ADAPTER, folder, METHODS)?,
        (None, Method::Lora) => base.attach(ADAPTER, &lora)?,
        (None, Method::Qlora | Method::QloraLoftq) => quantizer.attach(&base, ADAPTER)?,
    };
    drop(base);
    println!("{}", model.summary());

    let stop = stop_flag();
    let mut progress = Progress::new();
    let mut trainer = Trainer::new(config)?
        .with_output(&arguments.out)
        .with_observer(|event| {
            progress.show(event);
            if stop.load(Ordering::SeqCst) {
                Control::Stop
            } else {
                Control::Continue
            }
        });
    if arguments.resume {
        let newest =
            newest.ok_or_else(|| format!("no checkpoint in {}", arguments.out.display()))?;
        trainer = trainer.with_resume(newest);
    }
    let (model, outcome) = trainer.train(model, &data, held_out.as_ref())?;
    drop(trainer);
    progress.finish();

    println!(
        "{} steps, {} tokens, {:.0} s, {:.0} tokens/s, peak of {} MiB",
        outcome.steps,
        outcome.tokens,
        outcome.seconds,
        outcome.tokens as f64 / outcome.seconds.max(1e-9),
        outcome.peak_rss >> 20,
    );
    if let Some(evaluation) = outcome.evaluations.last() {
        say("after", evaluation);
    }
    sample("after", arguments, &model, &tokenizer)?;
    let folder = arguments.out.join("adapter");
    model.save_adapter(ADAPTER, &folder)?;
    println!("the adapter is in {}", folder.display());
    let file = arguments.out.join("outcome.json");
    files::write(&file, serde_json::to_string_pretty(&outcome)?)?;
    if let Some(dir) = &arguments.merge {
        model.merge_and_unload()?.export(dir, Some(&tokenizer))?;
        println!("the merged model is in {}", dir.display());
    }
    Ok(())
}

/// The settings; those of a run that goes on from `newest` if there is one.
fn config(arguments: &Arguments, newest: Option<&Path>) -> Result<TrainConfig, Box<dyn Error>> {
    let quarter = (arguments.steps / 4).max(1);
    let mut config = TrainConfig::new()
        .with_length(Length::Steps(arguments.steps))
        .with_batch_size(arguments.batch_size)
        .with_gradient_accumulation(arguments.accumulation)
        .with_max_length(arguments.max_length)
        .with_packing(true)
        .with_learning_rate(arguments.learning_rate)
        .with_schedule(Schedule::Cosine)
        .with_warmup(Warmup::Ratio(0.03))
        .with_min_lr_ratio(0.1)
        .with_seed(arguments.seed)
        .with_eval_every(arguments.steps)
        .with_save_every(arguments.save_every.unwrap_or(quarter))
        .with_keep_last(arguments.keep)
        .with_gradient_checkpointing(arguments.checkpointing);
    // What the date was when the run began is a part of its data.
    if let Some(newest) = newest {
        config = config.with_time(checkpoint::time(newest)?);
    }
    if let Some(time) = arguments.time {
        config = config.with_time(time);
    }
    Ok(config)
}

fn say(when: &str, evaluation: &Evaluation) {
    let (loss, perplexity) = (evaluation.nll, evaluation.perplexity());
    println!("held-out loss {when}: {loss:.4}, perplexity {perplexity:.2}");
}

/// Goes on with the prompt, if there is one.
fn sample(
    when: &str,
    arguments: &Arguments,
    model: &Llama,
    tokenizer: &LlamaTokenizer,
) -> Result<(), Box<dyn Error>> {
    let Some(prompt) = &arguments.prompt else {
        return Ok(());
    };
    let prompt = if arguments.chat {
        tokenizer.chat(&[Message::user(prompt)])?
    } else {
        prompt.clone()
    };
    let config = GenerateConfig::default()
        .with_max_new_tokens(80)
        .with_temperature(0.7)
        .with_seed(arguments.seed);
    println!("--- {when} ---");
    print!("{prompt}");
    model.generate(tokenizer, &prompt, &config, |text| {
        print!("{text}");
        // Whoever reads along sees it as it comes; that the output is gone shows at the next line.
        let _ = std::io::stdout().flush();
    })?;
    println!("\n---");
    Ok(())
}

/// Set by Ctrl-C, which ends the run after the step at hand; a second one ends it at once.
fn stop_flag() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handled = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handled {
        eprintln!("Ctrl-C will end the run at once: {error}");
    }
    stop
}
