//! What is no change of a weight, below what reads the weight.

use burn::tensor::{Int, Tensor};
use peft_conformance::TinyTransformer;
use peft_core::nn::ForwardContext;
use peft_core::{Error, PeftModule};
use peft_reparameterization::{HiraConfig, HraConfig, LoraConfig, PolyConfig};

use crate::device;

fn alora() -> LoraConfig {
    LoraConfig::new(2)
        .with_targets(["query"])
        .with_alora_invocation_tokens([7, 8])
        .with_init_lora_weights(false)
}

fn dora() -> LoraConfig {
    LoraConfig::new(2)
        .with_targets(["query"])
        .with_use_dora(true)
}

fn run(model: &TinyTransformer) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_data([[1, 7, 8, 9], [3, 4, 5, 6]], &device());
    let logits = model.forward_in(ids, ForwardContext::new());
    logits.into_data().iter().collect()
}

#[test]
fn it_is_refused_where_both_would_be_active() {
    let base = TinyTransformer::new(&device());
    let hira = HiraConfig::new(2).with_targets(["query"]);
    let poly = PolyConfig::new(2, 2).with_targets(["query"]);
    for lower in [&alora() as &dyn peft_core::method::Method, &poly] {
        for reader in [&dora() as &dyn peft_core::method::Method, &hira] {
            let model = base.attach("low", lower).unwrap();
            let model = model.attach("reads", reader).unwrap();
            // Alone each of them runs.
            let alone = run(&model);
            let refused = model.activate(&["low", "reads"]).unwrap_err();
            assert!(
                matches!(&refused, Error::Composition { adapter, .. } if adapter == "reads"),
                "{refused}"
            );
            let text = refused.to_string();
            assert!(text.contains("`low`") && text.contains("query"), "{text}");
            assert_eq!(run(&model), alone);
            run(&model.activate(&["low"]).unwrap());
        }
    }
}

#[test]
fn it_runs_above_it_and_below_what_only_calls_it() {
    let base = TinyTransformer::new(&device());
    let model = base.attach("reads", &dora()).unwrap();
    let model = model.attach("high", &alora()).unwrap();
    let both = model.activate(&["reads", "high"]).unwrap();
    assert_ne!(run(&both), run(&base));
    let hra = HraConfig::new(2).with_targets(["query"]);
    let plain = LoraConfig::new(2).with_targets(["query"]);
    for caller in [&hra as &dyn peft_core::method::Method, &plain] {
        let model = base.attach("low", &alora()).unwrap();
        let alone = run(&model);
        let model = model.attach("calls", caller).unwrap();
        let both = model.activate(&["low", "calls"]).unwrap();
        // A fresh one changes nothing.
        let distance = peft_testing::farthest(run(&both), alone);
        assert!(distance < 1e-5, "{distance}");
    }
}
