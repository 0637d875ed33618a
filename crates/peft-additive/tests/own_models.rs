//! Methods of this crate on models of one's own: what they adapt by default, and what they refuse.

use peft_additive::{BeftConfig, BottleneckConfig, Ia3Config, METHODS, RoadConfig};

#[test]
fn a_feed_forward_module_that_is_no_target_is_refused() {
    use peft_core::method::Method as _;
    let config = Ia3Config::new().with_targets(["key"]);
    let same = config.clone().with_feedforward_modules(["key"]);
    same.validate().unwrap();
    let other = config.with_feedforward_modules(["dense"]);
    let refused = other.validate().unwrap_err().to_string();
    assert!(refused.contains("feedforward_modules"), "{refused}");
}

/// A model without sites.
#[derive(burn::module::Module, Debug)]
struct NoSites {
    layer: burn::nn::Linear,
}

#[test]
fn a_model_without_sites_is_refused_and_left_as_it_was() {
    use peft_core::{Error, PeftModule};
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let model = NoSites {
        layer: burn::nn::LinearConfig::new(4, 4).init(device),
    };
    let refused = model.attach("a", &BottleneckConfig::houlsby()).unwrap_err();
    assert!(matches!(refused, Error::NoSite { .. }), "{refused}");
    assert!(
        refused.to_string().contains("attention output"),
        "{refused}"
    );
    assert!(model.adapters().is_empty());
    assert!(
        model
            .layout()
            .params
            .iter()
            .all(peft_core::method::LayoutParam::is_trainable)
    );
}

#[test]
fn a_group_that_does_not_fit_is_refused() {
    use peft_conformance::TinyTransformer;
    use peft_core::PeftModule;
    use peft_core::method::Method as _;
    let odd = RoadConfig::new().with_group_size(7).validate();
    let refused = odd.unwrap_err().to_string();
    assert!(refused.contains("an even number"), "{refused}");
    for (_, device) in peft_core::device::cpu_devices() {
        let config = RoadConfig::new().with_targets(["query"]);
        let refused = TinyTransformer::new(&device).attach("a", &config);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("a divisor of the 32 outputs"), "{refused}");
    }
}

/// A layer without a bias.
#[derive(burn::module::Module, Debug)]
struct NoBias {
    v_proj: burn::nn::Linear,
}

#[test]
fn beft_without_a_bias_acts_and_is_not_merged() {
    use burn::tensor::Tensor;
    use peft_core::PeftModule;
    use peft_core::nn::AdaptedForward;
    for (_, device) in peft_core::device::cpu_devices() {
        let model = NoBias {
            v_proj: burn::nn::LinearConfig::new(4, 3)
                .with_bias(false)
                .init(&device),
        };
        let config = BeftConfig::new().with_init_weights(false);
        let adapted = model.attach("a", &config).unwrap();
        let input = Tensor::<2>::ones([2, 4], &device);
        let moved = adapted.v_proj.adapted(input.clone()) - model.v_proj.adapted(input);
        let dir = tempfile::tempdir().unwrap();
        adapted.save_adapter("a", dir.path()).unwrap();
        let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let beft = file.tensor("base_model.model.v_proj.beft_bias").unwrap();
        assert_eq!(beft.shape(), [1, 3]);
        let expected = beft.data().as_chunks::<4>().0;
        let expected: Vec<f32> = expected
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect();
        for row in moved
            .into_data()
            .iter::<f32>()
            .collect::<Vec<_>>()
            .chunks(3)
        {
            for (moved, expected) in row.iter().zip(&expected) {
                assert!((moved - expected).abs() < 1e-5, "{row:?} for {expected}");
            }
        }
        let refused = adapted.merge_and_unload().unwrap_err().to_string();
        assert!(refused.contains("v_proj"), "{refused}");
        let saved = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
        assert_eq!(saved["target_modules"], serde_json::json!(["v_proj"]));
    }
}

#[test]
fn beft_without_targets_needs_a_projection_of_values() {
    use peft_core::PeftModule;
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let model = NoSites {
        layer: burn::nn::LinearConfig::new(4, 4).init(device),
    };
    let refused = model.attach("a", &BeftConfig::new()).unwrap_err();
    assert!(refused.to_string().contains("v_proj"), "{refused}");
}

/// A model of a kind that upstream knows.
#[derive(burn::module::Module, Debug)]
struct Known {
    key: burn::nn::Linear,
    value: burn::nn::Linear,
    query: burn::nn::Linear,
    output: Output,
    names: peft_core::KeyMapping,
}

/// What its feed-forward ends with.
#[derive(burn::module::Module, Debug)]
struct Output {
    dense: burn::nn::Linear,
}

#[test]
fn ia3_without_targets_takes_those_of_the_kind_of_model() {
    use burn::nn::LinearConfig;
    use peft_core::{KeyMapping, PeftModule};
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
    let model = Known {
        key: linear(4, 5),
        value: linear(4, 3),
        query: linear(4, 6),
        output: Output {
            dense: linear(7, 8),
        },
        names: KeyMapping::new(&[]).with_model_type("bert"),
    };
    let trained = |model: &Known, config: &Ia3Config| {
        let model = model.attach("a", config).unwrap();
        model.counts().adapter_trainable()
    };
    let default = Ia3Config::new();
    assert_eq!(trained(&model, &default), 5 + 3 + 7);
    let outputs = Ia3Config::new().with_feedforward_modules(Vec::<String>::new());
    assert_eq!(trained(&model, &outputs), 5 + 3 + 8);
    let named = Ia3Config::new().with_targets(["query", "output.dense"]);
    assert_eq!(trained(&model, &named), 6 + 7);
    let unknown = Known {
        names: KeyMapping::new(&[]),
        ..model.clone()
    };
    assert_eq!(trained(&unknown, &default), 5 + 3 + 6 + 8);
    let dir = tempfile::tempdir().unwrap();
    let adapted = model.attach("a", &default).unwrap();
    adapted.save_adapter("a", dir.path()).unwrap();
    let saved = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(
        saved["feedforward_modules"],
        serde_json::json!(["output.dense"])
    );
    let known = serde_json::json!(["key", "value", "output.dense"]);
    assert_eq!(saved["target_modules"], known);
    model.load_adapter("b", dir.path(), METHODS).unwrap();
    // In a file, layers that are scaled inside are names of `target_modules`.
    for (targets, said, inside, elements) in [
        (vec!["key"], vec!["key"], vec![], 5),
        (
            vec!["query", "dense"],
            vec!["query", "dense", "output.dense"],
            vec!["output.dense"],
            6 + 7,
        ),
    ] {
        let named = Ia3Config::new().with_targets(targets);
        let adapted = model.attach("a", &named).unwrap();
        assert_eq!(adapted.counts().adapter_trainable(), elements);
        let dir = tempfile::tempdir().unwrap();
        adapted.save_adapter("a", dir.path()).unwrap();
        let saved = peft_core::checkpoint::read_config(dir.path()).unwrap();
        assert_eq!(saved["target_modules"], serde_json::json!(said));
        assert_eq!(saved["feedforward_modules"], serde_json::json!(inside));
        let again = model.load_adapter("b", dir.path(), METHODS).unwrap();
        assert_eq!(again.counts().adapter_trainable(), elements);
    }
}
