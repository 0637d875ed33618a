//! The conformance suite, on the methods of this crate.

use peft_additive::{
    Activation, AdapterFusionConfig, AdapterHubIa3, BeftConfig, BottleneckConfig, BottleneckInit,
    ExpertSharing, HypercomplexInit, Ia3Config, InvertibleKind, LstConfig, LstInit, METHODS,
    Pruning, ReftConfig, ResidualBeforeLn, RoadConfig, RoadVariant, RuleInit, Scaling,
    ShadowConfig,
};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "houlsby",
            BottleneckConfig::houlsby().with_reduction_factor(4.0)
        ),
        Case::new(
            "pfeiffer",
            BottleneckConfig::pfeiffer().with_reduction_factor(8.0)
        ),
        Case::new(
            "pfeiffer from a late block on, with a head",
            BottleneckConfig::pfeiffer()
                .with_non_linearity(Activation::Gelu)
                .with_leave_out([0])
                .with_dropout(0.1)
                .with_modules_to_save(["classifier"])
        ),
        Case::new("fusion", AdapterFusionConfig::dynamic(["one", "two"]))
            .beside(
                "one",
                BottleneckConfig::pfeiffer().with_reduction_factor(8.0)
            )
            .beside(
                "two",
                BottleneckConfig::houlsby().with_reduction_factor(4.0)
            ),
        Case::new(
            "fusion of the states before the norm, with temperature, dropout and a head",
            AdapterFusionConfig::dynamic(["one"])
                .with_adapter_names(["one".to_string(), "three".to_string()])
                .with_query_before_ln(true)
                .with_residual_before(true)
                .with_temperature(true)
                .with_value_initialized(false)
                .with_dropout_prob(0.1)
                .with_modules_to_save(["classifier"])
        )
        .beside(
            "one",
            BottleneckConfig::houlsby().with_reduction_factor(8.0)
        )
        .beside("two", BottleneckConfig::houlsby())
        .beside("three", BottleneckConfig::pfeiffer().with_leave_out([0])),
        Case::new(
            "houlsby with everything",
            BottleneckConfig::houlsby()
                .with_reduction_factor([("0", 4.0), ("default", 8.0)])
                .with_non_linearity(Activation::LeakyRelu)
                .with_original_ln_before(true)
                .with_residual_before_ln(ResidualBeforeLn::PostAdd)
                .with_ln_before(true)
                .with_ln_after(true)
                .with_adapter_residual_before_ln(true)
                .with_use_gating(true)
                .with_scaling(Scaling::Learned)
                .with_dropout(0.1)
                .with_stochastic_depth(0.1)
                .with_init_weights_seed(3)
                .with_invertible(InvertibleKind::Glow)
        ),
        Case::new(
            "pfeiffer, invertible",
            BottleneckConfig::pfeiffer()
                .with_reduction_factor(8.0)
                .with_invertible(InvertibleKind::Nice)
        ),
        Case::new(
            "parallel",
            BottleneckConfig::parallel().with_reduction_factor(4.0)
        ),
        Case::new(
            "parallel, after attention too, with a norm and a gate",
            BottleneckConfig::scaled_parallel()
                .with_mh_adapter(true)
                .with_ln_before(true)
                .with_use_gating(true)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "adapter plus",
            BottleneckConfig::adapter_plus().with_reduction_factor(4.0)
        ),
        Case::new(
            "adapter plus with a norm, before the model's end",
            BottleneckConfig::adapter_plus()
                .with_reduction_factor(4.0)
                .with_original_ln_after(true)
                .with_residual_before_ln(true)
                .with_ln_before(true)
        ),
        Case::new(
            "compacter",
            BottleneckConfig::compacter()
                .with_reduction_factor(4.0)
                .with_phm_rank(2)
                .with_phm_c_init(RuleInit::Uniform)
        ),
        Case::new(
            "compacter, all shared and factorised",
            BottleneckConfig::compacter()
                .with_reduction_factor(4.0)
                .with_shared_w_phm(true)
                .with_factorized_phm_rule(true)
                .with_phm_init_range(0.5)
        ),
        Case::new(
            "compacter++",
            BottleneckConfig::compacter_plus_plus().with_reduction_factor(4.0)
        ),
        Case::new(
            "compacter++, each its own rule and dense matrices, frozen rules",
            BottleneckConfig::compacter_plus_plus()
                .with_reduction_factor(8.0)
                .with_phm_dim(2)
                .with_shared_phm_rule(false)
                .with_factorized_phm_w(false)
                .with_learn_phm(false)
                .with_phm_bias(false)
                .with_phm_c_init(RuleInit::Uniform)
                .with_hypercomplex_nonlinearity(HypercomplexInit::GlorotNormal)
                .with_scaling(100.0)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "houlsby as the paper starts it",
            BottleneckConfig::houlsby()
                .with_reduction_factor(4.0)
                .with_init_weights(BottleneckInit::Houlsby)
        ),
        Case::new(
            "sparse, by magnitude, left out at random",
            BottleneckConfig::sparse(0.7)
                .with_reduction_factor(4.0)
                .with_pruning(Pruning::Magnitude)
                .with_adapter_drop(1)
        ),
        Case::new(
            "sparse, by the first gradients",
            BottleneckConfig::sparse(0.5).with_reduction_factor(2.0)
        ),
        Case::new(
            "adamix",
            BottleneckConfig::adamix(3).with_reduction_factor(4.0)
        ),
        Case::new(
            "parallel, drawn",
            BottleneckConfig::parallel()
                .with_reduction_factor(4.0)
                .with_init_weights(BottleneckInit::Bert)
        ),
        Case::new(
            "adamix with one Up, beside feed-forward, with a head",
            BottleneckConfig::parallel()
                .with_reduction_factor(4.0)
                .with_init_weights(BottleneckInit::Bert)
                .with_num_experts(2)
                .with_expert_sharing(ExpertSharing::Up)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "ia3",
            Ia3Config::new()
                .with_targets(["key", "value", "intermediate.dense", "output.dense"])
                .with_feedforward_modules(["output.dense"])
        ),
        Case::new(
            "ia3, outputs of a convolution",
            Ia3Config::new().with_targets(["convolution", "key", "intermediate.dense"])
        ),
        Case::new(
            "ia3, inputs of a convolution",
            Ia3Config::new()
                .with_targets(["convolution", "value", "output.dense"])
                .with_feedforward_modules(["convolution"])
        ),
        Case::new(
            "ia3, AdapterHub's layout",
            Ia3Config::new()
                .with_init_ia3_weights(true)
                .with_adapterhub(AdapterHubIa3::default())
                .with_modules_to_save(["classifier"])
        ),
        Case::new("ia3, AdapterHub's layout with gates", {
            let mut fields = AdapterHubIa3::default();
            fields.rest.insert("use_gating".into(), true.into());
            Ia3Config::new().with_adapterhub(fields)
        }),
        Case::new("ia3, AdapterHub's layout with an alpha", {
            let mut fields = AdapterHubIa3::default();
            fields.rest.insert("alpha".into(), 3.into());
            fields.rest.insert("init_weights".into(), "bert".into());
            Ia3Config::new().with_adapterhub(fields)
        }),
        Case::new(
            "ia3, with a head",
            Ia3Config::new()
                .with_targets(["query", "dense"])
                .with_feedforward_modules(r".*\.output\.dense")
                .with_modules_to_save(["classifier"])
        ),
        Case::new("ladder", LstConfig::new().with_reduction_factor(4)),
        Case::new(
            "ladder at random from a late block on, with a head",
            LstConfig::new()
                .with_reduction_factor(2)
                .with_gate_temperature(0.5)
                .with_init(LstInit::Random)
                .with_non_linearity(Activation::Relu)
                .with_leave_out([0])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "shadow",
            ShadowConfig::new()
                .with_r(4)
                .with_shadow_alpha(0.7)
                .with_shadow_num_attention_heads(8)
        ),
        Case::new(
            "shadow of another width before the last block, with a head",
            ShadowConfig::new()
                .with_r(2)
                .with_shadow_alpha(2.0)
                .with_shadow_num_hidden_layers(2)
                .with_shadow_hidden_size(12)
                .with_shadow_intermediate_size(20)
                .with_update_hidden_size(5)
                .with_targets(["encoder.layer.1"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "shadow with a table of its own, blocks by their numbers",
            ShadowConfig::new()
                .with_auxiliary_loss_weight(0.0)
                .with_share_embeddings(false)
                .with_layers_to_transform([0, 1])
        ),
        Case::new(
            "road",
            RoadConfig::new()
                .with_group_size(8)
                .with_targets(["query", "value", "dense"])
        ),
        Case::new(
            "road 2, with a head",
            RoadConfig::new()
                .with_variant(RoadVariant::Road2)
                .with_group_size(16)
                .with_targets(["key", "output.dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "road 4",
            RoadConfig::new()
                .with_variant(RoadVariant::Road4)
                .with_group_size(2)
                .with_targets("all-linear")
        ),
        Case::new("beft", BeftConfig::new()),
        Case::new(
            "beft, with a head",
            BeftConfig::new()
                .with_targets(["query", "dense"])
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "loreft",
            ReftConfig::loreft()
                .with_r(3)
                .with_suffix_positions(2)
                .with_non_linearity(Activation::Tanh)
        ),
        Case::new(
            "loreft, tied, behind one block, with a head",
            ReftConfig::loreft()
                .with_r(1)
                .with_prefix_positions(4)
                .with_tied_weights(true)
                .with_layers([1])
                .with_dropout(0.0)
                .with_modules_to_save(["classifier"])
        ),
        Case::new(
            "noreft",
            ReftConfig::noreft()
                .with_r(4)
                .with_prefix_positions(2)
                .with_suffix_positions(1)
        ),
        Case::new(
            "direft, the last tokens, tied",
            ReftConfig::direft()
                .with_r(2)
                .with_prefix_positions(0)
                .with_suffix_positions(4)
                .with_tied_weights(true)
                .with_dropout(0.0)
        ),
    ]
);

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
