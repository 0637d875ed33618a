//! Changes that are weighted: with fixed numbers, and with those that a forward pass brings.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use peft::additive::BottleneckConfig;
use peft::core::method::Method;
use peft::core::nn::{AdaptedForward, ForwardContext, HiddenState, Routing, SiteContext};
use peft::core::{Composition, Error, HiddenSite, PeftModule, device::cpu_devices};
use peft::reparameterization::{LohaConfig, LoraConfig};
use peft::selective::BitFitConfig;

use crate::{attach, data, farthest};

#[derive(Module, Debug)]
pub(crate) struct Block {
    linear: Linear,
    norm: LayerNorm,
    site: HiddenSite,
}

impl Block {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            linear: LinearConfig::new(8, 8).init(device),
            norm: LayerNormConfig::new(8).init(device),
            site: HiddenSite::new(HiddenState::FeedForwardOutput, 8),
        }
    }

    fn linear(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.linear.adapted_in(x, context)
    }

    fn site(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.site.forward(x, &SiteContext::new(context))
    }

    fn norm(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.norm.adapted_in(x, context)
    }
}

type Forward = fn(&Block, Tensor<3>, &ForwardContext) -> Tensor<3>;

/// `f + Σ wᵢ (fᵢ − f)`, with one weight for each adapter, for each row, for each token.
#[test]
fn changes_are_weighted() {
    let lora = LoraConfig::new(2).with_targets(["linear"]);
    let loha = LohaConfig::new(2).with_targets(["linear"]);
    let bottleneck = BottleneckConfig::pfeiffer();
    let biases = BitFitConfig::new();
    let cases: [(&dyn Method, Forward); 5] = [
        (&lora, Block::linear),
        (&loha, Block::linear),
        (&bottleneck, Block::site),
        (&biases, Block::linear),
        (&biases, Block::norm),
    ];
    for (backend, device) in cpu_devices() {
        let device = device.autodiff();
        let x = Tensor::<3>::random([2, 3, 8], Distribution::Default, &device);
        let base = Block::new(&device);
        for (method, forward) in cases {
            let model = attach(&attach(&base, "a", method, 0.0), "b", method, 5.0);
            let none = ForwardContext::new();
            let alone = |names: &[&str]| {
                let model = model.activate(names).unwrap();
                forward(&model, x.clone(), &none)
            };
            let (plain, a, b) = (alone(&[]), alone(&["a"]), alone(&["b"]));
            let expected = |of_a: Tensor<3>, of_b: Tensor<3>| {
                let change = |output: &Tensor<3>, weight| (output.clone() - plain.clone()) * weight;
                data(plain.clone() + change(&a, of_a) + change(&b, of_b))
            };
            let close = |found: Tensor<3>, expected: TensorData| {
                let error = farthest(&data(found), &expected);
                assert!(error <= 2e-6, "{backend}, {method:?}: {error}");
            };
            let full = |weight: f64| Tensor::<3>::full([1, 1, 1], weight, &device);

            let weighted = Composition::Weighted(vec![("a".into(), 0.3), ("b".into(), -0.8)]);
            let fixed = model.set_composition(&weighted).unwrap();
            let fixed = forward(&fixed, x.clone(), &none);
            close(fixed, expected(full(0.3), full(-0.8)));

            let names = ["b", "a"];
            let composition = Composition::Routed(names.map(String::from).into());
            let routed = model.set_composition(&composition).unwrap();
            let weights = Tensor::<2>::from_data([[0.1, 0.7], [1.5, -0.2]], &device);
            let of = |at: usize| weights.clone().narrow(1, at, 1).unsqueeze_dim(1);
            let context = none
                .clone()
                .with_routing(Routing::per_row(names, weights.clone()));
            close(
                forward(&routed, x.clone(), &context),
                expected(of(1), of(0)),
            );

            let weights = Tensor::<3>::random([2, 3, 2], Distribution::Default, &device);
            let of = |at: usize| weights.clone().narrow(2, at, 1);
            let context = none
                .clone()
                .with_routing(Routing::per_token(names, weights.clone()));
            close(
                forward(&routed, x.clone(), &context),
                expected(of(1), of(0)),
            );
        }
    }
}

#[test]
fn weighted_changes_of_weights_merge_and_routed_ones_do_not() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let lora = LoraConfig::new(2).with_targets(["linear"]);
    let model = attach(&Block::new(&device), "a", &lora, 0.0);
    let model = attach(&model, "b", &lora, 5.0);
    let x = Tensor::<3>::random([2, 3, 8], Distribution::Default, &device);
    let weighted = Composition::Weighted(vec![("a".into(), 0.3), ("b".into(), 0.9)]);
    let weighted = model.set_composition(&weighted).unwrap();
    let context = ForwardContext::new();
    let before = data(weighted.linear(x.clone(), &context));
    let merged = weighted.merge_and_unload().unwrap();
    let error = farthest(&data(merged.linear(x, &context)), &before);
    assert!(error <= 2e-6, "{error}");
    let routed = Composition::Routed(vec!["a".into(), "b".into()]);
    let routed = model.set_composition(&routed).unwrap();
    assert!(matches!(
        routed.merge_adapters(),
        Err(Error::Composition { .. })
    ));
    let unknown = Composition::Weighted(vec![("c".into(), 1.0)]);
    assert!(matches!(
        model.set_composition(&unknown),
        Err(Error::UnknownAdapter { .. })
    ));
    let twice = Composition::Routed(vec!["a".into(), "a".into()]);
    assert!(matches!(
        model.set_composition(&twice),
        Err(Error::Composition { .. })
    ));
    let no_number = Composition::Weighted(vec![("a".into(), f64::NAN)]);
    assert!(matches!(
        model.set_composition(&no_number),
        Err(Error::Composition { .. })
    ));
}

#[test]
#[should_panic(expected = "ForwardContext::with_routing")]
fn routing_without_weights_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let lora = LoraConfig::new(2).with_targets(["linear"]);
    let model = Block::new(&device).attach("a", &lora).unwrap();
    let routed = model
        .set_composition(&Composition::Routed(vec!["a".into()]))
        .unwrap();
    routed
        .linear
        .adapted(Tensor::<3>::zeros([1, 1, 8], &device));
}
