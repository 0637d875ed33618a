//! AdapterFusion: what it computes, its gradients, and what it does while it is trained.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use peft_additive::{ADAPTER_FUSION, AdapterFusion, AdapterFusionConfig, BottleneckConfig};
use peft_conformance::{Fixture, TinyTransformer, perturb};
use peft_core::nn::{ForwardContext, HiddenState, SiteContext};
use peft_core::state::AdapterState as _;
use peft_core::{Error, HiddenSite, PeftModule, TrainingHooks};

/// A layer, which says where the model is, and a site behind it.
#[derive(Module, Debug)]
struct Block {
    dense: Linear,
    site: HiddenSite,
}

const WIDTH: usize = 6;

impl Block {
    fn with_adapters() -> (Self, Device) {
        let device = peft_core::device::cpu_devices().remove(0).1.autodiff();
        device.seed(3);
        let block = Self {
            dense: LinearConfig::new(WIDTH, WIDTH).init(&device),
            site: HiddenSite::new(HiddenState::FeedForwardOutput, WIDTH).with_name("output"),
        };
        let adapter = BottleneckConfig::pfeiffer().with_reduction_factor(2.0);
        let model = ["a", "b"].iter().fold(block, |model, name| {
            moved_far(model.attach(name, &adapter).unwrap(), name)
        });
        (model, device)
    }

    fn run(&self, h: &Tensor<3>, x: &Tensor<3>) -> Tensor<3> {
        let context = ForwardContext::new();
        let around = SiteContext::post_norm(&context, x.clone(), &norm);
        self.site.forward(h.clone(), &around)
    }
}

/// An adapter with values of order 1, so that differences show in f32.
fn moved_far(model: Block, name: &str) -> Block {
    (0..60).fold(model, |model, _| perturb(model, name))
}

/// Some norm.
fn norm(h: Tensor<3>) -> Tensor<3> {
    let length = h.clone().square().mean_dim(2).add_scalar(1e-3).sqrt();
    h / length
}

fn data(tensor: Tensor<3>) -> TensorData {
    tensor.into_data()
}

fn near(found: &TensorData, expected: &TensorData, within: f64) {
    let distance = peft_testing::farthest(found.iter::<f32>(), expected.iter::<f32>());
    assert!(distance < within, "{distance}");
}

fn inputs(device: &Device) -> [Tensor<3>; 2] {
    [0.3_f32, 0.7].map(|step| {
        let values = (0..2 * 3 * WIDTH).map(|at| (at as f32 * step).sin());
        let values = TensorData::new(values.collect::<Vec<_>>(), [2, 3, WIDTH]);
        Tensor::from_data(values, device)
    })
}

/// As Pfeiffer et al. write it, section 3.2, and AdapterHub computes it: keys and values of every adapter.
fn by_hand(model: &Block, fusion: &AdapterFusion, [h, x]: &[Tensor<3>; 2]) -> Tensor<3> {
    let added = ["a", "b"].map(|name| {
        let alone = model.activate(&[name]).unwrap().run(h, x) - h.clone();
        if fusion.residual_before {
            alone + h.clone()
        } else {
            alone
        }
    });
    let z = if fusion.query_before_norm {
        h.clone()
    } else {
        norm(h.clone() + x.clone())
    };
    let projected = |x: Tensor<3>, by: &Option<_>| match by {
        None => x,
        Some((weight, bias)) => {
            let (weight, bias): (&Param<Tensor<2>>, &Param<Tensor<1>>) = (weight, bias);
            x.matmul(weight.val().unsqueeze()) + bias.val().unsqueeze()
        }
    };
    let parts = |by: &Option<_>| {
        let by: &Option<peft_additive::FusionProjection> = by;
        by.as_ref().map(|by| (by.weight.clone(), by.bias.clone()))
    };
    let query = projected(z, &parts(&fusion.query));
    let scores = added.clone().map(|added| {
        let key = projected(added, &parts(&fusion.key));
        (query.clone() * key).sum_dim(2)
    });
    let weights = softmax(Tensor::cat(scores.into(), 2) / fusion.temperature, 2);
    let values = added.map(|added| match &fusion.value {
        None => added,
        Some(value) => added.matmul(value.val().unsqueeze()),
    });
    let [first, second] = values;
    let sum = first * weights.clone().narrow(2, 0, 1) + second * weights.narrow(2, 1, 1);
    if fusion.residual_before {
        sum
    } else {
        sum + h.clone()
    }
}

fn variants() -> Vec<AdapterFusionConfig> {
    let names = ["a", "b"];
    vec![
        AdapterFusionConfig::dynamic(names),
        AdapterFusionConfig::fixed(names),
        AdapterFusionConfig::dynamic(names).with_key(false),
        AdapterFusionConfig::dynamic(names)
            .with_query(false)
            .with_query_before_ln(true),
        AdapterFusionConfig::dynamic(names).with_residual_before(true),
        AdapterFusionConfig::fixed(names).with_temperature(true),
        AdapterFusionConfig::dynamic(names).with_value_before_softmax(false),
    ]
}

#[test]
fn it_is_attention_over_what_the_adapters_add() {
    let (model, device) = Block::with_adapters();
    let inputs = inputs(&device);
    for config in variants() {
        let fused = perturb(model.attach("fusion", &config).unwrap(), "fusion");
        let states = fused.adapter_states::<AdapterFusion>("fusion").unwrap();
        let [h, x] = &inputs;
        let expected = by_hand(&model, &states[0].1, &inputs);
        near(&data(fused.run(h, x)), &data(expected), 1e-5);
    }
}

/// Gradients of parameters, one behind the other: those of the fusion, and how many others have.
struct Gradients<'a> {
    of: &'a burn::tensor::Gradients,
    inside: bool,
    fusion: Vec<f32>,
    others: usize,
}

impl burn::module::ModuleVisitor for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.inside |= name == "fusion";
    }
    fn exit_module(&mut self, name: &str, _container: &str) {
        self.inside &= name != "fusion";
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.base().grad(self.of) else {
            return;
        };
        if self.inside {
            self.fusion.extend(gradient.into_data().iter::<f32>());
        } else {
            self.others += 1;
        }
    }
}

/// AdapterHub's cases have no gradients. Those of the formula as it is written, key and value of every adapter, are Burn's own.
#[test]
fn gradients_are_those_of_the_formula_and_reach_no_fused_adapter() {
    let (model, device) = Block::with_adapters();
    let inputs = inputs(&device);
    let [h, x] = &inputs;
    for config in variants() {
        let fused = perturb(model.attach("fusion", &config).unwrap(), "fusion");
        let states = fused.adapter_states::<AdapterFusion>("fusion").unwrap();
        let of = |output: Tensor<3>| {
            let gradients = ((output - h.clone()) * x.clone()).sum().backward();
            let mut found = Gradients {
                of: &gradients,
                inside: false,
                fusion: Vec::new(),
                others: 0,
            };
            fused.visit(&mut found);
            (found.fusion, found.others)
        };
        let (found, others) = of(fused.run(h, x));
        let (expected, _) = of(by_hand(&model, &states[0].1, &inputs));
        // All that is trained has a gradient, and nothing else.
        assert_eq!(found.len(), fused.counts().trainable, "{config:?}");
        assert_eq!(others, 0, "{config:?}");
        let largest = peft_testing::largest(expected.iter().map(|value| value.abs()));
        assert!(largest > 1e-2, "{config:?}: {largest}");
        let distance = peft_testing::farthest(found, expected);
        assert!(
            distance < 1e-4 * largest,
            "{config:?}: {distance}, {largest}"
        );
    }
}

/// The state below a site is trained through the fusion: gradients go on to what flows in.
#[test]
fn gradients_reach_the_state() {
    let (model, device) = Block::with_adapters();
    let [h, x] = inputs(&device);
    let fused = model
        .attach("fusion", &AdapterFusionConfig::dynamic(["a", "b"]))
        .unwrap();
    let h = h.require_grad();
    let gradients = fused.run(&h, &x).sum().backward();
    let through_kept = Tensor::<3>::ones(h.dims(), &device.without_autodiff());
    let found = h.grad(&gradients).unwrap();
    let more = (found - through_kept).abs().max().into_scalar::<f32>();
    assert!(more > 1e-3, "{more}");
}

#[test]
fn the_values_projection_is_drawn_to_the_identity() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let adapter = BottleneckConfig::pfeiffer();
    let model: TinyTransformer = fixture.base.attach("a", &adapter).unwrap();
    let fused = model
        .attach("fusion", &AdapterFusionConfig::dynamic(["a"]))
        .unwrap();
    let penalty = |model: &TinyTransformer| {
        let hooks = model.training_hooks(10).unwrap();
        hooks
            .penalty(model)
            .unwrap()
            .map(Tensor::into_scalar::<f32>)
    };
    // 1e-6 beside the diagonal, of 32 features in 2 blocks.
    let fresh = penalty(&fused).unwrap();
    let expected = 0.01 * 2.0 * 32.0 * 31.0 * 1e-12;
    assert!(
        (fresh - expected).abs() < 1e-3 * expected,
        "{fresh}, {expected}"
    );
    let moved = fused
        .edit_adapter::<AdapterFusion>("fusion", |_, state| {
            let value = state.value.take().unwrap();
            state.value = Some(value.map(|value| value.mul_scalar(0.0).detach().require_grad()));
        })
        .unwrap();
    let all = penalty(&moved).unwrap();
    assert!((all - 0.01 * 64.0).abs() < 1e-5, "{all}");
    let off = AdapterFusionConfig::dynamic(["a"]).with_regularization(false);
    assert!(penalty(&model.attach("fusion", &off).unwrap()).is_none());
    let fixed = model
        .attach("fusion", &AdapterFusionConfig::fixed(["a"]))
        .unwrap();
    assert!(penalty(&fixed).is_none());
}

fn temperature(model: &TinyTransformer, name: &str) -> f64 {
    let states = model.adapter_states::<AdapterFusion>(name).unwrap();
    states[0].1.temperature
}

#[test]
fn the_temperature_falls_and_is_saved() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let model = fixture
        .base
        .attach("a", &BottleneckConfig::pfeiffer())
        .unwrap();
    let config = AdapterFusionConfig::fixed(["a"]).with_temperature(true);
    let mut fused = model.attach("fusion", &config).unwrap();
    let mut hooks: TrainingHooks = fused.training_hooks(3).unwrap();
    let mut optimizer = SgdConfig::new().init();
    for _ in 0..3 {
        let gradients = GradientsParams::from_grads(fixture.loss(&fused).backward(), &fused);
        fused = hooks
            .after_step(optimizer.step(1e-3, fused, gradients))
            .unwrap();
    }
    assert!((temperature(&fused, "fusion") - 49.85).abs() < 1e-9);
    let dir = tempfile::tempdir().unwrap();
    fused.save_adapter("fusion", dir.path()).unwrap();
    let again = model
        .load_adapter("again", dir.path(), &[&ADAPTER_FUSION])
        .unwrap();
    assert!((temperature(&again, "again") - 49.85).abs() < 1e-9);
    // A second training goes on from there, and so does one that is resumed.
    let mut hooks = again.training_hooks(3).unwrap();
    let stepped = hooks.after_step(again.clone()).unwrap();
    assert!((temperature(&stepped, "again") - 49.8).abs() < 1e-9);
    let file = dir.path().join("hooks.safetensors");
    hooks.save(&file).unwrap();
    let mut hooks = TrainingHooks::resume(&stepped, 3, &file).unwrap();
    let stepped = hooks.after_step(stepped).unwrap();
    assert!((temperature(&stepped, "again") - 49.75).abs() < 1e-9);
}

/// A fresh fusion with the trained values, whose training is resumed, computes what the model did that was trained.
#[test]
fn a_training_that_is_resumed_has_its_temperature_in_its_first_step() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let fixture = Fixture::new(&device);
    let far =
        |model: TinyTransformer, name: &str| (0..40).fold(model, |model, _| perturb(model, name));
    let one = BottleneckConfig::pfeiffer();
    let model = far(fixture.base.attach("a", &one).unwrap(), "a");
    let model = far(model.attach("b", &one).unwrap(), "b");
    let config = AdapterFusionConfig::dynamic(["a", "b"]).with_temperature(true);
    let mut fused = far(model.attach("fusion", &config).unwrap(), "fusion");
    let steps = 900;
    let mut hooks: TrainingHooks = fused.training_hooks(steps).unwrap();
    for _ in 0..steps - 1 {
        fused = hooks.after_step(fused).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hooks.safetensors");
    hooks.save(&file).unwrap();
    let expected = fixture.loss(&fused).into_scalar::<f32>();
    let values = fused.adapter_tensors("fusion").unwrap();
    let fresh = model.attach("fusion", &config).unwrap();
    let fresh = fresh.with_adapter_tensors("fusion", values).unwrap();
    let at_first = fixture.loss(&fresh).into_scalar::<f32>();
    assert!((at_first - expected).abs() > 1e-6, "{at_first} {expected}");
    let mut hooks = TrainingHooks::resume(&fresh, steps, &file).unwrap();
    let found = fixture.loss(&fresh).into_scalar::<f32>();
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    let stepped = hooks.after_step(fresh.clone()).unwrap();
    assert!((temperature(&stepped, "fusion") - 5.0).abs() < 1e-9);
    // A copy is free of it once the step is done.
    let found = fixture.loss(&fresh).into_scalar::<f32>();
    assert!((found - at_first).abs() < 1e-6, "{found} {at_first}");
}

#[test]
fn what_cannot_be_fused_is_refused() {
    let (model, _) = Block::with_adapters();
    for (config, field) in [
        (
            AdapterFusionConfig::dynamic(Vec::<String>::new()),
            "adapter_names",
        ),
        (AdapterFusionConfig::dynamic(["a", "a"]), "adapter_names"),
        (AdapterFusionConfig::dynamic(["a", "c"]), "adapter_names"),
        (
            AdapterFusionConfig::fixed(["a"])
                .with_query(false)
                .with_key(false),
            "query",
        ),
    ] {
        let error = model.attach("fusion", &config).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
#[should_panic(expected = "the adapter `b`, which was detached")]
fn a_fused_adapter_must_stay() {
    let (model, device) = Block::with_adapters();
    let [h, x] = inputs(&device);
    let fused = model
        .attach("fusion", &AdapterFusionConfig::dynamic(["a", "b"]))
        .unwrap();
    fused.detach("b").unwrap().run(&h, &x);
}
