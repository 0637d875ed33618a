//! What selects layers, and what says other values for some of them: refused where it says nothing.

use std::fs;

use peft_conformance::TinyTransformer;
use peft_core::PeftModule;
use peft_core::method::Method;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{
    AdaLoraConfig, C3aConfig, FourierFtConfig, HiraConfig, InitLora, LohaConfig, LokrConfig,
    LoraConfig, METHODS,
};
use serde_json::{Value, json};

fn base() -> TinyTransformer {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    TinyTransformer::new(&device)
}

fn refusal(method: &dyn Method) -> String {
    base().attach("a", method).unwrap_err().to_string()
}

/// A field of patterns, and a configuration that has a key for one layer of two there, and one for none.
type Case = (&'static str, Box<dyn Method>, Box<dyn Method>);

/// Every method with patterns.
fn with_patterns() -> Vec<Case> {
    fn boxed(method: &impl Method) -> Box<dyn Method> {
        method.boxed()
    }
    let targets = ["query"];
    let lora = LoraConfig::new(2).with_targets(targets);
    let loha = LohaConfig::new(2).with_targets(targets);
    let lokr = LokrConfig::new(2).with_targets(targets);
    let hira = HiraConfig::new(2).with_targets(targets);
    let c3a = C3aConfig::new(4).with_targets(targets);
    let fourier = FourierFtConfig::new(3).with_targets(targets);
    let adalora = AdaLoraConfig::new(3, 2).with_targets(targets);
    let mask = |layer: &str| {
        let key = format!("{layer}.lora_E");
        let pattern = json!({ key: [true, false, true] });
        pattern.as_object().cloned()
    };
    let of_adalora = |layer: &str| AdaLoraConfig {
        rank_pattern: mask(layer),
        ..adalora.clone()
    };
    let (good, bad) = (r"0\..*query", "quary");
    macro_rules! case {
        ($field:literal, $config:ident.$with:ident, $value:expr) => {
            (
                $field,
                boxed(&$config.clone().$with(good, $value)),
                boxed(&$config.clone().$with(bad, $value)),
            )
        };
    }
    vec![
        case!("rank_pattern", lora.with_rank_pattern, 3),
        case!("alpha_pattern", lora.with_alpha_pattern, 3.0),
        case!("rank_pattern", loha.with_rank_pattern, 3),
        case!("alpha_pattern", loha.with_alpha_pattern, 3.0),
        case!("rank_pattern", lokr.with_rank_pattern, 3),
        case!("alpha_pattern", lokr.with_alpha_pattern, 3.0),
        case!("rank_pattern", hira.with_rank_pattern, 3),
        case!("block_size_pattern", c3a.with_block_size_pattern, 2),
        case!("n_frequency_pattern", fourier.with_n_frequency_pattern, 5),
        (
            "rank_pattern",
            boxed(&of_adalora("encoder.layer.0.attention.self.query")),
            boxed(&of_adalora("encoder.layer.0.attention.self.quary")),
        ),
    ]
}

#[test]
fn a_pattern_that_fits_no_adapted_layer_is_refused() {
    for (field, good, bad) in with_patterns() {
        let title = good.info().title;
        base().attach("a", good.as_ref()).unwrap();
        let error = refusal(bad.as_ref());
        for expected in [
            title,
            field,
            "quary",
            "encoder.layer.1.attention.self.query",
        ] {
            assert!(
                error.contains(expected),
                "{title}, no {expected} in: {error}"
            );
        }
        // Layers that are not adapted are none.
        assert!(!error.contains("attention.self.key"), "{error}");
    }
}

#[test]
fn a_checkpoint_may_have_patterns_that_fit_nothing() {
    for (field, good, bad) in with_patterns() {
        let title = good.info().title;
        let model = base().attach("a", good.as_ref()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("a", dir.path()).unwrap();
        let path = dir.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let unused = bad.to_json()[field].clone();
        let fields = config[field].as_object_mut().unwrap();
        fields.extend(unused.as_object().unwrap().clone());
        fs::write(&path, config.to_string()).unwrap();
        let loaded = base().load_adapter("a", dir.path(), METHODS).unwrap();
        let [ours, theirs] = [&loaded, &model].map(|model| model.adapter_tensors("a").unwrap());
        assert_eq!(ours, theirs, "{title}");
    }
}

#[test]
fn blocks_are_selected_by_their_index() {
    let config = LoraConfig::new(2)
        .with_targets(["query"])
        .with_layers_to_transform([1])
        .with_layers_pattern("layer");
    let model = base().attach("a", &config).unwrap();
    let keys: Vec<_> = model.adapter_tensors("a").unwrap().into_keys().collect();
    let layer = "base_model.model.encoder.layer.1.attention.self.query";
    assert_eq!(
        keys,
        [
            format!("{layer}.lora_A.weight"),
            format!("{layer}.lora_B.weight")
        ]
    );
}

#[test]
fn an_empty_text_names_no_module() {
    let saving = LoraConfig::new(2).with_modules_to_save(["classifier", ""]);
    let error = refusal(&saving);
    assert!(
        error.contains("`modules_to_save`") && error.contains("an empty text"),
        "{error}"
    );
    let error = refusal(&LoraConfig::new(2).with_targets(vec!["query", ""]));
    assert!(
        error.contains("`target_modules`") && error.contains("an empty text"),
        "{error}"
    );
}

#[test]
fn a_rank_may_be_more_than_a_layers_side() {
    let lora = |start: InitLora| {
        LoraConfig::new(40)
            .with_targets(["query"])
            .with_init_lora_weights(start)
    };
    let base = base();
    let starts: [InitLora; 4] = [
        false.into(),
        true.into(),
        "gaussian".into(),
        "orthogonal".into(),
    ];
    for start in starts {
        for dora in [false, true] {
            let config = lora(start.clone()).with_use_dora(dora);
            let model = base.attach("a", &config).unwrap();
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("a", dir.path()).unwrap();
            let loaded = base.load_adapter("a", dir.path(), METHODS).unwrap();
            let tensors = loaded.adapter_tensors("a").unwrap();
            assert_eq!(tensors, model.adapter_tensors("a").unwrap());
            let key = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight";
            assert_eq!(tensors[key].shape()[0], 40);
        }
    }
    for start in ["pissa", "pissa_niter_2", "olora"] {
        let error = base.attach("a", &lora(start.into())).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("at most") && error.contains(start),
            "{error}"
        );
    }
}
