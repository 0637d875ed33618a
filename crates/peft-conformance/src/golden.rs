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
use peft_core::{MethodInfo, PeftModule, checkpoint};
use peft_models::{Bert, Llama};
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
    // `max` would overlook what is no number.
    Ok(ours
        .iter::<f32>()
        .zip(theirs.iter::<f32>())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, next| if next <= most { most } else { next }))
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
    match config["model_type"].as_str() {
        Some("bert") => {
            let autodiff = device.clone().autodiff();
            let bert = Bert::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |bert: &Bert, ids, padding| bert.forward(ids, Some(padding)).hidden;
            measure_model(&bert, run, case, methods, device)
        }
        Some("llama" | "mistral" | "qwen2") => {
            let autodiff = device.clone().autodiff();
            let llama = Llama::load(base, &autodiff).map_err(|error| problem(&error))?;
            let run = |llama: &Llama, ids, padding| llama.forward(ids, Some(padding));
            measure_model(&llama, run, case, methods, device)
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
            rounding.output = rounding.output.max(moved);
            if let (Some(here), Some(theirs)) = (&here, theirs) {
                let moved = farthest_of_gradients(&self.gradients(&model)?, here, theirs)?;
                rounding.gradients = rounding.gradients.max(moved);
            }
        }
        Ok(rounding)
    }
}

/// Largest difference of those that `keys` has, over the largest that it has.
fn farthest_of_gradients(a: &Tensors, b: &Tensors, keys: &Tensors) -> Result<f32, Problem> {
    let largest = keys
        .values()
        .flat_map(|data| data.iter::<f32>().map(f32::abs).collect::<Vec<_>>())
        .fold(0.0, f32::max);
    let mut worst = 0.0_f32;
    for key in keys.keys() {
        let renamed = RENAMED.iter().find(|(from, _)| from == key);
        let find = |tensors: &'_ Tensors| {
            let found = tensors.get(key).cloned();
            found.or_else(|| tensors.get(renamed?.1).cloned())
        };
        let missing = || Problem::Failed(format!("no gradient for `{key}` here"));
        let (a, b) = (find(a).ok_or_else(missing)?, find(b).ok_or_else(missing)?);
        let distance = farthest(&a, &b, key)?;
        worst = if distance <= worst { worst } else { distance };
    }
    Ok(worst / largest)
}

fn measure_model<M: PeftModule>(
    base: &M,
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
        output = if trained <= output { output } else { trained };
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
        // Where upstream's merged model computes something else than its unmerged one (embeddings that are the
        // head as well), the unmerged one is what is right.
        let wrong = farthest(merged, &unmerged, "upstream's merged output")? > MERGE_ERROR;
        let expected = if wrong { &unmerged } else { merged };
        measured.merged = Some(farthest(&output, expected, "merged output")?);
    }
    let path = case.join("grads.safetensors");
    let theirs = path.exists().then(|| read(&path)).transpose()?;
    let theirs = theirs.map(|(tensors, _)| shared::summed(tensors, &adapter));
    if let Some(theirs) = &theirs {
        let ours = loaded.gradients(&loaded.model)?;
        measured.gradients = Some(farthest_of_gradients(&ours, theirs, theirs)?);
    }
    if !measured.fits(tolerance(&peft_type(case))) {
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
}

/// 1e-4, and twice that for methods whose goldens say so: their changes are large.
pub fn tolerance(peft_type: &str) -> Tolerance {
    let (output, gradients) = match peft_type {
        "RANDLORA" | "ADALORA" | "FOURIERFT" => (2e-4, 2e-4),
        _ => (1e-4, 1e-4),
    };
    Tolerance { output, gradients }
}

/// Differences of so many times what [`Rounding`] does are rounding.
pub const ROUNDINGS: f32 = 2.0;

impl Measured {
    /// Whether nothing is farther from upstream than `tolerance`, or than rounding explains, and the counts are
    /// equal.
    pub fn fits(&self, tolerance: Tolerance) -> bool {
        let of = |rounding: fn(&Rounding) -> f32| {
            self.rounding
                .as_ref()
                .map_or(0.0, |all| ROUNDINGS * rounding(all))
        };
        let output = tolerance.output.max(of(|all| all.output));
        let gradients = tolerance.gradients.max(of(|all| all.gradients));
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
            let tolerance = tolerance(&peft_type(&cases.join(name)));
            assert!(
                measured.fits(tolerance),
                "{name} on {device_name}: {measured:?}, wanted {tolerance:?}"
            );
        }
    }
}
