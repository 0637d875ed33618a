//! The Python that reads what was written here, and what it says.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use burn::tensor::Tensor;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// A Python with `torch`, `transformers` and `peft`.
pub(crate) struct Python(OsString);

impl Python {
    /// The one that `PEFT_PYTHON` names; where it names none, a line says that the test did nothing.
    pub(crate) fn find() -> Option<Self> {
        Self::named("PEFT_PYTHON", "torch, transformers and peft")
    }

    /// The one with these modules that a variable names.
    pub(crate) fn named(variable: &str, modules: &str) -> Option<Self> {
        let found = std::env::var_os(variable).map(Self);
        if found.is_none() {
            peft_testing::skip(format!("{variable} names no Python with {modules}"));
        }
        found
    }

    /// Runs a script of this crate's tests on a base model and a folder of cases.
    pub(crate) fn run(&self, script: &str, base: &Path, cases: &Path) -> Answers {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let said = Command::new(&self.0)
            .arg(tests.join(script))
            .arg(base)
            .arg(cases)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        let results: BTreeMap<String, Value> = text
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&said.stderr)));
        Answers(results)
    }
}

/// What a script says of each case, by name.
pub(crate) struct Answers(BTreeMap<String, Value>);

impl Answers {
    /// Panics, naming them, if there are cases whose difference under `key`, or that of the merged model where there
    /// is one, is 1e-5 or more, or of which Python warned. Warnings of the cases in `noisy` say nothing. A case for which
    /// Python lacks a package is left out, and said.
    pub(crate) fn check<'a>(
        &self,
        cases: impl IntoIterator<Item = &'a str>,
        key: &str,
        noisy: &[&str],
    ) {
        let near = |value: &Value| value.as_f64().is_some_and(|distance| distance < 1e-5);
        let mut wrong = Vec::new();
        for name in cases {
            let result = &self.0[name];
            println!("{name}: {result}");
            if result.get("left_out").is_some() {
                continue;
            }
            let merged = result.get("merged").is_none_or(near);
            let silent = result["warnings"].as_array().is_some_and(Vec::is_empty);
            let quiet = silent || noisy.contains(&name);
            if !(near(&result[key]) && merged && quiet) {
                wrong.push(format!("{name}: {result}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Writes what goes into a model, each of `shape`, and what came out of it here.
pub(crate) fn write_io<const D: usize>(
    file: &Path,
    inputs: &[(&str, &[i64])],
    shape: [usize; 2],
    output: &Tensor<D>,
) {
    let output_shape = output.dims().to_vec();
    let bytes: Vec<u8> = output
        .to_data()
        .iter::<f32>()
        .flat_map(f32::to_le_bytes)
        .collect();
    let ints =
        |values: &[i64]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let inputs: Vec<(&str, Vec<u8>)> = inputs
        .iter()
        .map(|(name, values)| (*name, ints(values)))
        .collect();
    let view = |dtype, shape: Vec<usize>, data| TensorView::new(dtype, shape, data).unwrap();
    let mut tensors = vec![("output", view(Dtype::F32, output_shape, &bytes))];
    for (name, values) in &inputs {
        tensors.push((*name, view(Dtype::I64, shape.to_vec(), values)));
    }
    safetensors::serialize_to_file(tensors, None, file).unwrap();
}
