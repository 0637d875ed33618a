//! Ladder side-tuning on a Llama: its side network attends as the model does.

mod common;

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::additive::LstConfig;
use peft::core::PeftModule as _;
use peft::core::device::cpu_devices;
use peft::core::state::AdapterState as _;
use peft_models::{GenerateConfig, Llama, LmBatch};

use common::listed;

/// A model whose side network does much.
fn model(device: &Device) -> Llama {
    let config = LstConfig::new().with_reduction_factor(2);
    let model = Llama::tiny(device).attach("side", &config).unwrap();
    let mut tensors = model.adapter_tensors("side").unwrap();
    for (key, data) in &mut tensors {
        if key.contains("side_upsample") {
            let count: usize = data.shape().iter().product();
            let values = (0..count).map(|at| (at as f32 * 0.7).sin() * 0.5);
            *data = TensorData::new(values.collect::<Vec<f32>>(), data.shape().clone());
        }
    }
    model.with_adapter_tensors("side", tensors).unwrap()
}

fn ids(text: &[i64], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(text.to_vec(), [1, text.len()]), device)
}

fn farthest<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> f32 {
    let differences = (one - other).abs().into_data();
    let differences = differences.iter::<f32>();
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

const TEXT: [i64; 7] = [7, 30, 21, 5, 19, 44, 3];

#[test]
fn a_text_read_piece_by_piece_gives_the_same_logits() {
    for (name, device) in cpu_devices() {
        let model = model(&device);
        let whole = model.forward(ids(&TEXT, &device), None);
        let plain = Llama::tiny(&device).forward(ids(&TEXT, &device), None);
        assert!(
            farthest(whole.clone(), plain) > 1e-2,
            "{name}: it changes nothing"
        );
        let mut cache = model.cache();
        model.next_logits(ids(&TEXT[..4], &device), &mut cache);
        // What goes on with another text does not come back.
        let mut copy = cache.clone();
        model.next_logits(ids(&[50, 60, 70], &device), &mut copy);
        let mut last = model.next_logits(ids(&TEXT[4..5], &device), &mut cache);
        for at in 5..=7 {
            let expected = whole.clone().slice_dim(1, at - 1..at).squeeze_dim::<2>(1);
            let error = farthest(last.clone(), expected);
            assert!(error < 1e-4, "{name}, {at}: {error}");
            if at < 7 {
                last = model.next_logits(ids(&TEXT[at..=at], &device), &mut cache);
            }
        }
        let config = GenerateConfig::default()
            .with_max_new_tokens(6)
            .with_eos_token_id([]);
        let written = model.generate_ids(&[1, 5, 7], &config).unwrap();
        // The same without a cache.
        let mut text = vec![1, 5, 7];
        let mut expected = Vec::new();
        for _ in 0..6 {
            let logits = model.forward(ids(&text, &device), None);
            let last = logits.slice_dim(1, text.len() - 1..text.len());
            let next: i64 = last.argmax(2).into_data().iter::<i64>().next().unwrap();
            expected.push(next as u32);
            text.push(next);
        }
        let written: Vec<u32> = written[written.len() - 6..].to_vec();
        assert_eq!(written, expected, "{name}");
    }
}

#[test]
fn a_document_sees_no_other_and_no_padding() {
    for (name, device) in cpu_devices() {
        let model = model(&device);
        let texts: [&[u32]; 2] = [&[7, 30, 21], &[5, 19, 44, 3]];
        let alone: f32 = texts
            .iter()
            .map(|text| model.loss(&LmBatch::of_text(text)).into_scalar::<f32>())
            .sum();
        let [one, other] = texts.map(LmBatch::of_text);
        let packed = LmBatch {
            ids: [one.ids.clone(), other.ids.clone()].concat(),
            targets: [one.targets.clone(), other.targets.clone()].concat(),
            segments: Some(vec![0, 0, 0, 1, 1, 1, 1]),
            rows: 1,
            length: 7,
            ..LmBatch::default()
        };
        let loss: f32 = model.loss(&packed).into_scalar();
        assert!((loss - alone).abs() < 1e-3, "{name}: {loss} for {alone}");
        // Filled up at the end and at the beginning.
        for left in [false, true] {
            let pad = |values: &[u32]| {
                if left {
                    [&[9], values].concat()
                } else {
                    [values, &[9]].concat()
                }
            };
            let target = if left {
                [&[-100], one.targets.as_slice()].concat()
            } else {
                [one.targets.as_slice(), &[-100]].concat()
            };
            let padded = LmBatch {
                ids: [pad(&one.ids), other.ids.clone()].concat(),
                targets: [target, other.targets.clone()].concat(),
                padding: (0..8).map(|at| at == if left { 0 } else { 3 }).collect(),
                rows: 2,
                length: 4,
                ..LmBatch::default()
            };
            let loss: f32 = model.loss(&padded).into_scalar();
            // Nor does the model itself.
            let base = Llama::tiny(&device);
            let shift = base.loss(&padded).into_scalar::<f32>()
                - texts
                    .iter()
                    .map(|text| base.loss(&LmBatch::of_text(text)).into_scalar::<f32>())
                    .sum::<f32>();
            assert!(shift.abs() < 1e-3, "{name}, {left}: {shift}");
            assert!(
                (loss - alone).abs() < 1e-3,
                "{name}, {left}: {loss} for {alone}"
            );
        }
    }
}

/// Layers cannot run again by themselves, so nothing is checkpointed, and the gradients are right.
#[test]
fn gradients_are_the_same_where_checkpointing_is_asked_for() {
    for (name, device) in cpu_devices() {
        let model = model(&device.autodiff());
        let batch = LmBatch::of_text(&[7, 30, 21, 5, 19]);
        let (loss, plain) = model.loss_and_gradients(&batch, false, 0.5);
        let (again, checkpointed) = model.loss_and_gradients(&batch, true, 0.5);
        assert_eq!(loss.to_bits(), again.to_bits(), "{name}");
        let (plain, checkpointed) = (listed(&model, &plain), listed(&model, &checkpointed));
        assert_eq!(plain, checkpointed, "{name}");
        assert!(plain.iter().all(|gradient| !gradient.is_empty()), "{name}");
    }
}
