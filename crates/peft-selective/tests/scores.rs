//! Layers chosen by statistics: numbers against a plain computation, choices, reasons, refusals.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Gradients, Tensor};
use peft_conformance::{Fixture, TinyTransformer};
use peft_core::PeftModule as _;
use peft_core::calibration::{Calibrate as _, Calibration};
use peft_core::device::cpu_devices;
use peft_selective::{BitFitConfig, Criterion, FullConfig, LayerScores, PartialConfig};

const LAYERS: &str = r"encoder\..*\.(query|dense|LayerNorm)";

/// Gradients of two different losses.
fn gathered(fixture: &Fixture, criterion: Criterion) -> (Calibration, [Gradients; 2]) {
    let wanted = criterion.statistics(LAYERS);
    let mut calibrator = fixture.base.calibrate(&wanted).unwrap();
    let both = [1.0, 3.0].map(|factor| {
        let gradients = (fixture.loss(calibrator.model()) * factor).backward();
        calibrator.record_gradients(&gradients).unwrap();
        gradients
    });
    (calibrator.finish().unwrap(), both)
}

/// Value and gradient of the weights and biases of one layer, in plain numbers. The mean of the losses' factors is 2, that
/// of their squares 5.
fn plain(fixture: &Fixture) -> (Vec<f64>, Vec<f64>) {
    let model = fixture.base.attach("a", &FullConfig::new()).unwrap();
    let gradients = fixture.loss(&model).backward();
    let layer = &model.encoder.layer[1].attention.self_attention.query;
    let bias = layer.bias.as_ref().unwrap();
    let numbers = |weight: Tensor<2>, bias: Tensor<1>| {
        let weight = weight.into_data();
        let bias = bias.into_data();
        let all = weight.iter::<f64>().chain(bias.iter::<f64>());
        all.collect::<Vec<f64>>()
    };
    let slopes = numbers(
        layer.weight.val().grad(&gradients).unwrap(),
        bias.val().grad(&gradients).unwrap(),
    );
    (numbers(layer.weight.val(), bias.val()), slopes)
}

#[test]
fn numbers_are_those_of_their_definitions() {
    for (name, device) in cpu_devices() {
        let fixture = Fixture::new(&device);
        let (values, slopes) = plain(&fixture);
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let products = values.iter().zip(&slopes).map(|(w, g)| (2.0 * w * g).abs());
        let mean_square = norm(&slopes).powi(2) / slopes.len() as f64;
        let cases = [
            (Criterion::GradientNorm, 2.0 * norm(&slopes)),
            (
                Criterion::RelativeGradientNorm,
                2.0 * norm(&slopes) / norm(&values),
            ),
            (Criterion::Fisher, 5.0 * mean_square),
            (Criterion::Sensitivity, products.sum()),
        ];
        for (criterion, expected) in cases {
            let (calibration, _) = gathered(&fixture, criterion);
            let scores = LayerScores::new(criterion, &fixture.base, &calibration).unwrap();
            assert_eq!(
                scores.scores().count(),
                2 * 6,
                "four linear layers and two norms"
            );
            let query = "encoder.layer.1.attention.self.query";
            let (_, found) = scores.scores().find(|(name, _)| *name == query).unwrap();
            assert!(
                (found - expected).abs() < 1e-4 * expected,
                "{name}, {criterion}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn the_largest_are_chosen_and_each_layer_says_why() {
    let fixture = Fixture::new(&cpu_devices()[0].1);
    let criterion = Criterion::GradientNorm;
    let (calibration, _) = gathered(&fixture, criterion);
    let scores = LayerScores::new(criterion, &fixture.base, &calibration).unwrap();
    let chosen = scores.largest(3).unwrap();
    let mut sorted: Vec<f64> = scores.scores().map(|(_, score)| score).collect();
    sorted.sort_by(|one, other| other.total_cmp(one));
    for choice in chosen.choices() {
        assert_eq!(choice.chosen, choice.score >= sorted[2]);
        assert_eq!(sorted[choice.rank - 1].to_bits(), choice.score.to_bits());
        let reason = chosen.reason(choice);
        let word = if choice.chosen { "trains" } else { "left out" };
        assert!(
            reason.starts_with(word) && reason.contains("gradient norm"),
            "{reason}"
        );
        assert!(chosen.to_string().contains(&reason));
    }
    assert_eq!(chosen.layers().len(), 3);
    let config = PartialConfig::new().with_targets(chosen.layers());
    let model = fixture.base.attach("a", &config).unwrap();
    let trained = model.counts().adapter_trainable();
    let sizes = fixture.base.layout().layers.clone();
    let layout = fixture.base.layout();
    let of_chosen = sizes
        .iter()
        .filter(|layer| chosen.layers().contains(&layer.name));
    let params = of_chosen.flat_map(|layer| layer.params.iter());
    let expected: usize = params.map(|index| layout.params[*index].elements()).sum();
    assert_eq!(trained, expected);

    // Whole blocks: the norm of all of their gradients.
    let blocks = scores.clone().by_block();
    let names: Vec<&str> = blocks.scores().map(|(name, _)| name).collect();
    assert_eq!(names, ["encoder.layer.0", "encoder.layer.1"]);
    for (block, score) in blocks.scores() {
        let own = scores.scores().filter(|(name, _)| name.starts_with(block));
        let expected = own.map(|(_, score)| score * score).sum::<f64>().sqrt();
        assert!((score - expected).abs() < 1e-6 * expected, "{block}");
    }
    assert_eq!(blocks.largest(1).unwrap().layers().len(), 6);
}

/// Adds 0.5 to the parameters in one layer.
struct Shift(Vec<String>);

impl ModuleMapper for Shift {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.0.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0.join(".").starts_with("encoder.layer.0.intermediate") {
            param.map(|value| value + 0.5)
        } else {
            param
        }
    }
}

#[test]
fn the_change_is_that_from_one_model_to_the_other() {
    let fixture = Fixture::new(&cpu_devices()[0].1);
    let after = fixture.base.clone().map(&mut Shift(Vec::new()));
    let scores = LayerScores::of_change(&fixture.base, &after).unwrap();
    let norm: f64 = {
        let layer = &fixture.base.encoder.layer[0].intermediate.dense;
        let weight = layer.weight.val().square().sum().into_scalar::<f32>();
        let bias = layer.bias.as_ref().unwrap().val().square().sum();
        f64::from(weight + bias.into_scalar::<f32>()).sqrt()
    };
    let expected = 0.5 * f64::from(32 * 64 + 64).sqrt() / norm;
    for (name, score) in scores.scores() {
        if name == "encoder.layer.0.intermediate.dense" {
            assert!(
                (score - expected).abs() < 1e-4 * expected,
                "{score}, {expected}"
            );
        } else {
            assert_eq!(score.to_bits(), 0.0_f64.to_bits(), "{name}");
        }
    }
    // Adapters count with what they change.
    let moved = |model: &TinyTransformer| {
        let scores = LayerScores::of_change(&fixture.base, model).unwrap();
        let moved: Vec<String> = (scores.scores())
            .filter(|(_, score)| *score > 0.0)
            .map(|(name, _)| name.to_string())
            .collect();
        moved
    };
    let config = BitFitConfig::new().with_targets(["query"]);
    let biases = fixture.trained("a", &config).unwrap();
    let queries = [0, 1].map(|block| format!("encoder.layer.{block}.attention.self.query"));
    assert_eq!(moved(&biases), queries);
}

#[test]
fn what_cannot_be_is_refused() {
    let fixture = Fixture::new(&cpu_devices()[0].1);
    let (calibration, _) = gathered(&fixture, Criterion::GradientNorm);
    let scores = |criterion| LayerScores::new(criterion, &fixture.base, &calibration);
    let error = scores(Criterion::Fisher).unwrap_err().to_string();
    assert!(error.contains("squared_gradients"), "{error}");
    let error = scores(Criterion::RelativeChange).unwrap_err().to_string();
    assert!(error.contains("of_change"), "{error}");
    let none = Calibration::default();
    let error = LayerScores::new(Criterion::GradientNorm, &fixture.base, &none);
    assert!(error.unwrap_err().to_string().contains("gathered"));
    for count in [0, 13] {
        let error = scores(Criterion::GradientNorm).unwrap().largest(count);
        assert!(error.unwrap_err().to_string().contains("at most 12"));
    }
}

/// A model with running statistics, and with a layer that is 0 and has a gradient of 0.
#[derive(Module, Debug)]
struct WithStatistics {
    first: Linear,
    norm: BatchNorm,
    idle: Linear,
}

#[test]
fn running_statistics_have_no_gradients() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let mut model = WithStatistics {
        first: LinearConfig::new(3, 4).init(&device),
        norm: BatchNormConfig::new(4).init(&device),
        idle: LinearConfig::new(4, 4).init(&device),
    };
    model.idle.weight = Param::from_tensor(Tensor::zeros([4, 4], &device));
    model.idle.bias = None;
    model.norm.training = Param::from_bool(false);
    for criterion in [Criterion::RelativeGradientNorm, Criterion::Fisher] {
        let mut calibrator = model.calibrate(&criterion.statistics(".*")).unwrap();
        let looked_at = calibrator.model();
        let input = Tensor::<2>::from_data([[1.0, 2.0, 3.0], [3.0, 1.0, 0.5]], &device);
        let hidden = looked_at.norm.forward(looked_at.first.forward(input));
        let loss = hidden.clone().square().sum() + looked_at.idle.forward(hidden * 0.0).sum();
        calibrator.record_gradients(&loss.backward()).unwrap();
        let calibration = calibrator.finish().unwrap();
        let scores = LayerScores::new(criterion, &model, &calibration).unwrap();
        let scores: Vec<(&str, f64)> = scores.scores().collect();
        let names: Vec<&str> = scores.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["first", "norm", "idle"]);
        assert!(
            scores[..2].iter().all(|(_, score)| *score > 0.0),
            "{scores:?}"
        );
        assert!(scores[2].1.abs() < 1e-12, "{scores:?}");
    }
}
