//! Upstream's checkpoints and the values that upstream computes from them.
//!
//! A case is a folder with a checkpoint as upstream writes it, and beside it `io.safetensors`
//! (`input_ids`, `attention_mask`, `output`, where upstream can merge `merged`; metadata
//! `trainable`) and, where upstream's gradients are known, `grads.safetensors`: those of
//! mean(output²), by checkpoint key. Where upstream trains an encoder and stores what that computes,
//! `encoder.safetensors` holds the encoder, and the gradients are those of its parameters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Bool, Device, Distribution, Gradients, Int, Tensor, TensorData};
use peft_core::method::MethodInfo;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, checkpoint};
use peft_models::{Bert, Llama};
use peft_testing::largest;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::shared;

type Tensors = BTreeMap<String, TensorData>;

/// What a case was found to be.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Largest difference of the outputs.
    pub output: f32,
    /// Largest difference of the merged model's outputs, where upstream can merge.
    pub merged: Option<f32>,
    /// Largest difference of the gradients, over the largest gradient, where they are known.
    pub gradients: Option<f32>,
    /// Elements that are trained here.
    pub trainable: usize,
    /// Elements that upstream trains.
    pub expected: usize,
    /// What rounding does to this case; measured where something is beyond [`tolerance`].
    pub rounding: Option<Rounding>,
}

/// How far the values of a case move where every parameter, of the base too, moves by its last bit at random:
/// the largest of four draws. A calculation in `f32` rounds after every operation, so two that are both
/// right differ by some times that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Of the outputs.
    pub output: f32,
    /// Of the gradients, over the largest gradient; 0 where upstream's are not known.
    pub gradients: f32,
}

/// Of a case whose rounding is measured.
const DRAWS: u64 = 4;

/// Why a case could not be measured.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// There is no such method, or no such model, here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The case could not be read or run.
    #[error("{0}")]
    Failed(String),
}

impl Problem {
    fn new(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> Self + '_ {
        move |reason| Self::Failed(format!("{}: {reason}", path.display()))
    }
}

impl From<peft_core::Error> for Problem {
    fn from(error: peft_core::Error) -> Self {
        match error {
            peft_core::Error::UnknownMethod { found, .. } => Self::Unsupported(found),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Tensors and metadata of a file that says what upstream computes.
fn read(path: &Path) -> Result<(Tensors, BTreeMap<String, String>), Problem> {
    let problem = Problem::new(path);
    let bytes = fs::read(path).map_err(|error| problem(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| problem(&error))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| problem(&error))?;
    let tensors = file
        .iter()
        .map(|(key, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => burn::tensor::DType::F32,
                Dtype::I64 => burn::tensor::DType::I64,
                other => return Err(problem(&format!("{key} is {other:?}"))),
            };
            let data =
                TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
            Ok((key.to_string(), data))
        })
        .collect::<Result<_, _>>()?;
    let metadata = header.metadata().clone().unwrap_or_default();
    Ok((tensors, metadata.into_iter().collect()))
}

/// Moves every number by its last bit, up or down.
struct LastBit;

impl ModuleMapper for LastBit {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trained = param.is_require_grad();
        param.map(|value| {
            let value = value.detach();
            let coins = value.random_like(Distribution::Bernoulli(0.5)) * 2.0 - 1.0;
            let moved = (value.clone() + value * coins * f64::from(f32::EPSILON)).detach();
            if trained { moved.require_grad() } else { moved }
        })
    }
}

/// Puts the gradient of every adapter parameter in its place, so that the adapter's tensors are gradients under
/// upstream's keys.
struct GradientsAsValues<'a> {
    gradients: &'a Gradients,
    inside: usize,
}

impl ModuleMapper for GradientsAsValues<'_> {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside += usize::from(container == "Adapter");
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(container == "Adapter");
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.inside == 0 {
            return param;
        }
        let gradient = param.base().grad(self.gradients);
        param.map(|value| match gradient {
            Some(gradient) => Tensor::from_inner(gradient),
            None => value.detach() * 0.0,
        })
    }
}

fn farthest(ours: &TensorData, theirs: &TensorData, what: &str) -> Result<f32, Problem> {
    if ours.shape() != theirs.shape() {
        return Err(Problem::Failed(format!(
            "{what}: shape {:?} here, {:?} upstream",
            ours.shape(),
            theirs.shape()
        )));
    }
    Ok(peft_testing::farthest(ours.iter::<f32>(), theirs.iter::<f32>()) as f32)
}

/// The largest of some distances; NaN where one of them is.
fn worst(distances: impl IntoIterator<Item = f32>) -> f32 {
    largest(distances) as f32
}

/// What upstream calls something that it trains, where the checkpoint has another name for it.
const RENAMED: &[(&str, &str)] = &[("prompt_encoder.embedding.weight", "prompt_embeddings")];

/// Loads a case through the public API and measures how far it is from upstream.
///
/// # Errors
///
/// [`Problem::Unsupported`] for a model or method that is not here; [`Problem::Failed`] for
/// everything else that keeps the case from being measured.
pub fn measure(
    base: &Path,
    case: &Path,
    methods: &[&MethodInfo],
    device: &Device,
) -> Result<Measured, Problem> {
    let path = base.join("config.json");
    let problem = Problem::new(&path);
    let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
    let config: Value = serde_json::from_str(&text).map_err(|error| problem(&error))?;
    // Hidden states and logits of tokens are measured; a classifier's are another model's.
    if let Some(head) = config["architectures"][0].as_str()
        && head.contains("Classification")
    {
        return Err(Problem::Unsupported(format!("a base that is a {head}")));
    }
    match config["model_type"].as_str() {
        Some("bert") => {
            let autodiff = device.clone().autodiff();
            let bert = Bert::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |bert: &Bert, ids, padding| bert.forward(ids, Some(padding)).hidden;
            measure_model(&bert, "bert", run, case, methods, device)
        }
        Some("llama" | "mistral" | "qwen2") => {
            let autodiff = device.clone().autodiff();
            let llama = Llama::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |llama: &Llama, ids, padding| llama.forward(ids, Some(padding));
            measure_model(&llama, "llama", run, case, methods, device)
        }
        other => Err(Problem::Unsupported(format!(
            "model_type {}",
            other.unwrap_or("missing")
        ))),
    }
}

/// The model with a case's adapter as it was trained, where upstream trained an encoder and stored what that
/// computes.
fn as_trained<M: PeftModule>(
    base: &M,
    case: &Path,
    methods: &[&MethodInfo],
) -> Result<Option<M>, Problem> {
    let path = case.join("encoder.safetensors");
    if !path.exists() {
        return Ok(None);
    }
    let (encoder, _) = read(&path)?;
    let config = checkpoint::read_config(case)?;
    let info = methods
        .iter()
        .find(|info| config["peft_type"] == info.peft_type);
    // Of one tensor it is what the checkpoint holds.
    let Some(info) = info.filter(|_| encoder.len() > 1) else {
        return Ok(None);
    };
    let method = (info.parse)(&config)?;
    let fresh = base.attach("golden", method.as_ref())?;
    Ok(Some(fresh.with_adapter_tensors("golden", encoder)?))
}

/// The checkpoint, set to compute gradients as upstream does where those are not what they should be.
fn upstream_gradients(case: &Path) -> Result<tempfile::TempDir, Problem> {
    let problem = Problem::new(case);
    let dir = tempfile::tempdir().map_err(|error| problem(&error))?;
    for file in fs::read_dir(case).map_err(|error| problem(&error))? {
        let file = file.map_err(|error| problem(&error))?;
        fs::copy(file.path(), dir.path().join(file.file_name()))
            .map_err(|error| problem(&error))?;
    }
    if peft_type(case) == "C3A" {
        let path = dir.path().join(checkpoint::CONFIG_FILE);
        let mut config = checkpoint::read_config(dir.path())?;
        if let Some(fields) = config.as_object_mut() {
            fields.insert("upstream_gradient".into(), true.into());
        }
        fs::write(path, config.to_string()).map_err(|error| problem(&error))?;
    }
    Ok(dir)
}

/// Beyond this upstream's merged output is not its unmerged one's.
const MERGE_ERROR: f32 = 1e-3;

/// Cases whose merged output is upstream's bug, so that its unmerged one says what is right, each with its kind of
/// model: the table is the head as well, and merging changes both, where the adapter changes one.
pub const UPSTREAM_MERGES_WRONG: &[(&str, &str)] = &[
    ("llama", "lora_embedding"),
    ("llama", "lora_dora_embedding"),
    ("llama", "lora_tied_head"),
    ("llama", "lora_weight_tying_head"),
    ("llama", "lora_weight_tying_targets"),
];

/// What a merged model must compute: upstream's merged output, or its unmerged one in a case of
/// [`UPSTREAM_MERGES_WRONG`].
fn expected_of_merged<'a>(
    case: &Path,
    model: &str,
    [merged, unmerged]: [&'a TensorData; 2],
) -> Result<&'a TensorData, Problem> {
    let distance = farthest(merged, unmerged, "upstream's merged output")?;
    if distance <= MERGE_ERROR {
        return Ok(merged);
    }
    if UPSTREAM_MERGES_WRONG.contains(&(model, name(case))) {
        return Ok(unmerged);
    }
    Err(Problem::new(case)(&format!(
        "upstream's merged output is {distance:e} from its unmerged one, and the case is not named in \
         UPSTREAM_MERGES_WRONG"
    )))
}

/// The name of a case's folder.
fn name(case: &Path) -> &str {
    case.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("")
}

/// A loaded case, and what goes into it.
struct Loaded<'a, M, F> {
    model: M,
    forward: F,
    device: &'a Device,
    ids: TensorData,
    mask: TensorData,
}

impl<M: PeftModule, F: Fn(&M, Tensor<2, Int>, Tensor<2, Bool>) -> Tensor<3>> Loaded<'_, M, F> {
    fn run(&self, model: &M, device: &Device) -> Tensor<3> {
        let ids = Tensor::<2, Int>::from_data(self.ids.clone(), device);
        let mask = Tensor::<2, Int>::from_data(self.mask.clone(), device);
        (self.forward)(model, ids, mask.equal_elem(0))
    }

    fn output(&self, model: &M) -> TensorData {
        self.run(&model.valid(), self.device).into_data()
    }

    /// Those of mean(output²), by checkpoint key.
    fn gradients(&self, model: &M) -> Result<Tensors, Problem> {
        let output = self.run(model, &self.device.clone().autodiff());
        let gradients = (output.clone() * output).mean().backward();
        let mut mapper = GradientsAsValues {
            gradients: &gradients,
            inside: 0,
        };
        let model = model.clone().map(&mut mapper);
        Ok(model.adapter_tensors("golden")?)
    }

    fn rounding(&self, theirs: Option<&Tensors>) -> Result<Rounding, Problem> {
        let output = self.output(&self.model);
        let here = theirs.map(|_| self.gradients(&self.model)).transpose()?;
        let mut rounding = Rounding {
            output: 0.0,
            gradients: 0.0,
        };
        for seed in 0..DRAWS {
            self.device.seed(seed);
            let model = self.model.clone().map(&mut LastBit);
            let moved = farthest(&self.output(&model), &output, "output")?;
            rounding.output = worst([rounding.output, moved]);
            if let (Some(here), Some(theirs)) = (&here, theirs) {
                let moved = farthest_of_gradients(&self.gradients(&model)?, here, theirs)?;
                rounding.gradients = worst([rounding.gradients, moved]);
            }
        }
        Ok(rounding)
    }
}

/// Largest difference of those that `keys` has, over the largest that it has.
fn farthest_of_gradients(a: &Tensors, b: &Tensors, keys: &Tensors) -> Result<f32, Problem> {
    let largest = worst(keys.values().flat_map(|data| data.iter::<f32>()));
    let mut distances = Vec::new();
    for key in keys.keys() {
        let renamed = RENAMED.iter().find(|(from, _)| from == key);
        let find = |tensors: &'_ Tensors| {
            let found = tensors.get(key).cloned();
            found.or_else(|| tensors.get(renamed?.1).cloned())
        };
        let missing = || Problem::Failed(format!("no gradient for `{key}` here"));
        let (a, b) = (find(a).ok_or_else(missing)?, find(b).ok_or_else(missing)?);
        distances.push(farthest(&a, &b, key)?);
    }
    Ok(worst(distances) / largest)
}

fn measure_model<M: PeftModule>(
    base: &M,
    kind: &str,
    forward: impl Fn(&M, Tensor<2, Int>, Tensor<2, Bool>) -> Tensor<3>,
    case: &Path,
    methods: &[&MethodInfo],
    device: &Device,
) -> Result<Measured, Problem> {
    let problem = Problem::new(case);
    let dir = upstream_gradients(case)?;
    let (io, metadata) = read(&case.join("io.safetensors"))?;
    let expected = metadata.get("trainable").and_then(|text| text.parse().ok());
    let expected: usize = expected.ok_or_else(|| problem(&"io.safetensors says no `trainable`"))?;
    let known = |key: &str| {
        let missing = || problem(&format!("io.safetensors has no `{key}`"));
        io.get(key).cloned().ok_or_else(missing)
    };
    let mut loaded = Loaded {
        model: base.load_adapter("golden", dir.path(), methods)?,
        forward,
        device,
        ids: known("input_ids")?,
        mask: known("attention_mask")?,
    };
    let unmerged = known("output")?;
    let mut output = farthest(&loaded.output(&loaded.model), &unmerged, "output")?;
    if let Some(model) = as_trained(base, dir.path(), methods)? {
        let trained = farthest(&loaded.output(&model), &unmerged, "output as trained")?;
        output = worst([output, trained]);
        loaded.model = model;
    }
    let adapter = loaded.model.adapter_tensors("golden")?;
    let twice = shared::counted_twice(&adapter);
    let mut measured = Measured {
        output,
        merged: None,
        gradients: None,
        trainable: loaded.model.counts().trainable,
        expected: expected.saturating_sub(twice),
        rounding: None,
    };
    if let Some(merged) = io.get("merged") {
        let plain = loaded.model.valid().merge_and_unload()?;
        let output = loaded.run(&plain, device).into_data();
        let expected = expected_of_merged(case, kind, [merged, &unmerged])?;
        measured.merged = Some(farthest(&output, expected, "merged output")?);
    }
    let path = case.join("grads.safetensors");
    let theirs = path.exists().then(|| read(&path)).transpose()?;
    let theirs = theirs.map(|(tensors, _)| shared::summed(tensors, &adapter));
    if let Some(theirs) = &theirs {
        let ours = loaded.gradients(&loaded.model)?;
        measured.gradients = Some(farthest_of_gradients(&ours, theirs, theirs)?);
    }
    if !measured.fits(tolerance(case)) {
        measured.rounding = Some(loaded.rounding(theirs.as_ref())?);
    }
    Ok(measured)
}

/// How far from upstream's a case of a method may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of outputs, merged or not, which are of order 1.
    pub output: f32,
    /// Of gradients, relative to the largest.
    pub gradients: f32,
    /// What rounding excuses at most, of outputs and gradients; 0 in a case that is not named in
    /// [`EXCUSED_BY_ROUNDING`].
    pub excused: f32,
}

/// Cases in which more than the tolerance is rounding: the last bit of their parameters moves them by nearly that.
pub const EXCUSED_BY_ROUNDING: &[&str] = &["randlora"];

/// How much of that is excused in such a case: [`ROUNDINGS`] times what [`Rounding`] does, and never more than this.
pub const MOST_EXCUSED: f32 = 1e-3;

/// Differences of so many times what [`Rounding`] does are rounding.
pub const ROUNDINGS: f32 = 2.0;

/// 1e-4, and twice that for methods whose goldens say so: their changes are large.
pub fn tolerance(case: &Path) -> Tolerance {
    let most = match peft_type(case).as_str() {
        "RANDLORA" | "ADALORA" | "FOURIERFT" => 2e-4,
        _ => 1e-4,
    };
    let excused = EXCUSED_BY_ROUNDING.contains(&name(case));
    Tolerance {
        output: most,
        gradients: most,
        excused: if excused { MOST_EXCUSED } else { 0.0 },
    }
}

impl Measured {
    /// Whether nothing is farther from upstream than `tolerance`, or than rounding explains where that is an
    /// excuse, and the counts are equal.
    pub fn fits(&self, tolerance: Tolerance) -> bool {
        let allowed = |own: f32, rounding: fn(&Rounding) -> f32| {
            let explained = self.rounding.as_ref().map(|all| ROUNDINGS * rounding(all));
            // What is no number explains nothing.
            match explained.filter(|explained| explained.is_finite()) {
                Some(explained) => own.max(explained.min(tolerance.excused)),
                None => own,
            }
        };
        let output = allowed(tolerance.output, |all| all.output);
        let gradients = allowed(tolerance.gradients, |all| all.gradients);
        let outputs = [Some(self.output), self.merged];
        self.trainable == self.expected
            && outputs
                .into_iter()
                .flatten()
                .all(|distance| distance <= output)
            && self.gradients.is_none_or(|distance| distance <= gradients)
    }
}

/// The `peft_type` of a case's checkpoint, empty where it has none.
pub fn peft_type(case: &Path) -> String {
    let text = fs::read_to_string(case.join(checkpoint::CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    config["peft_type"].as_str().unwrap_or_default().to_string()
}

/// Checks cases on every CPU device, within [`tolerance`].
///
/// # Panics
///
/// Naming case, device and distances.
pub fn check(base: &Path, cases: &Path, names: &[&str], methods: &[&MethodInfo]) {
    for (device_name, device) in peft_core::device::cpu_devices() {
        for name in names {
            let measured = measure(base, &cases.join(name), methods, &device)
                .unwrap_or_else(|problem| panic!("{name} on {device_name}: {problem}"));
            println!("{name} on {device_name}: {measured:?}");
            let tolerance = tolerance(&cases.join(name));
            assert!(
                measured.fits(tolerance),
                "{name} on {device_name}: {measured:?}, wanted {tolerance:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(output: f32, gradients: f32, rounding: Option<f32>) -> Measured {
        Measured {
            output,
            merged: None,
            gradients: Some(gradients),
            trainable: 1,
            expected: 1,
            rounding: rounding.map(|rounding| Rounding {
                output: rounding,
                gradients: rounding,
            }),
        }
    }

    fn allowed(excused: f32) -> Tolerance {
        Tolerance {
            output: 1e-4,
            gradients: 1e-4,
            excused,
        }
    }

    #[test]
    fn rounding_excuses_named_cases_only_and_not_everything() {
        let (named, other) = (allowed(MOST_EXCUSED), allowed(0.0));
        assert!(measured(9e-5, 9e-5, None).fits(other));
        for (output, gradients) in [(3e-4, 0.0), (0.0, 3e-4)] {
            let far = measured(output, gradients, Some(2e-4));
            assert!(far.fits(named), "{far:?}");
            assert!(!far.fits(other), "{far:?}");
            assert!(!measured(output, gradients, Some(1e-4)).fits(named));
            assert!(!measured(output, gradients, None).fits(named));
        }
        // A case that rounding moves by everything proves nothing.
        assert!(!measured(2e-3, 0.0, Some(1.0)).fits(named));
        assert_eq!(tolerance(Path::new("x/lora")).excused.to_bits(), 0);
        assert!(tolerance(Path::new("x/randlora")).excused > 0.0);
    }

    #[test]
    fn what_is_no_number_does_not_fit() {
        for bad in [f32::NAN, f32::INFINITY] {
            for case in [measured(bad, 0.0, None), measured(0.0, bad, None)] {
                assert!(!case.fits(allowed(MOST_EXCUSED)), "{case:?}");
            }
            let mut case = measured(0.0, 0.0, None);
            case.merged = Some(bad);
            assert!(!case.fits(allowed(MOST_EXCUSED)), "{case:?}");
            assert!(!measured(3e-4, 0.0, Some(bad)).fits(allowed(MOST_EXCUSED)));
        }
        let data = |value: f32| TensorData::new(vec![1.0, value], [2]);
        let distance = farthest(&data(f32::NAN), &data(1.0), "output").unwrap();
        assert!(distance.is_nan());
    }
}
