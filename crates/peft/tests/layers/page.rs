//! What the page of layers says besides its table.

use burn::nn::attention::MhaInput;
use burn::tensor::{Device, Tensor};
use peft::core::method::Method;
use peft::core::nn::AdaptedForward as _;
use peft::core::state::AdapterState as _;
use peft::core::{Error, PeftModule as _, device::cpu_devices, kept_weights};
use peft::reparameterization::{HiraConfig, LoraConfig, LoraLinear, OftConfig};
use peft_conformance::perturb;
use peft_testing::farthest;

use crate::zoo::{WIDTH, Zoo, values};

fn device() -> Device {
    cpu_devices().remove(0).1
}

fn distance<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> f64 {
    let [one, other] = [one, other].map(Tensor::into_data);
    farthest(one.iter::<f32>(), other.iter::<f32>())
}

#[test]
fn another_kind_of_layer_is_refused_by_name() {
    let base = Zoo::new(&device());
    for layer in ["own", "conv_transpose2d", "layer_norm", "batch_norm"] {
        let methods: [Box<dyn Method>; 2] = [
            Box::new(LoraConfig::new(2).with_targets([layer])),
            Box::new(OftConfig::new(8).with_targets([layer])),
        ];
        for method in &methods {
            let error = base.attach("a", method.as_ref()).unwrap_err();
            assert!(matches!(error, Error::UnsupportedLayer { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(layer), "{text}");
        }
    }
}

#[test]
fn a_layout_lists_the_layers_with_their_kinds() {
    let text = Zoo::new(&device()).layout().to_string();
    for part in [
        "lstm.input_gate.input_transform",
        "Linear",
        "ConvTranspose2d",
        "own",
        "Own",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The page's pattern takes both layers of each of the four gates, and no layer of another model part.
#[test]
fn the_pattern_of_the_page_takes_the_gates_of_an_lstm() {
    let config = LoraConfig::new(8).with_targets(r"lstm\..*\.(input|hidden)_transform");
    let model = Zoo::new(&device()).attach("a", &config).unwrap();
    let states = model.adapter_states::<LoraLinear>("a").unwrap();
    let names: Vec<&str> = states.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(
        names.iter().all(|name| name.starts_with("lstm.")),
        "{names:?}"
    );
}

/// Dropout on an adapter's input acts where the layer is called by `adapted`, and not where Burn calls it.
#[test]
fn dropout_needs_the_call_that_adapts() {
    let device = device().autodiff();
    let config = LoraConfig::new(4)
        .with_lora_dropout(0.5)
        .with_init_lora_weights(false);
    let config = config.with_targets(["linear", "input_transform", "hidden_transform"]);
    let model = Zoo::new(&device).attach("a", &config).unwrap();
    let input: Tensor<3> = values([2, 4, WIDTH], 5, &device);
    let lstm = || model.lstm.forward(input.clone(), None).0;
    assert!(distance(lstm(), lstm()) < 1e-7);
    let forward = || model.linear.forward(input.clone());
    assert!(distance(forward(), forward()) < 1e-7);
    let adapted = || model.linear.adapted(input.clone());
    assert!(distance(adapted(), adapted()) > 1e-2);
}

/// A bias that the layer lacks is no part of a weight: Burn's call says so, in place of leaving it out.
#[test]
fn what_no_weight_can_do_is_not_left_out_silently() {
    let mut base = Zoo::new(&device());
    base.attention.query.bias = None;
    let config = LoraConfig::new(4)
        .with_lora_bias(true)
        .with_targets(["attention.query"]);
    let model = base.attach("a", &config).unwrap();
    let input: Tensor<3> = values([2, 4, WIDTH], 5, &device());
    let run = || {
        model
            .attention
            .forward(MhaInput::self_attn(input.clone()))
            .context
    };
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    let text = panic.downcast_ref::<&str>().unwrap();
    assert!(text.contains("AdaptedForward"), "{text}");
    // And in the call that adapts it acts.
    let adapted = perturb(model, "a").attention.query.adapted(input);
    assert_eq!(adapted.dims(), [2, 4, WIDTH]);
}

/// Without training a recurrent layer keeps what it has composed.
#[test]
fn a_recurrent_layer_keeps_its_composed_weights() {
    let device = device();
    let config = HiraConfig::new(4).with_targets(["lstm.input_gate.input_transform"]);
    let model = perturb(Zoo::new(&device).attach("a", &config).unwrap(), "a");
    let input: Tensor<3> = values([1, 6, WIDTH], 5, &device);
    let before = kept_weights::bytes();
    let first = model.lstm.forward(input.clone(), None).0;
    let kept = kept_weights::bytes();
    assert!(kept >= before + 4 * WIDTH * WIDTH, "{before}, {kept}");
    let again = model.lstm.forward(input, None).0;
    assert!(distance(first, again) < 1e-7);
    drop(model);
}
