//! The conformance suite, on bottleneck adapters and IA³.

use peft_additive::{Activation, AdapterFusionConfig, BottleneckConfig, Ia3Config, METHODS};

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
            "ia3",
            Ia3Config::new()
                .with_targets(["key", "value", "intermediate.dense", "output.dense"])
                .with_feedforward_modules(["output.dense"])
        ),
        Case::new(
            "ia3, with a head",
            Ia3Config::new()
                .with_targets(["query", "dense"])
                .with_feedforward_modules(r".*\.output\.dense")
                .with_modules_to_save(["classifier"])
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
