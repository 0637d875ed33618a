//! The conformance suite, on bottleneck adapters and IA³.

use peft_additive::{
    Activation, BottleneckConfig, BottleneckInit, HypercomplexInit, Ia3Config, InvertibleKind,
    METHODS, ResidualBeforeLn, RuleInit, Scaling,
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
