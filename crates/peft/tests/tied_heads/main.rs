//! A head that is the embedding table: as a target, saved whole, and kept equal to the table.

mod files;
mod guarantees;

use std::collections::BTreeMap;
use std::path::Path;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::PeftModule;
use peft::core::device::cpu_devices;
use peft::core::method::LayerKind;
use peft::core::state::AdapterState as _;
use peft::reparameterization::{LoraConfig, LoraLinear};
use peft_models::{Llama, LmBatch};
use safetensors::SafeTensors;

const BASE: &str = "../peft-models/tests/golden/llama/base";
const TEXT: [u32; 12] = [3, 17, 9, 40, 22, 5, 61, 8, 30, 12, 7, 2];
const HEAD: &str = "base_model.model.lm_head.weight";
const TABLE: &str = "base_model.model.model.embed_tokens.weight";

fn base(device: &Device) -> Llama {
    Llama::load(BASE, device).unwrap()
}

fn logits(model: &Llama) -> TensorData {
    let ids: Vec<i64> = TEXT.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 12]), &model.device());
    model.forward(ids, None).into_data()
}

/// The largest difference, or what is no number.
fn farthest(a: &TensorData, b: &TensorData) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let differences = a.iter::<f32>().zip(b.iter::<f32>());
    let differences = differences.map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most: f32, next| {
        if most.is_nan() || next <= most {
            most
        } else {
            next
        }
    })
}

fn lora<const N: usize>(targets: [&str; N]) -> LoraConfig {
    LoraConfig::new(3).with_alpha(6.0).with_targets(targets)
}

/// Trained by a few steps.
fn trained(mut model: Llama) -> Llama {
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..3 {
        let loss = model.loss(&LmBatch::of_text(&TEXT));
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(2e-2, model, gradients);
    }
    model
}

fn read(dir: &Path, name: &str) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(dir.join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(key, view)| {
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        (key.to_string(), (shape, data))
    });
    tensors.collect()
}

fn write(dir: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) {
    let views = tensors.iter().map(|(key, (shape, data))| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data).unwrap();
        (key.clone(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
}

#[test]
fn a_tied_head_is_a_linear_layer_of_the_model() {
    let (_, device) = cpu_devices().remove(0);
    let layout = base(&device).layout();
    let head = layout.layers.iter().find(|layer| layer.name == "lm_head");
    let head = head.unwrap();
    assert!(head.head && head.kind == LayerKind::Linear);
    let weight = layout.param(head, "weight").unwrap();
    assert!(weight.is_tied());
    assert_eq!(weight.shape(), [32, 101]);
    let (tied, table) = layout.tied_heads().next().unwrap();
    assert_eq!(
        (tied.name.as_str(), table.name.as_str()),
        ("lm_head", "model.embed_tokens")
    );
    let table = layout.param(table, "weight").unwrap().value::<2>();
    let expected = table.transpose().into_data();
    weight.value::<2>().into_data().assert_eq(&expected, true);
    assert!(layout.to_string().contains("(head, tied)"), "{layout}");
    // It has no elements of its own, and no file has it.
    let stored = read(Path::new(BASE), "model.safetensors");
    let elements = stored
        .values()
        .map(|(shape, _)| shape.iter().product::<usize>());
    assert_eq!(base(&device).counts().total, elements.sum::<usize>());
    let dir = tempfile::tempdir().unwrap();
    base(&device)
        .save_model(dir.path().join("model.safetensors"))
        .unwrap();
    let saved = read(dir.path(), "model.safetensors");
    assert!(!saved.contains_key("lm_head.weight"), "{:?}", saved.keys());
    // All linear layers are without the head.
    let all = base(&device).attach("all", &LoraConfig::new(2)).unwrap();
    let states = all.adapter_states::<LoraLinear>("all");
    assert_eq!(states.unwrap().len(), 14);
}
