//! S4: methods by groups of blocks, on a BERT of six blocks.

use peft::core::PeftModule;
use peft::core::method::{Layout, Method as _};
use peft::hybrid::{METHODS, s4};
use peft_models::{Bert, BertConfig};

fn bert(blocks: usize) -> Bert {
    let (_, device) = &peft::core::device::cpu_devices()[0];
    let mut config = BertConfig::tiny();
    config.num_hidden_layers = blocks;
    config.init(device)
}

/// How many elements of the adapter are trained in each block, by their names in the file.
fn trained_by_block(model: &Bert, dir: &std::path::Path) -> Vec<usize> {
    model.save_adapter("a", dir).unwrap();
    let bytes = std::fs::read(dir.join("adapter.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut counts = vec![0; 6];
    for (key, view) in file.iter() {
        let elements: usize = view.shape().iter().product();
        match key
            .split('.')
            .find_map(|segment| segment.parse::<usize>().ok())
        {
            Some(block) if !key.starts_with("prefix_tuning") => counts[block] += elements,
            // One tensor for all blocks but the first.
            _ => counts[1..]
                .iter_mut()
                .for_each(|count| *count += elements / 5),
        }
    }
    counts
}

#[test]
fn every_block_has_about_as_many_parameters() {
    let base = bert(6);
    let per_block = 6_000;
    let union = s4(&base.layout(), per_block).unwrap();
    let model = base.attach("a", &union).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let counts = trained_by_block(&model, dir.path());
    assert_eq!(
        counts.iter().sum::<usize>(),
        model.counts().adapter_trainable()
    );
    for count in &counts {
        assert!(
            *count <= per_block && *count > per_block * 3 / 4,
            "{counts:?}"
        );
    }
    let again = base.load_adapter("b", dir.path(), METHODS).unwrap();
    assert_eq!(again.counts().trainable, model.counts().trainable);
}

#[test]
fn groups_have_their_methods() {
    let base = bert(6);
    let union = s4(&base.layout(), 6_000).unwrap();
    let model = base.attach("a", &union).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let bytes = std::fs::read(dir.path().join("adapter.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let has = |block: usize, part: &str| {
        let below = format!("encoder.layer.{block}.");
        file.names()
            .iter()
            .any(|key| key.starts_with(&below) && key.contains(part))
    };
    let blocks = |part: &str| (0..6).filter(|block| has(*block, part)).collect::<Vec<_>>();
    assert_eq!(blocks(".adapters."), [0, 1, 2, 3, 4]);
    assert_eq!(blocks(".loras."), [0, 5]);
    assert_eq!(blocks(".bias.delta"), [3, 4, 5]);
}

#[test]
fn what_cannot_be_grouped_is_refused() {
    let refused = |layout: &Layout, per_block: usize, word: &str| {
        let error = s4(layout, per_block).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&bert(7).layout(), 6_000, "blocks");
    refused(&bert(6).layout(), 10, "biases");
    refused(&bert(6).layout(), 400, "nothing is left");
    assert!(s4(&bert(8).layout(), 6_000).unwrap().validate().is_ok());
}
