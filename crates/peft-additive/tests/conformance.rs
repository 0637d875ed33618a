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
