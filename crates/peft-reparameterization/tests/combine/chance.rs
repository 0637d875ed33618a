//! Rules that drop elements at random, and those that do not.

use burn::tensor::Tensor;
use peft_reparameterization::{CombinationType, LoraConfig, MergeMethod, add_weighted_adapter};

use super::{attached, base, changes, device};

#[test]
fn dare_keeps_the_expectation() {
    let config = LoraConfig::new(2).with_targets(["query"]);
    let model = attached(&base(), "a", &config);
    device().seed(3);
    let how = CombinationType::Svd(MergeMethod::DareLinear { density: 0.5 }, Some(32));
    let expected = changes(&model, "a");
    let layer = expected.keys().next().unwrap().clone();
    let mut sum = expected[&layer].zeros_like();
    for _ in 0..300 {
        let combined = add_weighted_adapter(&model, "c", &[("a", 1.0)], how).unwrap();
        let change = changes(&combined, "c")[&layer].clone();
        let zeros: f32 = change
            .clone()
            .abs()
            .lower_elem(1e-5)
            .float()
            .mean()
            .into_scalar();
        assert!((zeros - 0.5).abs() < 0.1, "{zeros}");
        sum = sum + change;
    }
    let off: f32 = (sum / 300.0 - expected[&layer].clone())
        .abs()
        .mean()
        .into_scalar();
    let size: f32 = expected[&layer].clone().abs().mean().into_scalar();
    assert!(off / size < 0.1, "{off} of {size}");
}

/// A rule that drops nothing at random leaves the device's generator where it was.
#[test]
fn rules_without_chance_draw_nothing() {
    let device = device();
    let model = attached(&base(), "a", &LoraConfig::new(2).with_targets(["query"]));
    let model = attached(&model, "b", &LoraConfig::new(2).with_targets(["query"]));
    let next = |rule: Option<CombinationType>| {
        device.seed(11);
        if let Some(rule) = rule {
            add_weighted_adapter(&model, "both", &[("a", 0.5), ("b", 0.5)], rule).unwrap();
        }
        Tensor::<1>::random([4], burn::tensor::Distribution::Default, &device).into_data()
    };
    let untouched = next(None);
    for rule in [
        CombinationType::Cat,
        CombinationType::Factors(MergeMethod::Sum),
        CombinationType::Svd(MergeMethod::MagnitudePrune { density: 0.5 }, None),
        CombinationType::Svd(MergeMethod::DareLinear { density: 1.0 }, None),
    ] {
        assert_eq!(next(Some(rule)), untouched, "{rule:?}");
    }
    let dare = CombinationType::Factors(MergeMethod::DareLinear { density: 0.5 });
    assert_ne!(next(Some(dare)), untouched);
}
