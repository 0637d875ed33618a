//! The command line of the comparison.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::definition::{
    DataSource, Definitions, Kind, MethodChoice, ModelSource, Rule, SplitRule, Task, Training, Tune,
};
use crate::job::Job;
use crate::record::{Failure, RunRecord};
use crate::registry::Registry;
use crate::suite::{FAILURES, Order, RUNS, Results};
use crate::{Error, report, train};
use clap::{Args, Parser, Subcommand};

/// Trains a model with every method and reports what each buys at which cost.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask compare", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,
    #[command(flatten)]
    compare: Compare,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Makes the report anew from the results in a folder
    Report {
        /// The folder that a comparison wrote
        #[arg(default_value = "results/default")]
        dir: PathBuf,
    },
    /// Prints the grids around the best learning rates that a comparison found, as lines for tasks.toml
    Grids {
        /// The folder that a comparison wrote
        #[arg(default_value = "results/default")]
        dir: PathBuf,
    },
    /// Carries out one run; the suite calls this
    #[command(hide = true)]
    RunJob {
        #[arg(long)]
        out: PathBuf,
        job: String,
    },
}

#[derive(Debug, Args)]
struct Compare {
    /// The suite to run: smoke, movie-reviews, language-model-short, … Default: default, and
    /// language-model-short with running text of your own
    #[arg(long)]
    suite: Option<String>,
    /// A model folder of your own (config.json, model.safetensors, tokenizer.json): a BERT, or a Llama for
    /// running text
    #[arg(long, value_name = "DIR", requires = "data")]
    model: Option<PathBuf>,
    /// Labelled texts of your own (TSV, CSV or JSONL), or running text (.txt) for a language model
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The column with the texts, if it is not called text, sentence, review or content
    #[arg(long, value_name = "NAME", requires = "data")]
    text_column: Option<String>,
    /// The column with the classes, if it is not called label, class, target, sentiment or category
    #[arg(long, value_name = "NAME", requires = "data")]
    label_column: Option<String>,
    /// Only these methods, besides the references
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    methods: Option<Vec<String>>,
    /// Seeds, one run each; three or more for a ranking
    #[arg(long, value_name = "SEED,…", value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Use the middle of each grid of learning rates instead of searching it
    #[arg(long)]
    no_tune: bool,
    /// While the best learning rate lies at an end of what was tried, try one more beyond it
    #[arg(long, conflicts_with = "no_tune")]
    extend_grids: bool,
    /// Passes over the training rows
    #[arg(long)]
    epochs: Option<usize>,
    /// Training rows to use, from the front of the split; of running text, blocks
    #[arg(long, value_name = "ROWS")]
    train: Option<usize>,
    /// Tokens kept of a text; of running text, tokens of a block
    #[arg(long)]
    max_len: Option<usize>,
    /// Where to compute: flex, flex:bf16 (products with weights in bfloat16), ndarray, cuda, cuda:1
    #[arg(long, default_value = "flex")]
    device: String,
    /// Where results go. Default: results/SUITE
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tasks, methods and suites of your own, as TOML files in this folder
    #[arg(long, value_name = "DIR")]
    definitions: Option<PathBuf>,
    /// Print what would run
    #[arg(long)]
    dry_run: bool,
}

/// The comparison as a program, with the methods of a registry: reads the command line, runs, and says how it ended.
///
/// Every training runs in a process of its own: the program starts itself with `run-job` in front.
pub fn main(registry: &Registry) -> ExitCode {
    peft_core::ops::keep_freed_memory();
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Action::Report { dir }) => load(&dir).and_then(|results| finish(&dir, &results)),
        Some(Action::Grids { dir }) => load(&dir).map(|results| {
            print!("{}", report::grids(&results.records));
        }),
        Some(Action::RunJob { out, job }) => run_job(&out, &job, registry),
        None => compare(cli.compare, registry),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::Stopped { .. }) => {
            eprintln!("{error}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True once the user wants to stop; a second Ctrl-C ends at once.
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

fn run_job(out: &Path, job: &str, registry: &Registry) -> Result<(), Error> {
    let job: Job = serde_json::from_str(job).map_err(|error| Error::Definition {
        file: "the job".into(),
        reason: error.to_string(),
    })?;
    let stop = stop_flag();
    let outcome = train::run(&job, registry, |at| {
        println!("{} {} {}", at.step, at.steps, at.loss);
        !stop.load(Ordering::SeqCst)
    })?;
    outcome.write(out)
}

fn compare(options: Compare, registry: &Registry) -> Result<(), Error> {
    let definitions = Definitions::load(options.definitions.as_deref(), registry)?;
    let runs_on_text = options.data.as_deref().is_some_and(is_running_text);
    let usual = if runs_on_text {
        "language-model-short"
    } else {
        "default"
    };
    let suite = options.suite.as_deref().unwrap_or(usual);
    let mut suite = definitions.suite(suite)?.clone();
    if let Some(methods) = &options.methods {
        suite.methods = MethodChoice::Named(methods.clone());
    }
    if let Some(seeds) = &options.seeds {
        suite.seeds.clone_from(seeds);
    }
    if options.no_tune {
        suite.tune = Tune::None;
    }
    if options.extend_grids {
        suite.tune = Tune::Extended;
    }
    let own = options
        .data
        .as_ref()
        .map(|data| own_task(&options, data, &definitions))
        .transpose()?;
    if let Some(task) = &own {
        suite.name.clone_from(&task.name);
        suite.analysis.clear();
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("results").join(&suite.name));
    peft_core::device::device(&options.device)?;
    let mut order = Order::new(&definitions, &suite, &options.device, &out)?;
    if let Some(task) = own {
        order.tasks = vec![task];
    }
    for task in &mut order.tasks {
        task.training.epochs = options.epochs.unwrap_or(task.training.epochs);
        task.max_len = options.max_len.unwrap_or(task.max_len);
        task.split.train = options.train.or(task.split.train);
    }
    order.prepare()?;
    if options.dry_run {
        print!("{}", order.plan()?);
        return Ok(());
    }
    let stop = stop_flag();
    let results = order.run(&stop)?;
    finish(&out, &results)?;
    match results.failures.first() {
        None => Ok(()),
        Some(first) => Err(Error::Failed {
            failed: results.failures.len(),
            first: first.line(),
        }),
    }
}

/// What a comparison left in its folder.
fn load(dir: &Path) -> Result<Results, Error> {
    let failures = Failure::load_dir(&dir.join(FAILURES))?;
    let runs = dir.join(RUNS);
    // Where all runs failed there is no such folder.
    let records = if failures.is_empty() || runs.is_dir() {
        RunRecord::load_dir(&runs)?
    } else {
        Vec::new()
    };
    Ok(Results { records, failures })
}

/// Whether a file is for a language model.
fn is_running_text(data: &Path) -> bool {
    data.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
}

/// The user's data, on the user's model or the one of the task that is like it.
fn own_task(options: &Compare, data: &Path, definitions: &Definitions) -> Result<Task, Error> {
    let kind = if is_running_text(data) {
        Kind::LanguageModel
    } else {
        Kind::Classification
    };
    let column = options
        .text_column
        .as_ref()
        .or(options.label_column.as_ref());
    if let (Kind::LanguageModel, Some(column)) = (kind, column) {
        return Err(Error::Definition {
            file: data.display().to_string(),
            reason: format!("running text has no columns, and you name `{column}`"),
        });
    }
    let like = match kind {
        Kind::Classification => definitions.task("uci-sentiment")?.clone(),
        Kind::LanguageModel => definitions.task("austen-lm")?.clone(),
    };
    let name = data
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut task = Task {
        title: format!("{name}, your own data"),
        name,
        expect: None,
        data: DataSource::File {
            path: data.to_path_buf(),
            text_column: options.text_column.clone(),
            label_column: options.label_column.clone(),
        },
        ..like
    };
    if let Some(path) = &options.model {
        task.model = ModelSource::Folder { path: path.clone() };
    }
    match kind {
        Kind::Classification => {
            task.analysis =
                "Your own rows. What they show is for you to say; mind that scores of few test \
                             rows are uncertain."
                    .into();
            task.max_len = 128;
            task.split = SplitRule {
                rule: Rule::Stratified,
                seed: 0,
                train: None,
                dev: None,
                test: None,
                general: None,
            };
            // Any number of rows: the published rates, and the usual three passes.
            task.learning_rates.clear();
            task.training = Training {
                learning_rate_factor: 1.0,
                epochs: 3,
                ..task.training
            };
        }
        // Blocks and training as with the novels: the last tenth of the text is test.
        Kind::LanguageModel => {
            task.analysis = "Your own text: its last tenth is test. What it shows is for you to say; mind that \
                             one text is one sample of its kind."
                .into();
        }
    }
    Ok(task)
}

fn finish(out: &Path, results: &Results) -> Result<(), Error> {
    let Results { records, failures } = results;
    let written = report::write_all(out, records, failures)?;
    println!("{}", report::terminal::table(records, failures));
    println!("report: {}", written.html.display());
    println!(
        "also:   {} and {}",
        written.markdown.display(),
        written.csv.display()
    );
    Ok(())
}

#[cfg(test)]
#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}
