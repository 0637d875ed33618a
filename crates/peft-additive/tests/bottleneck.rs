//! What a configuration of bottleneck adapters refuses, how it starts, and what only acts while training.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use peft_additive::{
    Bottleneck, BottleneckConfig, BottleneckInit, METHODS, Phm, Projection, ReductionFactor,
    ResidualBeforeLn, Scaling,
};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::Method as _;
use peft_core::nn::{ForwardContext, HiddenState, SiteContext};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, HiddenSite, PeftModule};
use serde_json::json;

fn device() -> Device {
    cpu_devices().remove(0).1
}

#[test]
fn what_cannot_work_is_refused_before_a_model_is_touched() {
    let houlsby = BottleneckConfig::houlsby;
    for (config, field) in [
        (houlsby().with_reduction_factor(0.0), "reduction_factor"),
        (
            houlsby().with_reduction_factor([("first", 2.0)]),
            "reduction_factor",
        ),
        (
            houlsby().with_reduction_factor([("0", -1.0)]),
            "reduction_factor",
        ),
        (houlsby().with_scaling(f64::NAN), "scaling"),
        (
            houlsby().with_residual_before_ln(ResidualBeforeLn::PostAdd),
            "residual_before_ln",
        ),
        (
            houlsby().with_mh_adapter(false).with_output_adapter(false),
            "output_adapter",
        ),
        (
            BottleneckConfig::compacter().with_init_weights(BottleneckInit::MamAdapter),
            "init_weights",
        ),
        (
            BottleneckConfig::compacter()
                .with_shared_w_phm(true)
                .with_reduction_factor([("default", 8.0)]),
            "shared_W_phm",
        ),
        (houlsby().with_stochastic_depth(1.0), "stochastic_depth"),
    ] {
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.contains(field), "{field}: {refused}");
    }
    let mut config = houlsby();
    config.inv_adapter = Some(peft_additive::InvertibleKind::Nice);
    let refused = config.validate().unwrap_err().to_string();
    assert!(
        refused.contains("inv_adapter_reduction_factor"),
        "{refused}"
    );
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let model = TinyTransformer::new(&device());
    let refused = |config: &BottleneckConfig| model.attach("a", config).unwrap_err().to_string();
    let missing = BottleneckConfig::pfeiffer().with_reduction_factor([("0", 4.0)]);
    assert!(
        refused(&missing).contains("block 1"),
        "{}",
        refused(&missing)
    );
    let huge = BottleneckConfig::pfeiffer().with_reduction_factor(1e-300);
    assert!(refused(&huge).contains("reduction_factor"));
    // 32 / 16 is 2, which 4 does not divide.
    let odd = BottleneckConfig::compacter().with_reduction_factor(16.0);
    assert!(refused(&odd).contains("phm_dim"), "{}", refused(&odd));
}

#[test]
fn attention_across_adds_nothing_and_unknown_fields_are_kept_where_they_were() {
    let read = |config: serde_json::Value| {
        let config = json!({"config": config, "version": "adapters.1.3.0", "mine": 1});
        (METHODS[1].parse)(&config)
    };
    // AdapterHub adds nothing for it to a model without attention from a decoder to an encoder.
    let method = read(json!({"cross_adapter": true})).unwrap();
    assert_eq!(method.to_json()["config"]["cross_adapter"], true);
    let method = read(json!({"cross_adapter": false, "newer": "x", "phm_rank": null})).unwrap();
    let written = method.to_json();
    assert_eq!(written["config"]["newer"], "x");
    assert_eq!(written["config"]["phm_rank"], 1);
    assert_eq!(written["mine"], 1);
    assert!(written["newer"].is_null());
}

fn states(config: &BottleneckConfig) -> Vec<Bottleneck> {
    let device = device();
    device.seed(3);
    let model = TinyTransformer::new(&device).attach("a", config).unwrap();
    let states = model.adapter_states::<Bottleneck>("a").unwrap();
    states.into_iter().map(|(_, state)| state).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn down(state: &Bottleneck) -> Vec<f32> {
    match &state.down {
        Projection::Dense(dense) => values(dense.weight.val()),
        Projection::Phm(_) => panic!("dense"),
    }
}

#[test]
fn with_a_seed_all_adapters_start_alike() {
    let config = BottleneckConfig::houlsby().with_reduction_factor(4.0);
    let own = states(&config);
    assert_eq!(own.len(), 4);
    assert_ne!(down(&own[0]), down(&own[1]));
    let seeded = states(&config.with_init_weights_seed(7));
    assert!(seeded.iter().all(|state| down(state) == down(&seeded[0])));
}

#[test]
fn houlsbys_values_are_cut_off_and_a_blocks_width_is_its_own() {
    let config = BottleneckConfig::pfeiffer()
        .with_reduction_factor([("1", 2.0), ("default", 4.0)])
        .with_init_weights(BottleneckInit::Houlsby);
    let widths: Vec<usize> = states(&config)
        .iter()
        .map(|state| {
            let values = down(state);
            assert!(values.iter().all(|value| value.abs() <= 0.02));
            assert!(values.iter().any(|value| value.abs() > 0.01));
            values.len() / 32
        })
        .collect();
    assert_eq!(widths, [8, 16]);
}

#[test]
fn a_shared_rule_is_one_parameter_in_all_projections() {
    let config = BottleneckConfig::compacter()
        .with_reduction_factor(4.0)
        .with_shared_w_phm(true);
    let device = device();
    let model = TinyTransformer::new(&device).attach("a", &config).unwrap();
    // 4 · 4 · 4 of the rule; of W 4 · (8 + 2) twice; biases of 8 and 32 at 4 sites.
    assert_eq!(model.counts().adapter_trainable(), 64 + 80 + 160);
    let rules: Vec<Vec<f32>> = states(&config)
        .iter()
        .flat_map(|state| [state.down.clone(), state.up.clone()])
        .map(|projection| match projection {
            Projection::Phm(Phm { rule, .. }) => {
                rule.left.val().into_data().iter::<f32>().collect()
            }
            Projection::Dense(_) => panic!("PHM"),
        })
        .collect();
    assert_eq!(rules.len(), 8);
    assert!(rules.iter().all(|rule| *rule == rules[0]));
}

/// A block that adds its residual whatever its adapters say.
#[derive(Module, Debug)]
struct Stubborn {
    layer: Linear,
    norm: LayerNorm,
    site: HiddenSite,
}

#[test]
fn the_place_of_the_models_end_is_taken_only_where_the_model_leaves_it() {
    let device = device();
    let model = Stubborn {
        layer: LinearConfig::new(8, 8).init(&device),
        norm: LayerNormConfig::new(8).init(&device),
        site: HiddenSite::new(HiddenState::FeedForwardOutput, 8),
    };
    let config = BottleneckConfig::adapter_plus().with_reduction_factor(2.0);
    let refused = model.attach("a", &config).unwrap_err().to_string();
    assert!(refused.contains("original_ln_after"), "{refused}");
    assert!(!model.site.is_end());
    let before = config.with_original_ln_after(true);
    model.attach("a", &before).unwrap();
}

#[test]
fn adapters_that_take_the_end_and_others_are_not_mixed() {
    let model = TinyTransformer::new(&device());
    let end = BottleneckConfig::adapter_plus().with_reduction_factor(4.0);
    let model = model
        .attach("end", &end)
        .and_then(|model| model.attach("end-too", &end))
        .and_then(|model| model.attach("other", &BottleneckConfig::pfeiffer()))
        .unwrap();
    let rows = |rows: &[&str]| {
        Composition::PerRow(rows.iter().map(|name| Some((*name).to_string())).collect())
    };
    let refused = model.set_composition(&rows(&["end", "other"])).unwrap_err();
    assert!(
        refused.to_string().contains("residual and norm"),
        "{refused}"
    );
    let weighted = Composition::Weighted(vec![("end".into(), 0.5), ("end-too".into(), 0.5)]);
    model.set_composition(&weighted).unwrap_err();
    model.set_composition(&rows(&["end", "end-too"])).unwrap();
    model.set_composition(&rows(&["other", "other"])).unwrap();
    // One on the other: the last decides.
    model.activate(&["end", "other"]).unwrap();
}

#[test]
fn stochastic_depth_leaves_out_rows_while_training_and_nothing_else() {
    let config = BottleneckConfig::houlsby()
        .with_reduction_factor(4.0)
        .with_init_weights(BottleneckInit::Bert)
        .with_scaling(20.0)
        .with_stochastic_depth(0.25);
    for (_, device) in cpu_devices() {
        let device = device.autodiff();
        device.seed(1);
        let model = TinyTransformer::new(&device).attach("a", &config).unwrap();
        let (_, state) = model.adapter_states::<Bottleneck>("a").unwrap().remove(0);
        let context = ForwardContext::new();
        let context = SiteContext::new(&context);
        let rows = 4000_usize;
        let forward = |state: &Bottleneck, device: &Device| {
            use peft_core::method::HiddenAdapter as _;
            let x = Tensor::<3>::ones([rows, 1, 32], device);
            let change = state.forward(x.clone(), &context) - x;
            let first = change.narrow(2, 0, 1).into_data();
            first.iter::<f32>().collect::<Vec<f32>>()
        };
        let plain = device.clone().without_autodiff();
        let full = forward(&state.valid(), &plain)[0];
        let trained = forward(&state, &device);
        let kept = trained.iter().filter(|value| **value != 0.0);
        for value in kept.clone() {
            let distance = (value - full / 0.75).abs();
            assert!(distance < 1e-6 && full.abs() > 1e-3, "{value}, {full}");
        }
        let share = kept.count() as f64 / rows as f64;
        // Four standard deviations.
        assert!((share - 0.75).abs() < 0.028, "{share}");
    }
}

#[test]
fn a_factor_is_read_in_every_form_that_upstream_has() {
    let read = |text: &str| serde_json::from_str::<ReductionFactor>(text).unwrap();
    assert_eq!(read("16"), 16.0.into());
    assert_eq!(
        read(r#"{"0": 8, "default": 2.5}"#),
        [("0", 8.0), ("default", 2.5)].into()
    );
    let scaling = |text: &str| serde_json::from_str::<Scaling>(text).unwrap();
    assert_eq!(scaling("4"), Scaling::Fixed(4.0));
    assert_eq!(scaling("\"learned\""), Scaling::Learned);
    assert_eq!(scaling("\"channel\""), Scaling::Channel);
    assert!(serde_json::from_str::<Scaling>("\"row\"").is_err());
    let residual = |text: &str| serde_json::from_str::<ResidualBeforeLn>(text).unwrap();
    assert_eq!(residual("\"post_add\""), ResidualBeforeLn::PostAdd);
    assert_eq!(residual("false"), ResidualBeforeLn::No);
}
