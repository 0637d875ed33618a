//! Soft prompts beside a head, against Hugging Face PEFT 0.21.2: its checkpoints and ours, both ways.

use std::fs;
use std::path::Path;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::checkpoint::{read_config, write_tensors};
use peft_core::state::AdapterState as _;
use peft_models::{BertClassifier, BertTokenClassifier};
use peft_soft_prompt::METHODS;
use safetensors::SafeTensors;

use crate::tensors::{GradientsAsValues, read};

const CASES: [&str; 3] = ["prompt_tuning", "prefix_tuning", "p_tuning_mlp"];

/// Elements that upstream trains, as the case says.
fn trainable(case: &Path) -> usize {
    let bytes = fs::read(case.join("io.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().as_ref().unwrap()["trainable"]
        .parse()
        .unwrap()
}

/// The largest difference; what is no number is larger than all.
fn farthest(ours: &TensorData, theirs: &TensorData) -> f32 {
    assert_eq!(ours.shape(), theirs.shape());
    let differences = ours
        .iter::<f32>()
        .zip(theirs.iter::<f32>())
        .map(|(ours, theirs)| (ours - theirs).abs());
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

/// The adapter as upstream trained it, where that is a network that computes what the file holds.
fn as_trained<M: PeftModule>(base: &M, case: &Path) -> Option<M> {
    let encoder = case.join("encoder.safetensors");
    if !encoder.exists() {
        return None;
    }
    let mut tensors = read(encoder);
    let head = read(case.join("adapter_model.safetensors")).into_iter();
    tensors.extend(head.filter(|(key, _)| key != "prompt_embeddings"));
    let config = read_config(case).unwrap();
    let mut methods = METHODS.iter();
    let info = methods.find(|info| config["peft_type"] == info.peft_type);
    let method = (info.unwrap().parse)(&config).unwrap();
    let fresh = base.attach("golden", method.as_ref()).unwrap();
    Some(fresh.with_adapter_tensors("golden", tensors).unwrap())
}

/// Loads upstream's checkpoints, and holds outputs, gradients, counts and what is written to upstream's.
fn check<M: PeftModule, const D: usize>(
    (group, cases): (&str, &[&str]),
    device: &Device,
    load: impl Fn(&Path, &Device) -> M,
    run: impl Fn(&M, Tensor<2, Int>, Tensor<2, Bool>) -> Tensor<D>,
) {
    let group = Path::new("../peft-soft-prompt/tests/golden").join(group);
    let base = load(&group.join("base"), &device.clone().autodiff());
    for case in cases {
        let case = group.join(case);
        let what = case.display();
        let io = read(case.join("io.safetensors"));
        let output = |model: &M, device: &Device| {
            let ids = Tensor::<2, Int>::from_data(io["input_ids"].clone(), device);
            let mask = Tensor::<2, Int>::from_data(io["attention_mask"].clone(), device);
            run(model, ids, mask.equal_elem(0))
        };
        let loaded = base.load_adapter("golden", &case, METHODS).unwrap();
        let trained = as_trained(&base, &case);
        for model in [Some(&loaded), trained.as_ref()].into_iter().flatten() {
            let found = output(&model.valid(), device).into_data();
            let distance = farthest(&found, &io["output"]);
            assert!(distance <= 1e-5, "{what}: {distance}");
        }

        let model = trained.as_ref().unwrap_or(&loaded);
        assert_eq!(model.counts().trainable, trainable(&case), "{what}");
        let output = output(model, &device.clone().autodiff());
        let gradients = (output.clone() * output).mean().backward();
        let graded = model.clone().map(&mut GradientsAsValues(&gradients));
        let ours = graded.adapter_tensors("golden").unwrap();
        for (key, theirs) in read(case.join("grads.safetensors")) {
            let ours = ours.get(&key).or_else(|| {
                let stored = key.replace("prompt_encoder.embedding.weight", "prompt_embeddings");
                ours.get(&stored)
            });
            let distance = farthest(ours.unwrap(), &theirs);
            assert!(distance <= 1e-5, "{what}, {key}: {distance}");
        }

        let dir = tempfile::tempdir().unwrap();
        let file = "adapter_model.safetensors";
        let theirs = read(case.join(file));
        assert!(theirs.contains_key("base_model.classifier.weight"));
        if let Some(trained) = trained {
            trained.save_adapter("golden", dir.path()).unwrap();
            let ours = read(dir.path().join(file));
            assert!(ours.keys().eq(theirs.keys()), "{what}");
            for (key, theirs) in &theirs {
                let distance = farthest(&ours[key], theirs);
                assert!(distance <= 1e-6, "{what}, {key}: {distance}");
            }
        }
        loaded.save_adapter("golden", dir.path()).unwrap();
        let ours = read(dir.path().join(file));
        assert_eq!(ours, theirs, "{what}");

        // As this crate wrote them at first.
        let old = ours.into_iter().map(|(key, data)| {
            let key = key.replace("base_model.classifier", "base_model.model.classifier");
            (key, data)
        });
        write_tensors(&dir.path().join(file), &old.collect()).unwrap();
        let model = base.load_adapter("old", dir.path(), METHODS).unwrap();
        assert_eq!(model.adapter_tensors("old").unwrap(), theirs, "{what}");
    }
}

#[test]
fn prompts_of_a_classifier_of_texts_are_upstreams() {
    for (_, device) in peft_core::device::cpu_devices() {
        check(
            (
                "bert_seq_cls",
                &[CASES.as_slice(), &["p_tuning_lstm"]].concat(),
            ),
            &device,
            |dir, device| BertClassifier::load(dir, device).unwrap(),
            |model, ids, padding| model.forward(ids, Some(padding)),
        );
    }
}

#[test]
fn prompts_of_a_classifier_of_tokens_are_upstreams() {
    for (_, device) in peft_core::device::cpu_devices() {
        check(
            ("bert_token_cls", &CASES),
            &device,
            |dir, device| BertTokenClassifier::load(dir, device).unwrap(),
            |model, ids, padding| model.forward(ids, Some(padding)),
        );
    }
}
