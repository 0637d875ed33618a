//! Mixtures: what they compute, against plain computations and finite differences, and what they refuse.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use peft_conformance::perturb;
use peft_core::method::Method;
use peft_core::nn::{AdaptedForward, ForwardContext, RoutedPlace, Router, Routing, TaskIds};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, Error, PeftModule};
use peft_reparameterization::{
    ArrowConfig, LilyConfig, LohaConfig, LoraConfig, MtlLoraConfig, MtlLoraLinear, PolyConfig,
    PolyLinear, TaskSpecificMatrix, XLoraConfig, arrow, gen_know_sub,
};

const IN: usize = 6;
const OUT: usize = 4;

#[derive(Module, Debug)]
struct Two {
    first: Linear,
    second: Linear,
}

impl Two {
    fn new(device: &Device) -> Self {
        device.seed(11);
        Self {
            first: LinearConfig::new(IN, IN).init(device),
            second: LinearConfig::new(IN, OUT).init(device),
        }
    }

    fn hidden(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.first.adapted_in(x, context).tanh()
    }

    fn run(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.second.adapted_in(self.hidden(x, context), context)
    }
}

fn device() -> Device {
    peft_core::device::cpu_devices().remove(0).1.autodiff()
}

/// Three rows of four tokens.
fn inputs(device: &Device) -> Tensor<3> {
    let values = (0..3 * 4 * IN).map(|at| (at as f32 * 0.7).sin());
    Tensor::from_data(
        TensorData::new(values.collect::<Vec<_>>(), [3, 4, IN]),
        device,
    )
}

fn near(found: Tensor<3>, expected: Tensor<3>) {
    let (found, expected) = (found.into_data(), expected.into_data());
    let distance = peft_testing::farthest(found.iter::<f32>(), expected.iter::<f32>());
    assert!(distance < 2e-6, "{distance}");
}

fn far(found: Tensor<3>, other: Tensor<3>) {
    let (found, other) = (found.into_data(), other.into_data());
    let distance = peft_testing::farthest(found.iter::<f32>(), other.iter::<f32>());
    assert!(distance > 1e-3, "{distance}");
}

fn tasks(ids: [usize; 3]) -> ForwardContext {
    ForwardContext::new().with_tasks(TaskIds::new(ids))
}

fn trained(model: &Two, method: &dyn Method) -> Two {
    perturb(model.attach("a", method).unwrap(), "a")
}

/// The second layer's output for each row, from the change of the weight that its task has.
fn by_hand(model: &Two, change_of: impl Fn(usize) -> Tensor<2>, ids: [usize; 3]) -> Tensor<3> {
    let device = device();
    let context = tasks(ids);
    let hidden = model.hidden(inputs(&device), &context);
    let bare = model.disable_adapters().unwrap();
    let rows = ids.iter().enumerate().map(|(row, task)| {
        let h = hidden.clone().narrow(0, row, 1);
        let base = bare.second.forward(h.clone());
        base + h.matmul(change_of(*task).unsqueeze())
    });
    Tensor::cat(rows.collect(), 0)
}

#[test]
fn mtl_lora_is_a_change_for_each_task() {
    let device = device();
    let base = Two::new(&device);
    for kind in [
        TaskSpecificMatrix::SingularValues,
        TaskSpecificMatrix::Linear,
    ] {
        let config = MtlLoraConfig::new(2, 3)
            .with_alpha(5.0)
            .with_n_up_projection(2)
            .with_task_specific_matrix_type(kind)
            .with_targets(["second"]);
        let model = trained(&base, &config);
        let state = &model.adapter_states::<MtlLoraLinear>("a").unwrap()[0].1;
        let change_of = |task: usize| {
            let between = state.task_specific.val().narrow(0, task, 1);
            let between = match kind {
                TaskSpecificMatrix::Linear => between.reshape([2, 2]),
                _ => Tensor::<2>::eye(2, &device) * between,
            };
            let weights: Vec<f64> = state
                .weights
                .val()
                .narrow(0, task, 1)
                .into_data()
                .iter()
                .collect();
            let shares = weights.iter().map(|weight| (weight / 0.05).exp());
            let sum: f64 = shares.clone().sum();
            let ups = shares.enumerate().map(|(at, share)| {
                state.lora_b.val().narrow(0, at, 1).reshape([2, OUT]) * (share / sum)
            });
            let up = ups.reduce(|sum, up| sum + up).unwrap();
            state.lora_a.val().matmul(between).matmul(up) * 2.5
        };
        let ids = [2, 0, 1];
        near(
            model.run(inputs(&device), &tasks(ids)),
            by_hand(&model, change_of, ids),
        );
    }
}

#[test]
fn poly_is_a_change_for_each_task() {
    let device = device();
    let base = Two::new(&device);
    let config = PolyConfig::new(3, 3)
        .with_n_skills(2)
        .with_n_splits(2)
        .with_deterministic_router(true)
        .with_targets(["second"]);
    let model = trained(&base, &config);
    let state = &model.adapter_states::<PolyLinear>("a").unwrap()[0].1;
    let change_of = |task: usize| {
        let logits: Vec<f64> = state
            .module_logits
            .val()
            .narrow(0, task, 1)
            .into_data()
            .iter()
            .collect();
        let shares: Vec<f64> = logits
            .iter()
            .map(|logit| 1.0 / (1.0 + (-logit).exp()))
            .collect();
        let mixed = |all: Tensor<4>, split: usize| {
            let [_, _, rows, columns] = all.dims();
            let sum = shares[2 * split] + shares[2 * split + 1];
            let skill = |at: usize| {
                let skill = all.clone().narrow(0, split, 1).narrow(1, at, 1);
                skill.reshape([rows, columns]) * (shares[2 * split + at] / sum)
            };
            skill(0) + skill(1)
        };
        let (a, b) = (state.poly_lora_a.val(), state.poly_lora_b.val());
        let down = Tensor::cat(vec![mixed(a.clone(), 0), mixed(a, 1)], 0);
        let up = Tensor::cat(vec![mixed(b.clone(), 0), mixed(b, 1)], 1);
        down.matmul(up) / 3.0
    };
    let ids = [1, 1, 2];
    near(
        model.run(inputs(&device), &tasks(ids)),
        by_hand(&model, change_of, ids),
    );
}

#[test]
fn polys_router_draws_while_it_is_trained() {
    let device = device();
    let base = Two::new(&device);
    let x = inputs(&device);
    let context = tasks([0, 1, 0]);
    let model = trained(&base, &PolyConfig::new(2, 2));
    far(
        model.run(x.clone(), &context),
        model.run(x.clone(), &context),
    );
    let inference = model.valid();
    let run = || inference.run(x.clone().inner(), &context);
    near(run(), run());
    let frozen = trained(
        &base,
        &PolyConfig::new(2, 2).with_deterministic_router(true),
    );
    near(frozen.run(x.clone(), &context), frozen.run(x, &context));
}

#[test]
#[should_panic(expected = "Poly has 2 tasks, and the forward pass does not say")]
fn several_tasks_have_to_be_said() {
    let device = device();
    let model = Two::new(&device)
        .attach("a", &PolyConfig::new(2, 2))
        .unwrap();
    model.run(inputs(&device), &ForwardContext::new());
}

#[test]
fn one_task_need_not_be_said() {
    let device = device();
    for method in [
        &PolyConfig::new(2, 1) as &dyn Method,
        &MtlLoraConfig::new(2, 1),
    ] {
        let model = trained(&Two::new(&device), method).valid();
        let x = inputs(&device).inner();
        near(
            model.run(x.clone(), &ForwardContext::new()),
            model.run(x, &tasks([0, 0, 0])),
        );
    }
}

/// Rows with an adapter of several tasks beside rows without.
#[test]
fn tasks_go_with_their_rows() {
    let device = device();
    let model = trained(&Two::new(&device), &MtlLoraConfig::new(2, 3)).valid();
    let x = inputs(&device).inner();
    let all = model.run(x.clone(), &tasks([2, 0, 1]));
    let mixed = model
        .set_adapter_per_row(&[Some("a"), None, Some("a")])
        .unwrap();
    let found = mixed.run(x.clone(), &tasks([2, 0, 1]));
    let bare = model
        .disable_adapters()
        .unwrap()
        .run(x, &ForwardContext::new());
    for (row, expected) in [(0, &all), (1, &bare), (2, &all)] {
        near(
            found.clone().narrow(0, row, 1),
            expected.clone().narrow(0, row, 1),
        );
    }
}

#[test]
fn lily_mixes_by_the_mean_of_all_tokens() {
    let device = device();
    let config = LilyConfig::new(2)
        .with_num_b(3)
        .with_scaling(1.5)
        .with_targets(["second"]);
    let model = trained(&Two::new(&device), &config);
    let state = &model
        .adapter_states::<peft_reparameterization::LilyLinear>("a")
        .unwrap()[0]
        .1;
    let x = inputs(&device);
    let none = ForwardContext::new();
    let h = model.hidden(x.clone(), &none);
    let down = h.clone().reshape([12, IN]).matmul(state.lily_a.val());
    let scores = down.clone().matmul(state.lily_router.val()).exp();
    let shares = (scores.clone() / scores.sum_dim(1)).mean_dim(0);
    let up = (0..3).map(|at| {
        let up = state.lily_b.val().narrow(0, 2 * at, 2);
        up * shares.clone().narrow(1, at, 1)
    });
    let up = up.reduce(|sum, up| sum + up).unwrap();
    let change = down.matmul(up).reshape([3, 4, OUT]) * 1.5;
    let bare = model.disable_adapters().unwrap();
    near(model.run(x, &none), bare.second.forward(h) + change);
}

/// Adds a little to one element of one parameter of the adapter.
struct Nudge {
    inside: usize,
    left: usize,
    by: f32,
}

impl ModuleMapper for Nudge {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside += usize::from(container == "Adapter");
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(container == "Adapter");
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let count = param.lazy_shape().num_elements();
        if self.inside == 0 {
            return param;
        }
        let at = self.left;
        self.left = at.wrapping_sub(count);
        if at >= count {
            return param;
        }
        param.map(|value| {
            let (shape, device) = (value.shape(), value.device());
            let mut values: Vec<f32> = value.into_data().iter::<f32>().collect();
            values[at] += self.by;
            Tensor::from_data(TensorData::new(values, shape), &device).require_grad()
        })
    }
}

struct Gradients<'a>(&'a burn::tensor::Gradients, Vec<f32>);

impl ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.base().grad(self.0) {
            self.1.extend(gradient.into_data().iter::<f32>());
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let device = device();
    let x = inputs(&device);
    let context = tasks([1, 0, 1]);
    let mtl = MtlLoraConfig::new(2, 2)
        .with_n_up_projection(2)
        .with_weights_sharpness(0.5);
    let matrices = mtl
        .clone()
        .with_task_specific_matrix_type(TaskSpecificMatrix::Linear);
    let poly = PolyConfig::new(2, 2)
        .with_n_splits(2)
        .with_deterministic_router(true);
    let lily = LilyConfig::new(2).with_targets(["second"]);
    let methods: [&dyn Method; 4] = [&mtl, &matrices, &poly, &lily];
    for method in methods {
        let model = trained(&Two::new(&device), method);
        let loss = |model: &Two| model.run(x.clone(), &context).square().sum();
        let gradients = loss(&model).backward();
        let mut found = Gradients(&gradients, Vec::new());
        model.visit(&mut found);
        let found = found.1;
        assert_eq!(found.len(), model.counts().trainable, "{method:?}");
        let largest = found
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        let step = 4e-3;
        for at in (0..found.len()).step_by(3) {
            let nudged = |by: f32| {
                let mut nudge = Nudge {
                    inside: 0,
                    left: at,
                    by,
                };
                loss(&model.clone().map(&mut nudge)).into_scalar::<f32>()
            };
            let slope = (nudged(step) - nudged(-step)) / (2.0 * step);
            let distance = (slope - found[at]).abs();
            assert!(
                distance < 3e-3 * largest,
                "{method:?}, {at}: {slope}, {}, {largest}",
                found[at]
            );
        }
    }
}

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
