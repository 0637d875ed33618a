//! Upstream's checkpoints and the values that upstream computes from them.
//!
//! A case is a folder with a checkpoint as upstream writes it, and beside it `io.safetensors`
//! (`input_ids`, `attention_mask`, `output`, where upstream can merge `merged`; metadata
//! `trainable`) and, where upstream's gradients are known, `grads.safetensors`: those of
//! mean(output²), by checkpoint key.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData};
use peft_core::{MethodInfo, PeftModule, checkpoint};
use peft_models::Bert;
use safetensors::{Dtype, SafeTensors};

/// Largest differences from upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distances {
    /// Of the outputs.
    pub output: f32,
    /// Of the merged model's outputs.
    pub merged: Option<f32>,
    /// Of the gradients, over the largest gradient.
    pub gradients: Option<f32>,
}

type Tensors = BTreeMap<String, TensorData>;

fn read(path: &Path) -> (Tensors, BTreeMap<String, String>) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("golden files are valid");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("golden files are valid");
    let tensors = file
        .iter()
        .map(|(key, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => burn::tensor::DType::F32,
                Dtype::I64 => burn::tensor::DType::I64,
                other => panic!("{}: {key} is {other:?}", path.display()),
            };
            let data =
                TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
            (key.to_string(), data)
        })
        .collect();
    let metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    (tensors, metadata)
}

/// Puts the gradient of every adapter parameter in its place, so that saving the adapter writes
/// gradients under upstream's keys.
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

fn farthest(ours: &TensorData, theirs: &TensorData, what: &str) -> f32 {
    assert_eq!(ours.shape(), theirs.shape(), "{what}");
    ours.iter::<f32>()
        .zip(theirs.iter::<f32>())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Loads a case through the public API and measures how far it is from upstream.
///
/// `renamed` maps a key of `grads.safetensors` to the checkpoint's, for upstreams that save
/// something else than what they train.
///
/// # Panics
///
/// If the case cannot be loaded, or if its count of trained parameters differs.
pub fn compare(
    base: &Path,
    case: &Path,
    methods: &[&MethodInfo],
    renamed: &[(&str, &str)],
    device: &Device,
) -> Distances {
    let autodiff = device.clone().autodiff();
    let bert = Bert::load(base, &autodiff).unwrap_or_else(|error| panic!("{error}"));
    let model = bert
        .load_adapter("golden", case, methods)
        .unwrap_or_else(|error| panic!("{}: {error}", case.display()));
    let (io, metadata) = read(&case.join("io.safetensors"));
    let trainable: usize = metadata["trainable"].parse().expect("a count");
    assert_eq!(
        model.counts().trainable,
        trainable,
        "{}: trainable",
        case.display()
    );

    let run = |model: &Bert, device: &Device| {
        let ids = Tensor::<2, Int>::from_data(io["input_ids"].clone(), device);
        let mask = Tensor::<2, Int>::from_data(io["attention_mask"].clone(), device);
        let padding: Tensor<2, Bool> = mask.equal_elem(0);
        model.forward(ids, Some(padding)).hidden
    };
    let output = run(&model.valid(), device).into_data();
    let mut distances = Distances {
        output: farthest(&output, &io["output"], "output"),
        ..Distances::default()
    };
    if let Some(merged) = io.get("merged") {
        let plain = model
            .valid()
            .merge_and_unload()
            .unwrap_or_else(|error| panic!("{error}"));
        distances.merged = Some(farthest(&run(&plain, device).into_data(), merged, "merged"));
    }
    let path = case.join("grads.safetensors");
    if path.exists() {
        let output = run(&model, &autodiff);
        let gradients = (output.clone() * output).mean().backward();
        let mut mapper = GradientsAsValues {
            gradients: &gradients,
            inside: 0,
        };
        let model = model.map(&mut mapper);
        let dir = tempfile::tempdir().expect("a temporary folder");
        model
            .save_adapter("golden", dir.path())
            .unwrap_or_else(|error| panic!("{error}"));
        let ours = read(&dir.path().join(checkpoint::MODEL_FILE)).0;
        let theirs = read(&path).0;
        let largest = theirs
            .values()
            .flat_map(|data| data.iter::<f32>().map(f32::abs).collect::<Vec<_>>())
            .fold(0.0, f32::max);
        let mut worst = 0.0_f32;
        for (key, gradient) in &theirs {
            let key = renamed
                .iter()
                .find(|(from, _)| from == key)
                .map_or(key.as_str(), |(_, to)| to);
            let ours = ours
                .get(key)
                .unwrap_or_else(|| panic!("no gradient for `{key}`"));
            worst = worst.max(farthest(ours, gradient, key) / largest);
        }
        distances.gradients = Some(worst);
    }
    distances
}

/// Checks cases on every CPU device: outputs within 1e-4, gradients within 1e-4 of the largest.
///
/// # Panics
///
/// Naming case, device and distances.
pub fn check(
    base: &Path,
    cases: &Path,
    names: &[&str],
    methods: &[&MethodInfo],
    renamed: &[(&str, &str)],
) {
    for (device_name, device) in peft_core::device::cpu_devices() {
        for name in names {
            let distances = compare(base, &cases.join(name), methods, renamed, &device);
            println!("{name} on {device_name}: {distances:?}");
            let all = [
                Some(distances.output),
                distances.merged,
                distances.gradients,
            ];
            let fits = all.into_iter().flatten().all(|distance| distance < 1e-4);
            assert!(fits, "{name} on {device_name}: {distances:?}");
        }
    }
}
