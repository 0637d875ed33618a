//! A method of the user's own that changes a few elements of each weight, as those of sparse training do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::calibration::{Calibrate as _, CalibrationConfig};
use peft_core::method::{
    Common, Family, Layout, Method, MethodConfig, MethodInfo, Plan, SparseDelta,
};
use peft_core::nn::AdaptedForward as _;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule as _, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

static SPARSE: MethodInfo = MethodInfo {
    name: "sparse",
    peft_type: "SPARSE",
    title: "Sparse",
    family: Family::Selective,
    reference: "a method of this test",
    identity_at_init: true,
    mergeable: true,
    parse: |json| {
        let count = json["count"].as_u64().unwrap_or_default() as usize;
        Ok(Box::new(SparseConfig::new(count)))
    },
    recognises: None,
};

#[derive(Clone, Debug)]
struct SparseConfig {
    common: Common,
    /// How many elements of each weight change.
    count: usize,
}

impl SparseConfig {
    fn new(count: usize) -> Self {
        Self {
            common: Common::default(),
            count,
        }
    }
}

/// The places of the `count` largest of `scores` `[in, out]`, as upstream has them: outputs, then inputs.
fn largest(scores: &TensorData, count: usize) -> Vec<i64> {
    let width = scores.shape()[1];
    let scores: Vec<f32> = scores.iter::<f32>().collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let places = &order[..count];
    let outputs = places.iter().map(|place| (place % width) as i64);
    outputs
        .chain(places.iter().map(|place| (place / width) as i64))
        .collect()
}

impl MethodConfig for SparseConfig {
    fn info(&self) -> &'static MethodInfo {
        &SPARSE
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn check_fields(&self) -> Result<()> {
        Ok(())
    }

    fn to_json(&self) -> Value {
        json!({ "peft_type": SPARSE.peft_type, "count": self.count })
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for SparseConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for param in layout.params.iter().filter(|p| p.shape().len() == 2) {
            let (device, count) = (param.device(), self.count);
            let scores = match plan.calibration() {
                Some(calibration) => calibration.gradients(&param.name)?.mean_square::<2>()?,
                None => param.value::<2>().abs(),
            };
            let shape = [param.shape()[0], param.shape()[1]];
            let init = plan.init();
            let values = init.zeros([count], (&device, param.dtype()));
            let indices = init.integers([2, count], (&device, DType::I32), |_| {
                largest(&scores.into_data(), count)
            });
            let state = SparseDelta::coordinates(values, indices, shape);
            plan.adapt_weight(param, state);
        }
        Ok(())
    }
}

#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

const COUNT: usize = 4;

fn net(device: &Device) -> Net {
    let mut layer: Linear = LinearConfig::new(3, 5).init(device);
    let values = (0..15_u8).map(|at| f32::from(at * 7 % 15) - 7.0);
    let values = TensorData::new(values.collect(), [3, 5]);
    layer.weight = Param::from_tensor(Tensor::from_data(values, device));
    Net { layer }
}

fn loss(model: &Net) -> Tensor<1> {
    let device = model.layer.weight.device();
    let input = Tensor::<2>::from_data([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]], &device);
    model.layer.adapted(input).square().mean()
}

fn trained(mut model: Net) -> Net {
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..3 {
        let gradients = GradientsParams::from_grads(loss(&model).backward(), &model);
        assert_eq!(gradients.len(), 1, "integers get no gradient");
        model = optimizer.step(0.1, model, gradients);
    }
    model
}

fn state(model: &Net) -> SparseDelta {
    model
        .adapter_states::<SparseDelta>("a")
        .unwrap()
        .remove(0)
        .1
}

fn composed(model: &Net) -> Vec<f32> {
    let weight = model.layer.weight.val();
    weight.into_data().iter::<f32>().collect()
}

#[test]
fn sparse_changes_are_trained_saved_loaded_and_merged() {
    for (name, device) in peft_core::device::cpu_devices() {
        let autodiff = device.clone().autodiff();
        let base = net(&autodiff);
        let fresh = base.attach("a", &SparseConfig::new(COUNT)).unwrap();
        let model = trained(fresh.clone());
        assert!(
            loss(&model).into_scalar::<f32>() < loss(&base).into_scalar::<f32>(),
            "{name}"
        );
        let integers = state(&fresh).indices.val().into_data();
        assert_eq!(state(&model).indices.val().into_data(), integers);
        let moved = composed(&model)
            .iter()
            .zip(composed(&base))
            .filter(|(a, b)| a.total_cmp(b).is_ne())
            .count();
        assert_eq!(moved, COUNT);

        let counts = model.counts();
        assert_eq!(counts.trainable, COUNT);
        assert_eq!(counts.changed, COUNT);
        assert_eq!(counts.stored, 3 * COUNT);
        assert_eq!(counts.stored_bytes, 3 * COUNT * 4);
        assert_eq!(counts.total, 3 * 5 + 5 + COUNT);

        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("a", dir.path()).unwrap();
        let bytes = fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let stored = file.tensor(INDICES).unwrap();
        assert_eq!(
            (stored.dtype(), stored.shape()),
            (Dtype::I32, &[2, COUNT][..])
        );
        for other in [&device, &autodiff] {
            let loaded = net(other)
                .load_adapter("a", dir.path(), &[&SPARSE])
                .unwrap();
            assert_eq!(composed(&loaded), composed(&model));
            assert_eq!(loaded.counts().stored, 3 * COUNT);
            let merged = loaded.merge_and_unload().unwrap();
            assert_eq!(composed(&merged), composed(&model));
        }
        // A loaded adapter trains on.
        trained(base.load_adapter("a", dir.path(), &[&SPARSE]).unwrap());
    }
}

#[test]
fn integers_go_where_the_adapter_goes() {
    let devices = peft_core::device::cpu_devices();
    let device = devices[0].1.clone();
    let base = net(&device.clone().autodiff());
    let model = trained(base.attach("a", &SparseConfig::new(COUNT)).unwrap());
    let expected = composed(&model);
    assert_eq!(composed(&model.valid()), expected);
    assert_eq!(composed(&model.valid().train()), expected);
    for (name, other) in &devices {
        for moved in [
            model.valid().to_device(other),
            model.clone().fork(&other.clone().autodiff()),
        ] {
            assert_eq!(composed(&moved), expected, "{name}");
        }
    }

    let tensors = model.adapter_tensors("a").unwrap();
    assert_eq!(tensors[INDICES].dtype(), DType::I32);
    let other = base.attach("a", &SparseConfig::new(COUNT)).unwrap();
    let mut changed = tensors.clone();
    let points = TensorData::new(vec![0_i32, 1, 2, 3, 0, 1, 2, 0], [2, COUNT]);
    changed.insert(INDICES.to_string(), points.clone());
    let other = other.with_adapter_tensors("a", changed).unwrap();
    assert_eq!(state(&other).indices.val().into_data(), points);
    let other = other.with_adapter_tensors("a", tensors.clone()).unwrap();
    assert_eq!(composed(&other), expected);
    let beyond = TensorData::new(vec![0_i32, 1, 2, 5, 0, 1, 2, 0], [2, COUNT]);
    let mut tensors = tensors;
    tensors.insert(INDICES.to_string(), beyond);
    let error = other.with_adapter_tensors("a", tensors).unwrap_err();
    assert!(matches!(error, Error::Tensors { .. }), "{error}");
}

#[test]
fn burns_records_have_the_integers() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let base = net(&device);
    let model = base.attach("a", &SparseConfig::new(COUNT)).unwrap();
    let points = TensorData::new(vec![0_i32, 1, 2, 3, 0, 1, 2, 0], [2, COUNT]);
    let mut tensors = model.adapter_tensors("a").unwrap();
    tensors.insert(INDICES.to_string(), points.clone());
    let given = model.with_adapter_tensors("a", tensors).unwrap();
    let read = model.load_record(given.into_record());
    assert_eq!(state(&read).indices.val().into_data(), points);
}

#[test]
fn a_mask_is_chosen_from_squared_gradients() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let base = net(&device.autodiff());
    let wanted = CalibrationConfig {
        squared_gradients: true,
        ..CalibrationConfig::new(["layer"])
    };
    let mut calibrator = base.calibrate(&wanted).unwrap();
    let gradients = loss(calibrator.model()).backward();
    let gradient = base.layer.weight.val().grad(&gradients).unwrap();
    calibrator.record_gradients(&gradients).unwrap();
    let calibration = calibrator.finish().unwrap();
    let model = base
        .attach_with("a", &SparseConfig::new(COUNT), &calibration)
        .unwrap();
    let found: Vec<i64> = state(&model).indices.val().into_data().iter().collect();
    assert_eq!(found, largest(&gradient.abs().into_data(), COUNT));
}

const INDICES: &str = "base_model.model.layer.sparse_indices";
const VALUES: &str = "base_model.model.layer.sparse_values";

/// A file with one tensor in the place of the one of its name.
fn write(path: &Path, good: &[u8], key: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
    let file = SafeTensors::deserialize(good).unwrap();
    let mut tensors: BTreeMap<String, TensorView<'_>> = file
        .iter()
        .map(|(key, view)| (key.to_string(), view))
        .collect();
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    tensors.insert(key.to_string(), view);
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn integers(values: &[i32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn damaged_integers_are_refused_by_name() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let base = net(&device);
    let model = base.attach("a", &SparseConfig::new(COUNT)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let good = fs::read(&path).unwrap();
    let load = || base.load_adapter("a", dir.path(), &[&SPARSE]);
    let refused = |words: &[&str]| {
        let error = load().unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(base.adapters().is_empty());
    };
    let fine = [0, 1, 2, 4, 0, 1, 2, 2];
    let with = |values: &[i32]| {
        write(
            &path,
            &good,
            INDICES,
            Dtype::I32,
            &[2, COUNT],
            &integers(values),
        );
    };
    with(&fine);
    load().unwrap();
    with(&[0, 1, 2, 5, 0, 1, 2, 2]);
    refused(&[INDICES, "index 5", "element 3", "below 5"]);
    with(&[0, 1, 2, 4, 0, 1, 2, 3]);
    refused(&[INDICES, "index 3", "element 7", "below 3"]);
    with(&[0, -1, 2, 4, 0, 1, 2, 2]);
    refused(&[INDICES, "index -1", "element 1"]);
    with(&[2, 1, 2, 4, 2, 1, 2, 2]);
    refused(&[INDICES, "index 2, 2 twice", "places 0 and 2"]);

    let short = integers(&fine[..6]);
    write(&path, &good, INDICES, Dtype::I32, &[2, 3], &short);
    refused(&[INDICES, "shape [2, 3]", "[2, 4]"]);
    let all = integers(&fine);
    write(&path, &good, INDICES, Dtype::I32, &[COUNT, 2], &all);
    refused(&[INDICES, "shape [4, 2]", "[2, 4]"]);
    write(&path, &good, VALUES, Dtype::F32, &[3], &[0; 12]);
    refused(&[VALUES, "shape [3]", "[4]"]);

    // Formats of other things, and of other libraries.
    write(&path, &good, INDICES, Dtype::F32, &[2, COUNT], &[0; 32]);
    refused(&[INDICES, "F32", "I32"]);
    write(&path, &good, INDICES, Dtype::U32, &[2, COUNT], &all);
    refused(&[INDICES, "U32", "I32"]);
    write(&path, &good, VALUES, Dtype::I32, &[COUNT], &[0; 16]);
    refused(&[VALUES, "I32", "F32"]);
    let wide = |values: &[i64]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let long = wide(&fine.map(i64::from));
    write(&path, &good, INDICES, Dtype::I64, &[2, COUNT], &long);
    let loaded = load().unwrap();
    assert_eq!(state(&loaded).indices.val().dtype(), DType::I32);
    let long = wide(&[1 << 32, 1, 2, 4, 0, 1, 2, 2]);
    write(&path, &good, INDICES, Dtype::I64, &[2, COUNT], &long);
    refused(&[INDICES, "index 4294967296"]);
    let bytes: Vec<u8> = fine.iter().map(|index| *index as u8).collect();
    write(&path, &good, INDICES, Dtype::U8, &[2, COUNT], &bytes);
    load().unwrap();

    let file = SafeTensors::deserialize(&good).unwrap();
    let kept = file.iter().filter(|(key, _)| *key != INDICES);
    let kept: Vec<_> = kept.collect();
    fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
    refused(&[INDICES, "missing"]);
    write(&path, &good, "extra", Dtype::I32, &[1], &[0; 4]);
    refused(&["extra"]);
}
