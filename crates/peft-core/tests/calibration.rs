//! Statistics of inputs and gradients, gathered before an adapter is attached.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData, Tolerance};
use peft_core::calibration::{Calibrate as _, Calibration, CalibrationConfig};
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, Plan, WeightAdapter, method_config,
};
use peft_core::nn::{AdaptedForward as _, ForwardContext, adapted_gelu};
use peft_core::{Error, PeftModule as _, Result, TiedHead};

#[derive(Module, Debug)]
struct Net {
    table: Embedding,
    dropout: Dropout,
    first: Linear,
    second: Linear,
    unused: Linear,
    head: TiedHead,
}

fn net(device: &Device) -> Net {
    let layer = |d_in, d_out| LinearConfig::new(d_in, d_out).init(device);
    let net = Net {
        table: EmbeddingConfig::new(7, 4).init(device),
        dropout: DropoutConfig::new(0.5).init(),
        first: layer(4, 6),
        second: layer(6, 4),
        unused: layer(2, 2),
        head: TiedHead::new("table"),
    };
    // A layer draws its values when they are first used.
    let _ = net.layout();
    net
}

impl Net {
    /// What the second layer returns, `[batch, seq, 4]`.
    fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let embedded = self.dropout.forward(self.table.adapted(ids));
        let context = ForwardContext::new();
        adapted_gelu(&self.second, self.first.adapted(embedded), &context)
    }

    fn loss(&self, ids: Tensor<2, Int>) -> Tensor<1> {
        let context = ForwardContext::new();
        let logits = self.head.logits(&self.table, self.hidden(ids), &context);
        logits.square().mean()
    }
}

fn ids(seed: u64, device: &Device) -> Tensor<2, Int> {
    let plain = device.clone().without_autodiff();
    plain.seed(seed);
    let ids = Tensor::<2>::random([2, 3], Distribution::Uniform(0.0, 7.0), &plain);
    Tensor::from_data(ids.int().into_data(), device)
}

fn near<const D: usize>(found: Tensor<D>, expected: Tensor<D>) {
    let expected = expected.into_data();
    (found.into_data()).assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-6));
}

/// What the two layers and the head see of two batches, computed otherwise.
fn seen(net: &Net, device: &Device) -> [Tensor<2>; 3] {
    let net = net.valid();
    let all = [1, 2].map(|seed| ids(seed, &device.clone().without_autodiff()));
    let ids = Tensor::cat(all.to_vec(), 0);
    let first: Tensor<3> = net.table.forward(ids);
    let second = burn::tensor::activation::gelu(net.first.forward(first.clone()));
    let head = net.second.forward(second.clone());
    [
        first.reshape([12, 4]),
        second.reshape([12, 6]),
        head.reshape([12, 4]),
    ]
}

#[test]
fn statistics_of_inputs_are_those_of_all_batches_together() {
    for (_, device) in peft_core::device::cpu_devices() {
        for device in [device.clone(), device.autodiff()] {
            let net = net(&device);
            let wanted = CalibrationConfig {
                second_moments: true,
                means: true,
                samples: 7,
                ..CalibrationConfig::new(["first", "second", "head"])
            };
            let calibrator = net.calibrate(&wanted).unwrap();
            for seed in [1, 2] {
                let loss = calibrator.model().loss(ids(seed, &device));
                let plain = net
                    .valid()
                    .loss(ids(seed, &device.clone().without_autodiff()));
                near(loss.without_autodiff(), plain);
            }
            let found = calibrator.finish().unwrap();
            gathered(found.inputs("nobody"), &["first", "head", "second"]);
            for (layer, inputs) in ["first", "second", "head"]
                .into_iter()
                .zip(seen(&net, &device))
            {
                let statistics = found.inputs(layer).unwrap();
                assert_eq!(statistics.rows(), 12);
                let moment = inputs.clone().transpose().matmul(inputs.clone()) / 12.0;
                near(statistics.second_moment().unwrap(), moment);
                let [_, width] = inputs.dims();
                let mean = |inputs: Tensor<2>| inputs.mean_dim(0).reshape([width]);
                near(statistics.mean().unwrap(), mean(inputs.clone()));
                near(statistics.mean_abs().unwrap(), mean(inputs.clone().abs()));
                near(
                    statistics.samples().unwrap(),
                    inputs.slice([0..7, 0..width]),
                );
                assert!(!statistics.mean().unwrap().is_autodiff());
            }
        }
    }
}

#[test]
fn the_head_is_recorded_where_its_loss_is_computed_at_once() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let net = net(&device);
    let wanted = CalibrationConfig {
        means: true,
        ..CalibrationConfig::new(["head"])
    };
    let calibrator = net.calibrate(&wanted).unwrap();
    let hidden: Tensor<2> = calibrator.model().hidden(ids(1, &device)).reshape([6, 4]);
    let model = calibrator.model();
    let _ = model.head.cross_entropy(
        &model.table,
        hidden.clone(),
        &[0; 6],
        &ForwardContext::new(),
    );
    let found = calibrator.finish().unwrap();
    let statistics = found.inputs("head").unwrap();
    assert_eq!(statistics.rows(), 6);
    near(statistics.mean().unwrap(), hidden.mean_dim(0).reshape([4]));
}

#[test]
fn statistics_of_gradients_are_means_over_backward_passes() {
    for (_, device) in peft_core::device::cpu_devices() {
        let device = device.autodiff();
        // The model's own parameters may be frozen.
        let net = net(&device).no_grad();
        let wanted = CalibrationConfig {
            gradients: true,
            squared_gradients: true,
            ..CalibrationConfig::new(["table", "second"])
        };
        let mut calibrator = net.calibrate(&wanted).unwrap();
        let unfrozen = unfrozen(&net);
        let (mut weights, mut tables) = (Vec::new(), Vec::new());
        for seed in [1, 2] {
            let gradients = calibrator.model().loss(ids(seed, &device)).backward();
            calibrator.record_gradients(&gradients).unwrap();
            let gradients = unfrozen.loss(ids(seed, &device)).backward();
            weights.push(unfrozen.second.weight.val().grad(&gradients).unwrap());
            tables.push(unfrozen.table.weight.val().grad(&gradients).unwrap());
            assert!(
                calibrator
                    .model()
                    .first
                    .weight
                    .val()
                    .grad(&gradients)
                    .is_none()
            );
        }
        let found = calibrator.finish().unwrap();
        let params = ["second.bias", "second.weight", "table.weight"];
        gathered(found.gradients("nobody"), &params);
        for (param, gradients) in [("second.weight", weights), ("table.weight", tables)] {
            let statistics = found.gradients(param).unwrap();
            assert_eq!(statistics.batches(), 2);
            let mean = |of: fn(Tensor<2>) -> Tensor<2>| {
                (of(gradients[0].clone()) + of(gradients[1].clone())) / 2.0
            };
            near(statistics.mean().unwrap(), mean(|gradient| gradient));
            near(statistics.mean_square().unwrap(), mean(Tensor::<2>::square));
        }
        assert!(
            net.layout()
                .params
                .iter()
                .all(|param| !param.is_trainable())
        );
    }
}

/// The same model, with weights that are trained and without dropout.
fn unfrozen(net: &Net) -> Net {
    let trained = |param: Param<Tensor<2>>| Param::from_tensor(param.val().detach().require_grad());
    let mut net = net.clone();
    net.table.weight = trained(net.table.weight);
    net.second.weight = trained(net.second.weight);
    net.dropout.prob = 0.0;
    net
}

/// The refusal of a place without statistics lists those that have some.
fn gathered<T: std::fmt::Debug>(result: Result<T>, places: &[&str]) {
    let text = result.unwrap_err().to_string();
    let (_, listed) = text.split_once("Gathered:").expect(&text);
    let listed: Vec<_> = listed.split_whitespace().collect();
    assert_eq!(listed, places);
}

fn refused<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
    let text = result.unwrap_err().to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_cannot_be_gathered_is_refused_by_name() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let plain = net(&device);
    let stranger = net(&device.clone().autodiff());
    let net = net(&device.clone().autodiff());
    let means = |names: &[&str]| CalibrationConfig {
        means: true,
        ..CalibrationConfig::new(names)
    };
    refused(
        net.calibrate(&CalibrationConfig::new(["first"])),
        &["second_moments"],
    );
    refused(
        net.calibrate(&means(&["query"])),
        &["`query`", "first (Linear)"],
    );
    refused(
        net.calibrate(&means(&["first", "query"])),
        &["`query`", "first (Linear)"],
    );
    refused(
        net.calibrate(&means(&["table"])),
        &["`table`", "Embedding", "Linear"],
    );
    let gradients = |names: &[&str]| CalibrationConfig {
        gradients: true,
        ..CalibrationConfig::new(names)
    };
    refused(
        plain.calibrate(&gradients(&["first"])),
        &["`first.weight`", "autodiff"],
    );
    refused(
        net.calibrate(&gradients(&["head"])),
        &["`head.weight`", "`table.weight`"],
    );

    let calibrator = net.calibrate(&means(&["first", "unused"])).unwrap();
    let _ = calibrator.model().loss(ids(1, &device.clone().autodiff()));
    refused(calibrator.finish(), &["`unused`", "AdaptedForward"]);

    let mut spoiled = plain.clone();
    let table = TensorData::from([[f32::NAN; 4]; 7]);
    spoiled.table.weight = Param::from_tensor(Tensor::from_data(table, &device));
    let calibrator = spoiled.calibrate(&means(&["first"])).unwrap();
    let _ = calibrator.model().loss(ids(1, &device));
    refused(calibrator.finish(), &["`first`", "NaN"]);

    let mut calibrator = net.calibrate(&gradients(&["first", "unused"])).unwrap();
    let other = stranger.loss(ids(1, &device.clone().autodiff())).backward();
    refused(calibrator.record_gradients(&other), &["Calibrator::model"]);
    let own = calibrator.model().loss(ids(1, &device.clone().autodiff()));
    calibrator.record_gradients(&own.backward()).unwrap();
    refused(calibrator.finish(), &["`unused.", "no loss"]);

    let calibrator = plain.calibrate(&means(&["first"])).unwrap();
    let _ = calibrator.model().loss(ids(1, &device));
    let found = calibrator.finish().unwrap();
    refused(found.inputs("second"), &["`second`", "first"]);
    refused(found.gradients("first.weight"), &["`first.weight`", "none"]);
    refused(
        found.inputs("first").unwrap().second_moment(),
        &["second_moments"],
    );
}

/// W − G / 100, for the mean gradient G that a calibration found.
#[derive(Module, Debug)]
struct Descent {
    gradient: Param<Tensor<2>>,
}

impl Adapter for Descent {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("gradient", "gradient")]
    }
}

impl WeightAdapter for Descent {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight - self.gradient.val().reshape(shape) * 0.01
    }
}

/// One step of gradient descent.
#[method_config(
    DESCENT, peft_type = "DESCENT", title = "Descent", family = Selective, mergeable, new(),
    reference = "a method of this test"
)]
pub struct DescentConfig {
    /// Fields that every method has.
    pub common: Common,
}

impl Method for DescentConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let none = Calibration::default();
        let calibration = plan.calibration().unwrap_or(&none);
        let weight = layout
            .params
            .iter()
            .find(|param| param.name == "first.weight");
        let weight = weight.expect("the model of this test has it");
        let gradient = calibration.gradients(&weight.name)?.mean::<2>()?;
        let gradient = Tensor::from_data(gradient.into_data(), &weight.device());
        let gradient = Param::from_tensor(gradient);
        plan.adapt_weight(weight, Descent { gradient });
        Ok(())
    }
}

#[test]
fn a_method_plans_with_what_was_gathered() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let net = net(&device);
    let method = DescentConfig::default();
    let without = net.attach("a", &method);
    assert!(matches!(without, Err(Error::Calibration { .. })));
    let mut calibrator = net
        .calibrate(&CalibrationConfig {
            gradients: true,
            ..CalibrationConfig::new(["first"])
        })
        .unwrap();
    let before = calibrator.model().loss(ids(1, &device));
    calibrator.record_gradients(&before.backward()).unwrap();
    let calibration = calibrator.finish().unwrap();
    let model = net.attach_with("a", &method, &calibration).unwrap();
    let loss = |model: &Net| -> f32 {
        let ids = ids(1, &device.clone().without_autodiff());
        model.valid().loss(ids).into_scalar()
    };
    assert!(loss(&model) < loss(&net));
}
