//! Adapters that routers weigh: Arrow, `GenKnowSub` and X-LoRA.

use std::collections::BTreeMap;

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};
use peft_conformance::perturb;
use peft_core::nn::{AdaptedForward as _, ForwardContext, RoutedPlace, Router, Routing};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, Error, PeftModule as _};
use peft_reparameterization::{
    ArrowConfig, LohaConfig, LoraConfig, METHODS, PolyConfig, XLora, XLoraConfig, arrow,
    gen_know_sub,
};

use super::{Gradients, IN, OUT, Two, device, inputs, near};

/// Two LoRA adapters on both layers.
fn with_experts(device: &Device) -> Two {
    let lora = LoraConfig::new(2)
        .with_alpha(6.0)
        .with_targets(["first", "second"]);
    ["a", "b"].iter().fold(Two::new(device), |model, name| {
        perturb(model.attach(name, &lora).unwrap(), name)
    })
}

/// Weights that differ between the layers.
#[derive(Debug)]
struct ByName(Device);

impl Router for ByName {
    fn weights(&self, place: &RoutedPlace<'_>) -> Tensor<3> {
        let input = place.input.as_ref().unwrap();
        assert_eq!(input.dims(), [3, 4, IN]);
        let of_a = if place.name == "first" { 0.2 } else { 0.9 };
        Tensor::from_data([[[of_a, 1.0 - of_a]]], &self.0)
    }
}

#[test]
fn a_router_is_asked_at_each_layer() {
    let device = device();
    let model = with_experts(&device);
    let routed = Composition::Routed(vec!["a".into(), "b".into()]);
    let routed = model.set_composition(&routed).unwrap();
    let context =
        ForwardContext::new().with_routing(Routing::computed(["a", "b"], ByName(device.clone())));
    let found = routed.run(inputs(&device), &context);
    let average = |weights: [f64; 2]| {
        let weights = Composition::average(["a", "b"].into_iter().zip(weights));
        model.set_composition(&weights).unwrap()
    };
    let none = ForwardContext::new();
    let hidden = average([0.2, 0.8]).hidden(inputs(&device), &none);
    near(found, average([0.9, 0.1]).second.adapted(hidden));
}

/// Sets an adapter's factors at the first layer to one direction, and to zero at the second.
fn with_direction(model: &Two, name: &str, direction: [f32; IN]) -> Two {
    let mut tensors: BTreeMap<String, TensorData> = model.adapter_tensors(name).unwrap();
    for (key, data) in &mut tensors {
        let shape = data.shape().to_vec();
        let values = match (key.contains("first"), key.contains("lora_A")) {
            (true, true) => [direction.to_vec(), vec![0.0; IN]].concat(),
            _ => (0..data.num_elements())
                .map(|at| (at as f32).cos())
                .collect(),
        };
        *data = TensorData::new(values, shape);
    }
    model.with_adapter_tensors(name, tensors).unwrap()
}

#[test]
fn arrow_gives_tokens_the_adapter_that_answers_to_them() {
    let device = device();
    let (east, north) = (
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    );
    let lora = LoraConfig::new(2).with_targets(["first"]);
    let model = Two::new(&device)
        .attach("a", &lora)
        .unwrap()
        .attach("b", &lora)
        .unwrap();
    let model = with_direction(&with_direction(&model, "a", east), "b", north);
    let (routed, routing) = arrow(&model, &["a", "b"], ArrowConfig::new(1)).unwrap();
    let context = ForwardContext::new().with_routing(routing);
    let tokens = Tensor::<3>::from_data(
        [[
            [3.0, 0.1, 1.0, 0.0, 0.0, 0.0],
            [-0.1, -2.0, 1.0, 0.0, 0.0, 0.0],
        ]],
        &device,
    );
    let found = routed.hidden(tokens.clone(), &context);
    let alone = |name| {
        let model = model.activate(&[name]).unwrap();
        model.hidden(tokens.clone(), &ForwardContext::new())
    };
    near(found.clone().narrow(1, 0, 1), alone("a").narrow(1, 0, 1));
    near(found.narrow(1, 1, 1), alone("b").narrow(1, 1, 1));
    // With all of them, at temperature 2: the softmax of |3| / 2 and |0.1| / 2.
    let both = ArrowConfig::new(9).with_router_temperature(2.0);
    let (_, routing) = arrow(&model, &["a", "b"], both).unwrap();
    let place = |input| routing.weights(&RoutedPlace::new("first", Some(input)));
    let weights: Vec<f32> = place(tokens).into_data().iter::<f32>().collect();
    let expected = 1.0 / (1.0 + (-1.45_f32).exp());
    assert!(
        (weights[0] - expected).abs() < 1e-5,
        "{weights:?}, {expected}"
    );
    assert!((weights[0] + weights[1] - 1.0).abs() < 1e-6);
}

#[test]
fn general_knowledge_is_taken_out_of_the_factors() {
    let device = device();
    let model = with_experts(&device);
    let lora = LoraConfig::new(2)
        .with_alpha(6.0)
        .with_targets(["first", "second"]);
    let model = perturb(model.attach("task", &lora).unwrap(), "task");
    let less = gen_know_sub(&model, &["task"], &["a", "b"]).unwrap();
    let of = |model: &Two, name: &str| model.adapter_tensors(name).unwrap();
    let (a, b, task) = (of(&model, "a"), of(&model, "b"), of(&model, "task"));
    for (key, data) in of(&less, "task") {
        let values = data.iter::<f32>().zip(task[&key].iter::<f32>());
        let general = a[&key].iter::<f32>().zip(b[&key].iter::<f32>());
        for ((found, before), (a, b)) in values.zip(general) {
            assert!((found - (before - f32::midpoint(a, b))).abs() < 1e-6);
        }
    }
    assert_eq!(of(&less, "a"), a);
    assert_eq!(less.counts(), model.counts());
    for (tasks, general, said) in [
        (vec!["task"], vec![], "at least one"),
        (vec!["task", "task"], vec!["a"], "twice"),
    ] {
        let refused = gen_know_sub(&model, &tasks, &general).unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
}

#[test]
fn what_arrow_cannot_route_is_refused() {
    let device = device();
    let model = with_experts(&device);
    let model = model.attach("loha", &LohaConfig::new(2)).unwrap();
    let dora = LoraConfig::new(2)
        .with_use_dora(true)
        .with_targets(["first", "second"]);
    let model = model.attach("dora", &dora).unwrap();
    let model = model
        .attach("half", &LoraConfig::new(2).with_targets(["first"]))
        .unwrap();
    let wide = LoraConfig::new(3).with_targets(["first", "second"]);
    let model = model.attach("wide", &wide).unwrap();
    let refused = |experts: &[&str], config: ArrowConfig| {
        arrow(&model, experts, config).map(|_| ()).unwrap_err()
    };
    let one = ArrowConfig::new(1);
    for other in ["loha", "dora", "half"] {
        let error = refused(&["a", other], one);
        assert!(matches!(error, Error::Method(_)), "{error}");
        assert!(error.to_string().contains(other), "{error}");
    }
    assert!(matches!(
        refused(&["a", "nobody"], one),
        Error::UnknownAdapter { .. }
    ));
    assert!(matches!(
        refused(&["a"], ArrowConfig::new(0)),
        Error::Config { .. }
    ));
    let cold = one.with_router_temperature(0.0);
    assert!(matches!(refused(&["a"], cold), Error::Config { .. }));
    // Ranks may differ, but for factors that are subtracted.
    assert!(arrow(&model, &["a", "wide"], one).is_ok());
    let error = gen_know_sub(&model, &["a"], &["wide"]).unwrap_err();
    assert!(error.to_string().contains("shapes"), "{error}");
}

#[test]
fn x_lora_trains_its_classifier_alone() {
    let device = device();
    let model = with_experts(&device);
    let x = inputs(&device);
    let config = XLoraConfig {
        xlora_depth: 2,
        xlora_size: 5,
        ..XLoraConfig::new()
    };
    let xlora = config.init(&model, &["b", "a"], IN).unwrap();
    let hidden = |model: &Two, context: ForwardContext| model.hidden(x.clone(), &context);
    let output = |model: &Two, context: ForwardContext| model.run(x.clone(), &context);
    let gradients = xlora
        .forward(ForwardContext::new(), hidden, output)
        .sum()
        .backward();
    let mut found = Gradients(&gradients, Vec::new());
    xlora.visit(&mut found);
    assert_eq!(found.1.len(), xlora.classifier.num_params());
    let trained = XLoraConfig {
        use_trainable_adapters: true,
        ..config.clone()
    };
    let trained = trained.init(&model, &["b", "a"], IN).unwrap();
    let gradients = trained
        .forward(ForwardContext::new(), hidden, output)
        .sum()
        .backward();
    let mut all = Gradients(&gradients, Vec::new());
    trained.visit(&mut all);
    let experts = 2 * 2 * (IN + IN + IN + OUT);
    assert_eq!(all.1.len(), trained.classifier.num_params() + experts);
    // In the first pass the experts do nothing, as their weight is 0 there.
    let first = ForwardContext::new().with_routing(xlora.first_pass());
    let bare = model.disable_adapters().unwrap();
    near(
        xlora.model.hidden(x.clone(), &first),
        bare.hidden(x.clone(), &ForwardContext::new()),
    );
}

/// Sizes that a file only says take no memory before its tensors have them.
#[test]
fn the_sizes_of_an_x_lora_are_those_of_its_tensors() {
    let model = with_experts(&device());
    let config = XLoraConfig {
        xlora_depth: 3,
        xlora_size: 5,
        ..XLoraConfig::new()
    };
    let xlora = config.init(&model, &["a", "b"], IN).unwrap();
    let dir = tempfile::tempdir().unwrap();
    xlora.save(dir.path()).unwrap();
    let base = model.detach("a").unwrap().detach("b").unwrap();
    let load = || XLora::load(&base, dir.path(), METHODS, IN);
    let again = load().unwrap();
    assert_eq!(again.classifier_tensors(), xlora.classifier_tensors());
    let file = dir.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    for (field, value, said) in [
        ("xlora_size", "1000000", "[1000000, 6]"),
        ("xlora_size", "1000000000000000000", "xlora_size"),
        ("xlora_depth", "1000000000000000000", "xlora_depth"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[field] = serde_json::from_str(value).unwrap();
        std::fs::write(&file, json.to_string()).unwrap();
        let refused = load().unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn x_loras_weights_are_cut_and_scaled() {
    let device = device();
    let model = with_experts(&device);
    let config = XLoraConfig {
        top_k_lora: Some(1),
        enable_softmax_topk: true,
        layerwise_scalings: true,
        global_scaling_weight: 3.0,
        ..XLoraConfig::new()
    };
    let xlora = config.init(&model, &["a", "b"], IN).unwrap();
    let hidden = inputs(&device);
    let all = xlora.classifier.forward(hidden.clone());
    assert_eq!(all.dims(), [3, 4, 2, 2]);
    let routing = xlora.routing(hidden);
    for (at, layer) in ["first", "second"].into_iter().enumerate() {
        let weights = routing.weights(&RoutedPlace::new(layer, None));
        let whole = all.clone().narrow(2, at, 1).reshape([3, 4, 2]);
        // One is left, and its softmax is 1.
        let expected = whole
            .clone()
            .equal(whole.max_dim(2).expand([3, 4, 2]))
            .float()
            * 3.0;
        near(weights, expected);
    }
}

#[test]
fn what_x_lora_cannot_weigh_is_refused() {
    let device = device();
    let model = with_experts(&device);
    let model = model.attach("loha", &LohaConfig::new(2)).unwrap();
    let dora = LoraConfig::new(2)
        .with_use_dora(true)
        .with_targets(["first"]);
    let model = model.attach("dora", &dora).unwrap();
    let new = XLoraConfig::new;
    for (config, field) in [
        (
            XLoraConfig {
                xlora_depth: 0,
                ..new()
            },
            "xlora_depth",
        ),
        (
            XLoraConfig {
                xlora_size: 0,
                ..new()
            },
            "xlora_size",
        ),
        (
            XLoraConfig {
                xlora_dropout_p: 1.0,
                ..new()
            },
            "xlora_dropout_p",
        ),
        (
            XLoraConfig {
                softmax_temperature: 0.0,
                ..new()
            },
            "softmax_temperature",
        ),
        (
            XLoraConfig {
                top_k_lora: Some(0),
                ..new()
            },
            "top_k_lora",
        ),
        (
            XLoraConfig {
                scaling_pass_value: f64::NAN,
                ..new()
            },
            "scaling_pass_value",
        ),
        (
            XLoraConfig {
                hidden_size: Some(7),
                ..new()
            },
            "hidden_size",
        ),
    ] {
        let error = config
            .init(&model, &["a"], IN)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{error}");
    }
    for other in ["loha", "dora"] {
        let error = new()
            .init(&model, &["a", other], IN)
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, Error::Method(_)), "{error}");
    }
    assert!(new().init(&model, &[], IN).is_err());
    let poly = PolyConfig::new(2, 1).with_n_splits(5);
    let error = Two::new(&device)
        .attach("a", &poly)
        .unwrap_err()
        .to_string();
    assert!(error.contains("n_splits"), "{error}");
}
