//! What LoRA's factors and bases are before the first step, against Hugging Face PEFT 0.21.2's `init.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::calibration::{Calibrate as _, Calibration, CalibrationConfig};
use peft_core::nn::ForwardContext;
use peft_core::state::AdapterState as _;
use peft_models::Bert;
use peft_reparameterization::{
    CordaConfig, CordaMethod, LoftqConfig, LoftqLinear, LoraConfig, LoraGaConfig, LoraGaDirection,
    LoraGaScale, LoraLinear,
};
use peft_testing::{farthest, largest};

const BASE: &str = "../peft-additive/tests/golden/bert_more/base";
const CASES: &str = "../peft-reparameterization/tests/golden/bert_more";

type Tensors = BTreeMap<String, TensorData>;

fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let one = |(key, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => burn::tensor::DType::F32,
            safetensors::Dtype::I64 => burn::tensor::DType::I64,
            other => panic!("{key} is {other:?}"),
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        (key.to_string(), data)
    };
    file.iter().map(one).collect()
}

/// A layer's A, B and base weight before the first step: `[in, r]`, `[r, out]`, `[in, out]`.
struct Start {
    a: Tensor<2>,
    b: Tensor<2>,
    base: Tensor<2>,
}

fn upstreams(case: &str) -> BTreeMap<String, Start> {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let all = tensors(&Path::new(CASES).join(case).join("init.safetensors"));
    let of = |key: String| Tensor::<2>::from_data(all[&key].clone(), device).transpose();
    let layers = all
        .keys()
        .filter_map(|key| key.strip_suffix(".lora_A.weight"));
    layers
        .map(|layer| {
            let start = Start {
                a: of(format!("{layer}.lora_A.weight")),
                b: of(format!("{layer}.lora_B.weight")),
                base: of(format!("{layer}.weight")),
            };
            (layer.to_string(), start)
        })
        .collect()
}

fn values(tensor: &Tensor<2>) -> Vec<f32> {
    tensor.to_data().iter().collect()
}

/// `A Aᵀ` and `Bᵀ B`, which do not depend on the signs of columns and rows.
fn squares(a: &Tensor<2>, b: &Tensor<2>) -> [Tensor<2>; 2] {
    [
        a.clone().matmul(a.clone().transpose()),
        b.clone().transpose().matmul(b.clone()),
    ]
}

fn assert_near(ours: &Tensor<2>, theirs: &Tensor<2>, most: f64, what: &str) {
    let distance = farthest(values(ours), values(theirs));
    let allowed = most * largest(values(theirs)).max(1e-6);
    assert!(distance <= allowed, "{what}: {distance} of {allowed}");
}

/// Compares what a configuration begins with; A and B, the product and the base to `most`, of the largest each.
fn check(
    case: &str,
    config: &LoraConfig,
    calibration: Option<&Calibration>,
    (of_a, of_b): (f64, f64),
) {
    let most = of_a.max(of_b);
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BASE, device).unwrap();
    let model = match calibration {
        Some(calibration) => base.attach_with("a", config, calibration),
        None => base.attach("a", config),
    };
    let model = model.unwrap();
    let plain = model.adapter_states::<LoraLinear>("a").unwrap();
    let loftq = model.adapter_states::<LoftqLinear>("a").unwrap();
    let taken: BTreeMap<_, _> = loftq
        .iter()
        .map(|(layer, state)| (layer.clone(), state.taken.val()))
        .collect();
    let states = plain
        .into_iter()
        .chain(loftq.into_iter().map(|(layer, state)| (layer, state.lora)));
    let all = upstreams(case);
    let weights: BTreeMap<String, Tensor<2>> = base
        .layout()
        .params
        .iter()
        .filter(|param| param.shape().len() == 2)
        .map(|param| (param.name.clone(), param.value()))
        .collect();
    let mut count = 0;
    for (layer, state) in states {
        count += 1;
        let start = &all[&layer];
        let (a, b) = (state.lora_a.val(), state.lora_b.val());
        let [ours, upstreams] = [squares(&a, &b), squares(&start.a, &start.b)];
        assert_near(&ours[0], &upstreams[0], of_a, &layer);
        assert_near(&ours[1], &upstreams[1], of_b, &layer);
        // LoRA-GA's pairs are of vectors that have their signs each for itself.
        if calibration.is_some() {
            continue;
        }
        let product = a.matmul(b);
        let theirs = start.a.clone().matmul(start.b.clone());
        assert_near(&product, &theirs, most, &layer);
        let weight = weights[&format!("{layer}.weight")].clone();
        let left = match (&state.removed, taken.get(&layer)) {
            (Some(removed), _) => weight - removed.a.val().matmul(removed.b.val()) * state.scale,
            (None, Some(taken)) => weight - taken.clone(),
            (None, None) => weight,
        };
        assert_near(&left, &start.base, most, &layer);
    }
    assert_eq!(count, all.len());
}

fn config(start: &str) -> LoraConfig {
    LoraConfig::new(4)
        .with_alpha(4.0)
        .with_targets(["query", "value"])
        .with_init_lora_weights(start)
}

#[test]
fn mica_and_loftq_begin_as_upstreams() {
    let near = (1e-4, 1e-4);
    check("lora_mica", &config("mica"), None, near);
    for (case, iterations) in [("lora_loftq", 1), ("lora_loftq_iter3", 3)] {
        let as_upstream = LoftqConfig {
            upstream_scales: true,
            ..LoftqConfig::new(iterations)
        };
        let config = config("loftq").with_loftq_config(as_upstream);
        check(case, &config, None, near);
    }
}

/// Of the first 8 singular vectors of a gradient the last is nearly as long as the ninth (2 % more), so that rounding of
/// the gradient turns it by a thousandth and more: the factor that has it is compared less exactly. Upstream's
/// largest singular value of a weight comes from a few random iterations, and is 1.5 % too small here.
#[test]
fn lora_ga_begins_as_upstreams() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let device = device.clone().autodiff();
    for (case, direction, scale, near) in [
        (
            "lora_ga_arb2r_stable",
            LoraGaDirection::ArB2r,
            LoraGaScale::Stable,
            (1e-3, 5e-2),
        ),
        (
            "lora_ga_a2rbr_weight_svd",
            LoraGaDirection::A2rBr,
            LoraGaScale::WeightSvd,
            (5e-2, 5e-2),
        ),
        (
            "lora_ga_arbr_gd_scale",
            LoraGaDirection::ArBr,
            LoraGaScale::GdScale,
            (5e-2, 1e-3),
        ),
    ] {
        let base = Bert::load(BASE, &device).unwrap();
        let wanted = CalibrationConfig {
            gradients: true,
            ..CalibrationConfig::new(["query", "value"])
        };
        let mut calibrator = base.calibrate(&wanted).unwrap();
        let io = tensors(&Path::new(BASE).join("io.safetensors"));
        let ids = Tensor::<2, Int>::from_data(io["input_ids"].clone(), &device);
        let mask = Tensor::<2, Int>::from_data(io["attention_mask"].clone(), &device);
        let context = ForwardContext::new().with_padding(Some(mask.equal_elem(0)));
        let output = calibrator.model().forward_in(ids, context).hidden;
        let loss = (output.clone() * output).mean();
        calibrator.record_gradients(&loss.backward()).unwrap();
        let calibration = calibrator.finish().unwrap();
        let config = config("lora_ga").with_lora_ga_config(LoraGaConfig::new(direction, scale));
        check(case, &config, Some(&calibration), near);
    }
}

/// What a model is calibrated with: the text of a case, or of the base.
fn text(folder: &Path, device: &burn::tensor::Device) -> (Tensor<2, Int>, ForwardContext) {
    let io = tensors(&folder.join("io.safetensors"));
    let ids = Tensor::<2, Int>::from_data(io["input_ids"].clone(), device);
    let mask = Tensor::<2, Int>::from_data(io["attention_mask"].clone(), device);
    let context = ForwardContext::new().with_padding(Some(mask.equal_elem(0)));
    (ids, context)
}

fn of_two(start: &str) -> LoraConfig {
    LoraConfig::new(2)
        .with_alpha(3.0)
        .with_targets(["query", "value"])
        .with_init_lora_weights(start)
}

/// On a text of many tokens, where a gradient's singular values are 18 % and more apart: what rounding of the gradient does is
/// 2e-4 at most.
#[test]
fn lora_ga_begins_as_upstreams_on_a_long_text() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let device = device.clone().autodiff();
    for (case, direction, scale) in [
        (
            "start_lora_ga_arb2r_stable",
            LoraGaDirection::ArB2r,
            LoraGaScale::Stable,
        ),
        (
            "start_lora_ga_a2rbr_unit",
            LoraGaDirection::A2rBr,
            LoraGaScale::Unit,
        ),
        (
            "start_lora_ga_arbr_gd_scale",
            LoraGaDirection::ArBr,
            LoraGaScale::GdScale,
        ),
    ] {
        let base = Bert::load(BASE, &device).unwrap();
        let wanted = CalibrationConfig {
            gradients: true,
            ..CalibrationConfig::new(["query", "value"])
        };
        let mut calibrator = base.calibrate(&wanted).unwrap();
        let (ids, context) = text(&Path::new(CASES).join(case), &device);
        let output = calibrator.model().forward_in(ids, context).hidden;
        let loss = (output.clone() * output).mean();
        calibrator.record_gradients(&loss.backward()).unwrap();
        let calibration = calibrator.finish().unwrap();
        let config = of_two("lora_ga").with_lora_ga_config(LoraGaConfig::new(direction, scale));
        check(case, &config, Some(&calibration), (1e-3, 1e-3));
    }
}

/// With one text, upstream's C is the mean over its tokens, divided by the square of its largest input, c: so its A is c times
/// as large, and its B a c-th. The products, and so the base that is left, are the same.
#[test]
fn corda_begins_as_upstreams_but_for_a_factor() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    for (case, method) in [
        ("start_corda_ipm", CordaMethod::Ipm),
        ("start_corda_kpm", CordaMethod::Kpm),
    ] {
        let base = Bert::load(BASE, device).unwrap();
        let wanted = CalibrationConfig {
            second_moments: true,
            ..CalibrationConfig::new(["query", "value"])
        };
        let calibrator = base.calibrate(&wanted).unwrap();
        let (ids, context) = text(&Path::new(CASES).join(case), device);
        calibrator.model().forward_in(ids, context);
        let calibration = calibrator.finish().unwrap();
        let config = of_two("corda").with_corda_config(CordaConfig::new(method));
        let model = base.attach_with("a", &config, &calibration).unwrap();
        let all = upstreams(case);
        let states = model.adapter_states::<LoraLinear>("a").unwrap();
        assert_eq!(states.len(), all.len());
        for (layer, state) in states {
            let theirs = &all[&layer];
            let (a, b) = (state.lora_a.val(), state.lora_b.val());
            let product = a.clone().matmul(b.clone());
            let expected = theirs.a.clone().matmul(theirs.b.clone());
            assert_near(&product, &expected, 1e-3, &layer);
            let left = model_weight(&base, &layer) - product * state.scale;
            assert_near(&left, &theirs.base, 1e-3, &layer);
            let length = |factor: &Tensor<2>| {
                let sum: f32 = factor.clone().square().sum().into_scalar();
                f64::from(sum).sqrt()
            };
            let of_a = length(&theirs.a) / length(&a);
            let of_b = length(&b) / length(&theirs.b);
            assert!((of_a / of_b - 1.0).abs() < 1e-3, "{layer}: {of_a} {of_b}");
            let [ours, upstreams] = [squares(&a, &b), squares(&theirs.a, &theirs.b)];
            let (ours_of_a, ours_of_b) = (
                ours[0].clone() * of_a.powi(2),
                ours[1].clone() / of_a.powi(2),
            );
            assert_near(&ours_of_a, &upstreams[0], 1e-3, &layer);
            assert_near(&ours_of_b, &upstreams[1], 1e-3, &layer);
        }
    }
}

/// A layer's weight, `[in, out]`.
fn model_weight(base: &Bert, layer: &str) -> Tensor<2> {
    let layout = base.layout();
    let name = format!("{layer}.weight");
    let param = layout.params.iter().find(|param| param.name == name);
    param.unwrap().value()
}
