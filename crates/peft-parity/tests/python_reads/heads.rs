//! Heads beside adapters, for AdapterHub's library.

use std::path::Path;

use burn::tensor::{Bool, Int, Tensor, TensorData};
use peft::additive::BottleneckConfig;
use peft_core::PeftModule;
use peft_models::{Bert, BertClassifier, BertTokenClassifier, Pooling};

use crate::BASE;
use crate::common::python::{Python, write_io};

/// What a model reads.
type Inputs = (Tensor<2, Int>, Tensor<2, Bool>);

/// A new adapter with a head that was drawn at random, beside what the model computes with it.
fn write<M: PeftModule, const D: usize>(
    dir: &Path,
    base: &M,
    head: &str,
    run: impl Fn(&M, Inputs) -> Tensor<D>,
) {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let shape = [3, 11];
    let ids: Vec<i64> = (0..33).map(|at| 1 + at * 7 % 90).collect();
    let mask: Vec<i64> = (0..33)
        .map(|at| i64::from(at % 11 < 11 - 2 * (at / 11)))
        .collect();
    let whole = |values: &[i64]| {
        Tensor::<2, Int>::from_data(TensorData::new(values.to_vec(), shape), device)
    };
    let method = BottleneckConfig::pfeiffer().with_modules_to_save([head]);
    let model = base.attach("trained", &method).unwrap();
    let output = run(&model, (whole(&ids), whole(&mask).equal_elem(0)));
    model.save_adapter("trained", dir).unwrap();
    let inputs: [(&str, &[i64]); 2] = [("input_ids", &ids), ("attention_mask", &mask)];
    write_io(&dir.join("io.safetensors"), &inputs, shape, &output);
}

#[test]
fn adapterhub_computes_what_heads_here_compute() {
    let modules = "torch, transformers and adapters";
    let Some(python) = Python::named("PEFT_ADAPTERS_PYTHON", modules) else {
        return;
    };
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let dir = tempfile::tempdir().unwrap();
    let cases = ["tokens", "answers", "classes"];
    let [of_tokens, of_answers, of_classes] = cases.map(|case| dir.path().join(case));
    let of_each =
        |model: &BertTokenClassifier, (ids, padding): Inputs| model.forward(ids, Some(padding));
    let encoder = || Bert::load(BASE, device).unwrap();
    let tokens = BertTokenClassifier::new_head(encoder(), 3, 0.0, device).unwrap();
    let answers = BertTokenClassifier::new_answers(encoder(), device);
    write(&of_tokens, &tokens, "classifier", of_each);
    write(&of_answers, &answers, "qa_outputs", of_each);
    let classes = BertClassifier::new_head(encoder(), 4, Pooling::Cls, 0.0, device).unwrap();
    write(
        &of_classes,
        &classes,
        "classifier",
        |model, (ids, padding)| model.forward(ids, Some(padding)),
    );
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASE);
    let answers = python.run("adapterhub_reads.py", &base, dir.path());
    answers.check(cases, "output", &[]);
}
