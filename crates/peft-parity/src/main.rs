//! `cargo xtask parity FILE.safetensors`: quantizes the inputs of a file that holds bitsandbytes' results, and
//! says how far those are.
//!
//! `cargo xtask parity DIR`: loads every case of a folder through the public API and says how far its
//! values are from those that a Python library computed.
//!
//! A group is a folder with a `base` (a model as Hugging Face stores it, or one that its `architecture.json` describes) and cases beside it: each a folder
//! with a checkpoint, `io.safetensors` (`input_ids` and `attention_mask`, or `input`; `output`, perhaps `merged`;
//! metadata `trainable`) and perhaps `grads.safetensors` (gradients of mean(output²) by key). A case of several adapters
//! has a folder for each beside its `io.safetensors`; `peft_parity::golden` says how. `base` may be a file
//! instead, with the folder's path from there: several groups may have one base.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use peft_parity::golden::{
    ARCHITECTURE_FILE, EXCUSED_BY_ROUNDING, MOST_EXCUSED, Measured, Problem, ROUNDINGS, Tolerance,
    is_case, measure, peft_type, tolerance,
};
use serde::Serialize;

/// Compares with values that Python libraries computed, case by case
#[derive(Debug, Parser)]
#[command(name = "cargo xtask parity", version)]
struct Arguments {
    /// A folder of cases, or of such folders: each case beside a `base`; or a file of bitsandbytes' results
    #[arg(value_name = "DIR|FILE")]
    dir: PathBuf,
    /// Where to compute
    #[arg(long)]
    device: Option<String>,
    /// Only cases whose path contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write the results as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Fail,
    /// There is no such method or model here.
    Unsupported,
    /// It is refused by name, as the method's page says.
    Refused,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    case: String,
    peft_type: String,
    verdict: Verdict,
    output: Option<f32>,
    merged: Option<f32>,
    gradients: Option<f32>,
    trainable: Option<usize>,
    expected: Option<usize>,
    /// What rounding does to outputs and gradients; measured where they are beyond what is allowed.
    rounding: Option<(f32, f32)>,
    /// Why it was not measured.
    reason: Option<String>,
}

/// The base of the cases in a folder: its folder `base`, or the one whose path, from there, is in its file `base`.
fn base_of(dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let base = dir.join("base");
    let named = base.is_file();
    let folder = if named {
        dir.join(fs::read_to_string(&base)?.trim())
    } else {
        base.clone()
    };
    let described = ["config.json", ARCHITECTURE_FILE];
    if described.iter().any(|name| folder.join(name).exists()) {
        Ok(Some(folder))
    } else if named {
        let (base, folder) = (base.display(), folder.display());
        Err(std::io::Error::other(format!(
            "{base} names {folder}, which has neither config.json nor {ARCHITECTURE_FILE}"
        )))
    } else {
        Ok(None)
    }
}

/// Folders that hold a case, each with its base, in alphabetic order.
fn cases(dir: &Path) -> std::io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    folders.retain(|path| path.is_dir());
    folders.sort();
    let base = base_of(dir)?;
    for folder in folders {
        if base.as_ref() == Some(&folder) {
            continue;
        }
        match &base {
            Some(base) if is_case(&folder) => found.push((base.clone(), folder)),
            _ => found.extend(cases(&folder)?),
        }
    }
    Ok(found)
}

fn row(
    name: String,
    peft_type: String,
    tolerance: Tolerance,
    measured: Result<Measured, Problem>,
) -> Row {
    let blank = Row {
        case: name,
        verdict: Verdict::Fail,
        output: None,
        merged: None,
        gradients: None,
        trainable: None,
        expected: None,
        rounding: None,
        reason: None,
        peft_type,
    };
    match measured {
        Ok(measured) => Row {
            verdict: if measured.fits(tolerance) {
                Verdict::Pass
            } else {
                Verdict::Fail
            },
            output: Some(measured.output),
            merged: measured.merged,
            gradients: measured.gradients,
            trainable: Some(measured.trainable),
            expected: measured.expected,
            rounding: measured.rounding.map(|all| (all.output, all.gradients)),
            reason: match measured.counted {
                _ if measured.lost > 0 => Some(format!(
                    "upstream's file lacks {} numbers that all adapters share; these were found from its output",
                    measured.lost
                )),
                None if measured.expected.is_none() => {
                    Some("it is not known how many elements upstream trains".to_string())
                }
                counted => counted.map(|counted| counted.to_string()),
            },
            ..blank
        },
        Err(problem) => Row {
            verdict: match problem {
                Problem::Unsupported(_) => Verdict::Unsupported,
                Problem::Refused(_) => Verdict::Refused,
                Problem::Failed(_) => Verdict::Fail,
            },
            reason: Some(problem.to_string()),
            ..blank
        },
    }
}

fn print(row: &Row) {
    let distance = |value: Option<f32>| value.map_or("-".into(), |value| format!("{value:.1e}"));
    let trainable = match (row.trainable, row.expected) {
        (Some(here), Some(there)) if here == there => here.to_string(),
        (Some(here), Some(there)) => format!("{here}, not {there}"),
        (Some(here), None) => format!("{here} (?)"),
        _ => "-".into(),
    };
    let verdict = format!("{:?}", row.verdict).to_lowercase();
    println!(
        "{:<36} {:<16} {:>9} {:>9} {:>9} {:>14}  {verdict}",
        row.case,
        row.peft_type,
        distance(row.output),
        distance(row.merged),
        distance(row.gradients),
        trainable,
    );
    if let Some((output, gradients)) = row.rounding {
        println!(
            "    one bit more or less in each parameter moves outputs by {output:.1e}, gradients by {gradients:.1e}"
        );
    }
    if let Some(reason) = &row.reason {
        println!("    {reason}");
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let dir = &arguments.dir;
    let available = peft_core::device::available().first().copied();
    let name = arguments.device.as_deref().or(available);
    let device = peft_core::device::device(name.unwrap_or("flex"))?;
    let mut cases =
        cases(dir).map_err(|error| format!("cannot read {}: {error}", dir.display()))?;
    if let Some(text) = &arguments.only {
        cases.retain(|(_, case)| case.to_string_lossy().contains(text.as_str()));
    }
    if cases.is_empty() {
        return Err(format!(
            "no case under {}: a case is a folder with an adapter_config.json beside a folder `base`",
            dir.display()
        )
        .into());
    }
    println!(
        "{:<36} {:<16} {:>9} {:>9} {:>9} {:>14}",
        "case", "peft_type", "output", "merged", "gradients", "trainable"
    );
    let methods = peft::methods();
    let mut rows = Vec::new();
    for (base, case) in cases {
        let name = case.strip_prefix(dir).unwrap_or(&case);
        let measured = measure(&base, &case, &methods, &device);
        let row = row(
            name.display().to_string(),
            peft_type(&case),
            tolerance(&case),
            measured,
        );
        print(&row);
        rows.push(row);
    }
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let (passed, failed) = (count(Verdict::Pass), count(Verdict::Fail));
    let (unsupported, refused) = (count(Verdict::Unsupported), count(Verdict::Refused));
    println!(
        "\n{passed} passed, {failed} failed, {unsupported} unsupported, {refused} refused as their pages say; differences allowed: 1e-4, of \
         gradients relative to the largest (2e-4 for AdaLoRA, FourierFT and RandLoRA); in {}, {ROUNDINGS} times what \
         the last bit of each parameter does, up to {MOST_EXCUSED:e}",
        EXCUSED_BY_ROUNDING.join(", ")
    );
    if let Some(file) = &arguments.json {
        peft_core::files::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(failed == 0 && passed > 0)
}

/// Compares with a file of bitsandbytes' results: codes must be the same, numbers to two units in the last place.
fn run_quantization(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let mut cases = peft_quantization::report(&arguments.dir)?;
    if let Some(text) = &arguments.only {
        cases.retain(|case| case.name.contains(text.as_str()));
    }
    for case in &cases {
        let verdict = if case.agrees() { "pass" } else { "fail" };
        println!("{verdict}  {case}");
    }
    let passed = cases.iter().filter(|case| case.agrees()).count();
    let failed = cases.len() - passed;
    println!(
        "\n{passed} passed, {failed} failed; codes and codes of scales exact, scales and values to 2 ulp"
    );
    if let Some(file) = &arguments.json {
        let rows: Vec<_> = cases
            .iter()
            .map(|case| serde_json::json!({ "case": case.name, "pass": case.agrees(), "report": case.to_string() }))
            .collect();
        peft_core::files::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(failed == 0 && passed > 0)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.dir.is_file() {
        run_quantization(&arguments)
    } else {
        run(&arguments)
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
