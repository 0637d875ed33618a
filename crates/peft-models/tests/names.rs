//! Modules are called what Hugging Face calls them.

mod common;

use std::collections::BTreeSet;

use common::tiny_tensors;
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::nn::{HiddenState, SiteKind};
use peft_models::{Bert, BertClassifier, Pooling};

#[test]
fn parameters_are_called_as_in_the_checkpoint() {
    let device = cpu_devices().remove(0).1;
    let bert = Bert::tiny(&device);
    let upstream: BTreeSet<String> = tiny_tensors().into_iter().map(|raw| raw.name).collect();
    let layout = bert.layout();
    let found: BTreeSet<String> = layout
        .params
        .iter()
        .map(|param| param.name.clone())
        .collect();
    assert_eq!(found, upstream);
    assert_eq!(layout.params.len(), upstream.len());

    let model = BertClassifier::new_head(bert, 2, Pooling::Cls, 0.1, &device).unwrap();
    let mut upstream: BTreeSet<String> = upstream
        .into_iter()
        .map(|name| format!("bert.{name}"))
        .collect();
    upstream.extend(["classifier.weight", "classifier.bias"].map(String::from));
    let layout = model.layout();
    let found: BTreeSet<String> = layout
        .params
        .iter()
        .map(|param| param.name.clone())
        .collect();
    assert_eq!(found, upstream);
    let heads: Vec<&str> = layout
        .layers
        .iter()
        .filter(|layer| layer.head)
        .map(|layer| layer.name.as_str())
        .collect();
    assert_eq!(heads, ["classifier"]);
}

#[test]
fn sites_are_where_upstream_has_adapters() {
    let layout = Bert::tiny(&cpu_devices().remove(0).1).layout();
    let names = |kind| -> Vec<&str> {
        let sites = layout.sites.iter().filter(|site| site.kind == kind);
        sites.map(|site| site.name.as_str()).collect()
    };
    assert_eq!(
        names(SiteKind::Hidden(HiddenState::AttentionOutput)),
        [
            "encoder.layer.0.attention.output",
            "encoder.layer.1.attention.output"
        ]
    );
    assert_eq!(
        names(SiteKind::Hidden(HiddenState::FeedForwardOutput)),
        ["encoder.layer.0.output", "encoder.layer.1.output"]
    );
    assert_eq!(
        names(SiteKind::KeyValue),
        [
            "encoder.layer.0.attention.self",
            "encoder.layer.1.attention.self"
        ]
    );
    assert_eq!(names(SiteKind::Embeddings), ["embeddings.word_embeddings"]);
    assert!(layout.sites.iter().all(|site| site.width == 32));
}
