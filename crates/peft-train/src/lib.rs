//! Fine-tuning causal language models: from text files to a trained adapter, in one call.
//!
//! ```no_run
//! use peft_core::PeftModule as _;
//! use peft_models::{Llama, LlamaTokenizer};
//! use peft_train::{Dataset, Length, TrainConfig, Trainer};
//! # fn method() -> Box<dyn peft_core::method::Method> { unimplemented!() }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = peft_core::device::device("flex")?.autodiff();
//! device.seed(42); // the adapter's initial values
//! let tokenizer = LlamaTokenizer::load("SmolLM2-135M-Instruct")?;
//! let config = TrainConfig::new().with_length(Length::Steps(200)).with_packing(true);
//! let data = Dataset::load(&["emma.txt", "persuasion.txt"], &tokenizer, &config)?;
//! let held_out = Dataset::load(&["sanditon.txt"], &tokenizer, &config)?;
//!
//! let method = method(); // a configuration of LoRA, say
//! let model = Llama::load("SmolLM2-135M-Instruct", &device)?.attach("austen", method.as_ref())?;
//! let mut trainer = Trainer::new(config)?.with_output("runs/austen");
//! let (model, outcome) = trainer.train(model, &data, Some(&held_out))?;
//! println!("{:?}", outcome.evaluations);
//! model.save_adapter("austen", "austen-adapter")?;
//! # Ok(()) }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`TrainConfig`] | every setting, with its default |
//! | [`Dataset`] | long texts and instructions as token ids, cut or packed to rows of one length |
//! | [`Trainer`] | the loop: accumulation, clipping, schedule, evaluation, early stopping |
//! | [`checkpoint`] | folders that a run goes on from, with the same numbers to the last bit |
//! | [`AdamW`], [`clip_by_norm`] | the optimizer and clipping, for loops of one's own |
//!
//! A model is trained through [`CausalLm`]; `peft_models::Llama` implements it. Whatever goes wrong, the model comes
//! back with the error: [`Interrupted`].

mod check;
pub mod checkpoint;
mod checkpoints;
mod config;
pub mod data;
mod digest;
mod error;
mod evaluate;
mod event;
mod gradients;
mod inputs;
mod interrupted;
mod llama;
mod memory;
mod model;
mod optimizer;
mod outcome;
mod output;
mod plan;
mod progress;
mod run;
mod schedule;
mod state;
mod tensors;
mod trained;
mod trainer;

pub use config::TrainConfig;
pub use data::{ChatTemplate, Dataset, Record, Tokenize};
pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use event::{Control, Event, StepReport};
pub use gradients::clip_by_norm;
pub use interrupted::Interrupted;
pub use model::{CausalLm, Limits};
pub use optimizer::AdamW;
pub use outcome::{Ending, Evaluation, FailedSave, TrainOutcome};
pub use progress::Progress;
pub use schedule::{Length, Schedule, Warmup};
pub use trainer::Trainer;
