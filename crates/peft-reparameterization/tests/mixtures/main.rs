//! Mixtures: what they compute, against plain computations and finite differences, and what they refuse.

mod routers;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use peft_conformance::perturb;
use peft_core::PeftModule;
use peft_core::method::Method;
use peft_core::nn::{AdaptedForward, ForwardContext, TaskIds};
use peft_core::state::AdapterState as _;
use peft_reparameterization::{
    LilyConfig, MtlLoraConfig, MtlLoraLinear, PolyConfig, PolyLinear, TaskSpecificMatrix,
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
