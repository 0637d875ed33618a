//! The project's own commands, `cargo xtask …`.
//!
//! Thin on purpose: it links no model, no tensor and no network code. It builds the program that does the work, tells
//! it where models and data are, and becomes it.

mod cargo;
mod check;
mod deny;
mod embedded;
mod error;
mod features;
mod layers;
mod llvm;
mod outside;
mod package;
mod skipped;
mod template;
mod workspace;

use cargo::Program;
use clap::{Parser, Subcommand};
use error::Error;
use std::{ffi::OsString, process::ExitCode};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Arguments {
    /// Cargo features for the program that is built, for example `cuda`
    #[arg(long, value_name = "FEATURES")]
    features: Option<String>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Compare methods on a model and a task (`cargo xtask compare --help` for its options)
    #[command(disable_help_flag = true)]
    Compare {
        /// Passed on to `peft-compare`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Write the report of earlier runs again
    #[command(disable_help_flag = true)]
    Report {
        /// Passed on to `peft-compare report`: the folder with the results
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Times and memory against Burn's own LoRA and Hugging Face PEFT (`cargo xtask bench --help` for its options)
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to `peft-bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Hold loaded checkpoints against what Python libraries compute from them (`cargo xtask parity --help`)
    #[command(disable_help_flag = true)]
    Parity {
        /// Passed on to `peft-parity`: a folder of cases
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Write README's table of methods, from the registry, the vendored checkpoints and `docs/methods/table.toml`
    Methods,
    /// Fetch models and data sets; without a name, list them (`cargo xtask fetch --help` for its options)
    #[command(disable_help_flag = true)]
    Fetch {
        /// Passed on to `peft-fetch`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build and run an example, such as `finetune_llama`
    #[command(disable_help_flag = true)]
    Example {
        /// The example's name
        name: String,
        /// Passed on to the example
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Write a crate of your own with a method that works, its tests and its comparison
    NewMethod(template::Arguments),
    /// Bring LLVM by pip, for builds with the feature `cuda` or `cpu`, and print the variables that they need
    SetupCuda(llvm::Arguments),
    /// List the folders of each crate from the top down, and the imports between them
    Layers(layers::Arguments),
    /// Everything that CI checks: formatting, layers, lints, documentation, tests, the CUDA build, vendored checkpoints of
    /// Python libraries, a short comparison
    Check(check::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let features = arguments.features.as_deref();
    match &arguments.task {
        Task::Compare { arguments } => compare(features, &[], arguments),
        Task::Report { arguments } => compare(features, &["report"], arguments),
        Task::Bench { arguments } => {
            become_program(Program::Bin("peft-bench"), features, arguments)
        }
        Task::Parity { arguments } => {
            become_program(Program::Bin("peft-parity"), features, arguments)
        }
        Task::Methods => {
            let root = workspace::root().as_os_str().to_owned();
            become_program(Program::Bin("peft-methods"), features, &[root])
        }
        Task::Fetch { arguments } => {
            become_program(Program::Bin("peft-fetch"), features, arguments)
        }
        Task::SetupCuda(arguments) => llvm::setup(arguments).map(|()| ExitCode::SUCCESS),
        Task::Layers(arguments) => layers::print(arguments).map(|()| ExitCode::SUCCESS),
        Task::Example { name, arguments } => {
            become_program(Program::Example(name), features, arguments)
        }
        Task::NewMethod(arguments) => template::run(arguments).map(|()| ExitCode::SUCCESS),
        Task::Check(arguments) => check::run(arguments).map(|()| ExitCode::SUCCESS),
    }
}

/// Builds a program and becomes it.
fn become_program(
    program: Program<'_>,
    features: Option<&str>,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    let mut command =
        std::process::Command::new(cargo::build(program, cargo::Build::Timed, features)?);
    command.args(arguments);
    cargo::hand_over(command)
}

fn compare(features: Option<&str>, first: &[&str], rest: &[OsString]) -> Result<ExitCode, Error> {
    let mut command = cargo::ours(&cargo::build(
        Program::Bin("peft-compare"),
        cargo::Build::Timed,
        features,
    )?)?;
    command.args(first).args(rest);
    cargo::hand_over(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_the_program_are_passed_on_untouched() {
        let words = [
            "xtask",
            "--features",
            "cuda",
            "compare",
            "--suite",
            "smoke",
            "--help",
            "-n",
            "3",
            "--",
            "x",
        ];
        let arguments = Arguments::try_parse_from(words).unwrap();
        assert_eq!(arguments.features.as_deref(), Some("cuda"));
        let Task::Compare { arguments } = arguments.task else {
            panic!("{arguments:?}")
        };
        assert_eq!(arguments[..3], ["--suite", "smoke", "--help"]);
        assert_eq!(arguments[3..5], ["-n", "3"]);
    }
}
