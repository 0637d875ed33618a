//! The project's test command. CI calls it and nothing else.

use crate::{
    cargo::{self, Build, Program, cargo},
    deny, embedded,
    error::Error,
    features::{BACKEND_CRATES, both_cpu_backends, built_quickly},
    layers, llvm, outside, package, skipped, workspace,
};
use clap::ValueEnum;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// What Python libraries wrote: adapters beside their bases, and bitsandbytes' tensors.
const VENDORED: [&str; 2] = [
    "crates",
    "crates/peft-quantization/tests/golden/bitsandbytes.safetensors",
];

/// What cargo gets for programs on CubeCL: the same packages and features for all of them, so that Burn is built once.
fn on_gpus() -> Vec<String> {
    let packages = ["peft", "peft-bench", "peft-train"];
    let packages = packages.iter().flat_map(|package| ["-p", package]);
    let features = ["--features", "peft/cuda,peft/cpu"];
    let words = packages.chain(features).map(str::to_owned);
    words.chain(built_quickly()).collect()
}

/// One step of the check, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Formatting
    Fmt,
    /// Folders of a crate import downward only
    Layers,
    /// Lints, on every target, with both CPU backends
    Clippy,
    /// Documentation without a warning
    Doc,
    /// The crates that are published, packed and compiled from their packages
    Package,
    /// Licences, sources and advisories of dependencies, where cargo-deny is installed
    Deny,
    /// Unit, integration, conformance, golden and documentation tests, with both CPU backends; errors of macros
    Test,
    /// The CUDA backend compiles and, where `setup-cuda` has run, programs with it link; no GPU is needed
    Cuda,
    /// The GPU's code on CubeCL's CPU runtime: our operations and a part of the conformance tests, where `setup-cuda` has
    /// run
    Cubecl,
    /// Checkpoints of Python libraries, vendored, against what those compute from them
    Parity,
    /// A short, real run of the comparison suite
    Compare,
    /// A crate outside the workspace adds a method: it is tested and compared
    Outside,
}

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only this step; may be given more than once
    #[arg(long, value_name = "STEP", value_enum)]
    only: Vec<Step>,
    /// Leave out the steps `cuda` and `cubecl`
    #[arg(long)]
    skip_cuda: bool,
}

/// Runs the steps, stops at the first that fails, and ends with the list of what did not run.
///
/// # Errors
/// The step that failed, or what it needed and could not get.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let (steps, left_out): (Vec<Step>, Vec<Step>) =
        Step::value_variants().iter().partition(|step| {
            let chosen = arguments.only.is_empty() || arguments.only.contains(step);
            chosen && !(arguments.skip_cuda && matches!(step, Step::Cuda | Step::Cubecl))
        });
    let folder =
        tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
    let skips = folder.path().join("skips");
    let outcome = run_steps(&steps, &skips);
    let left_out: Vec<&str> = left_out.into_iter().map(Step::name).collect();
    eprintln!("\n{}", skipped::summary(&skips, &left_out)?);
    let times = outcome?;
    eprintln!("\nall steps passed: {}", times.join(", "));
    Ok(())
}

/// Runs the steps and returns what each took. What does not run in them is appended to the list `skips`.
fn run_steps(steps: &[Step], skips: &Path) -> Result<Vec<String>, Error> {
    let mut times = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let start = Instant::now();
        eprintln!("\n[{}/{}] {}", index + 1, steps.len(), step.name());
        step.run(skips)?;
        eprintln!(
            "[{}/{}] {}: ok, {}",
            index + 1,
            steps.len(),
            step.name(),
            seconds(start.elapsed())
        );
        times.push(format!("{} {}", step.name(), seconds(start.elapsed())));
    }
    Ok(times)
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Layers => "layers",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
            Self::Package => "package",
            Self::Deny => "deny",
            Self::Test => "test",
            Self::Cuda => "cuda",
            Self::Cubecl => "cubecl",
            Self::Parity => "parity",
            Self::Compare => "compare",
            Self::Outside => "outside",
        }
    }

    fn run(self, skips: &Path) -> Result<(), Error> {
        let features = both_cpu_backends();
        match self {
            Self::Fmt => self.execute(&mut cargo(["fmt", "--all", "--check"])),
            Self::Layers => layers::check(),
            Self::Clippy => {
                let mut command = cargo(["clippy", "--release", "--workspace", "--all-targets"]);
                self.execute(command.args(["--features", &features, "--", "-D", "warnings"]))
            }
            Self::Doc => {
                let mut command = cargo(["doc", "--release", "--no-deps", "--workspace"]);
                self.execute(command.env("RUSTDOCFLAGS", "-D warnings"))
            }
            Self::Package => package::check(&features, |command| self.execute(command)),
            Self::Deny => deny::check(skips, |command| self.execute(command)),
            Self::Test => {
                let mut command = cargo(["test", "--release", "--workspace", "--no-fail-fast"]);
                command
                    .args(built_quickly())
                    .args(["--features", &features])
                    .env(peft_testing::SKIPS, skips)
                    .env(embedded::VARIABLE, embedded::folder()?);
                if let Some(assets) = cargo::assets() {
                    command.env("PEFT_ASSETS", assets);
                }
                self.execute(&mut command)?;
                self.execute(&mut errors_of_macros()?)
            }
            Self::Cuda => self.cuda(skips),
            Self::Cubecl => self.cubecl(skips),
            Self::Parity => {
                let executable = cargo::build(Program::Bin("peft-parity"), Build::Checked, None)?;
                for cases in VENDORED {
                    let mut command = Command::new(&executable);
                    self.execute(command.current_dir(workspace::root()).arg(cases))?;
                }
                Ok(())
            }
            Self::Compare => self.compare(),
            Self::Outside => outside::check(|command| self.execute(command)),
        }
    }

    /// With LLVM, the example and the bench are built, and the types checked of nothing else: what they do not use is
    /// generic and small. Without, the types of all crates are checked.
    fn cuda(self, skips: &Path) -> Result<(), Error> {
        let Some(variables) = llvm::environment()? else {
            let mut command = cargo(["check", "--release"]);
            // Burn's CUDA backend brings a compiler whose build downloads LLVM. Checking types needs
            // none of it, and this is its own switch for builds that cannot download.
            command.env("DOCS_RS", "1");
            command.args(BACKEND_CRATES.iter().flat_map(|package| ["-p", *package]));
            self.execute(command.args(["--features", "cuda"]))?;
            return skipped::skip(skips, "step cuda, linking", llvm::MISSING);
        };
        let mut command = cargo(["build", "--release"]);
        command
            .args(["--example", "finetune_llama", "--bin", "peft-bench"])
            .args(on_gpus())
            .envs(variables);
        self.execute(&mut command)
    }

    fn cubecl(self, skips: &Path) -> Result<(), Error> {
        let Some(variables) = llvm::environment()? else {
            return skipped::skip(skips, "step cubecl", llvm::MISSING);
        };
        // Kernels are compiled anew for every shape, which takes most of the time: hence a part.
        let mut command = cargo(["test", "--release", "--test", "on_gpus"]);
        command
            .args(on_gpus())
            .args(["--", "gradients", "packed::", "operations::"])
            .env("PEFT_TEST_DEVICES", "cpu")
            .env(peft_testing::SKIPS, skips)
            .envs(variables);
        self.execute(&mut command)
    }

    fn compare(self) -> Result<(), Error> {
        let executable = cargo::build(Program::Bin("peft-compare"), Build::Checked, None)?;
        let out =
            tempfile::tempdir().map_err(Error::io("create a folder in", std::env::temp_dir()))?;
        let mut command = cargo::ours(&executable)?;
        command.env(embedded::VARIABLE, embedded::folder()?);
        self.execute(
            command
                .current_dir(workspace::root())
                .args(["--suite", "smoke", "--out"])
                .arg(out.path()),
        )
    }

    fn execute(self, command: &mut Command) -> Result<(), Error> {
        eprintln!("  {}", cargo::show(command));
        let status = command.status().map_err(|source| Error::Run {
            command: cargo::show(command),
            source,
        })?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::Step {
                step: self.name(),
                status,
            })
        }
    }
}

/// The tests of what the macros say to wrong uses: a package of its own, in a folder of its own, as trybuild changes the
/// features of what macros are built from.
fn errors_of_macros() -> Result<Command, Error> {
    let mut command = cargo(["test", "--manifest-path"]);
    command.arg("crates/peft-derive/tests/stub/Cargo.toml");
    command.env("CARGO_TARGET_DIR", workspace::target_dir()?.join("macros"));
    Ok(command)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
