//! Times and memory of adapters on real shapes, against Burn's own and Hugging Face PEFT.
//!
//! Every case runs in a process of its own. The processes of a group live at the same time and work
//! in turn, so that a slow moment of the machine hits all of them; a ratio is that of one turn, and
//! its median over the turns is quoted.

mod allocator;
mod assets;
mod bench;
mod case;
mod every_method;
mod every_step;
mod memory_model;
mod models;
mod process;
mod products;
mod qlora_loss;
mod ratio;
mod ratios;
mod table;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Times and memory of adapters on real shapes
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
struct Arguments {
    /// Writes what was measured to a file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often the processes of a group take turns
    #[arg(long, value_name = "N", default_value_t = 11)]
    rounds: usize,
    /// Only ratios whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Backend; `flex:bf16` is `flex` in mixed precision
    #[arg(long, value_name = "NAME", default_value = "flex")]
    device: String,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// One case, told what to do through its input
    #[command(hide = true)]
    Worker {
        /// SHAPE/PASS/METHOD/ENGINE
        case: case::Case,
    },
    /// The language model and its batch, as peers read them
    #[command(hide = true)]
    Export {
        /// Where they go
        folder: PathBuf,
    },
    /// FishMask's elements, chosen on an example and written as an adapter
    #[command(hide = true)]
    Mask {
        /// Where it goes
        folder: PathBuf,
    },
    /// Train LoRA on the language model in f32, NF4 (from LoftQ's values, too) and FP4, and say what each one
    /// learned: takes minutes
    QloraLoss(qlora_loss::Settings),
    /// Rates of matrix products at the shapes that steps are made of, beside PyTorch's
    Products,
}

fn main() -> ExitCode {
    peft::core::ops::keep_freed_memory();
    let arguments = Arguments::parse();
    let result = match &arguments.task {
        Some(Task::Worker { case }) => worker::run(*case, &arguments.device),
        Some(Task::Export { folder }) => models::llama::export(&arguments.device, folder),
        Some(Task::Mask { folder }) => models::minilm::choose_mask(&arguments.device, folder),
        Some(Task::QloraLoss(settings)) => {
            qlora_loss::run(settings, &arguments.device, arguments.json.as_deref())
        }
        Some(Task::Products) => {
            let only = arguments.only.as_deref().unwrap_or_default();
            products::run(only, &arguments.device, arguments.json.as_deref())
        }
        None => bench::run(&bench::Settings {
            rounds: arguments.rounds.max(1),
            only: arguments.only.clone().unwrap_or_default(),
            device: arguments.device.clone(),
            json: arguments.json.clone(),
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
