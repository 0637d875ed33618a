//! `cargo xtask methods`: writes README's table of methods.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use peft_parity::methods::readme;

/// Writes README's table of methods
#[derive(Debug, Parser)]
#[command(name = "cargo xtask methods", version)]
struct Arguments {
    /// The repository's root
    #[arg(value_name = "ROOT", default_value = ".")]
    root: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { root } = Arguments::parse();
    let path = root.join("README.md");
    let written = readme(&root).map_err(|error| error.to_string());
    let written = written.and_then(|text| {
        let result = peft_core::files::write(&path, text);
        result.map_err(|error| error.to_string())
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
