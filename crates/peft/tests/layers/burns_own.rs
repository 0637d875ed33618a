//! Layers of Burn's that hold linear layers: attention and recurrent ones. They call these themselves, so that the composed
//! weight acts.

use burn::module::Module as _;
use burn::nn::attention::MhaInput;
use burn::tensor::{Device, Tensor, TensorData};
use peft::additive::Ia3Config;
use peft::core::method::Method;
use peft::core::{PeftModule, device::cpu_devices};
use peft::reparameterization::{HraConfig, LohaConfig, LoraConfig, OftConfig};
use peft_conformance::perturb;
use peft_testing::farthest;

use crate::zoo::{WIDTH, Zoo, values};

fn outputs(model: &Zoo, device: &Device) -> [TensorData; 3] {
    let input: Tensor<3> = values([2, 4, WIDTH], 5, device);
    let attended = model.attention.forward(MhaInput::self_attn(input.clone()));
    let (lstm, _) = model.lstm.forward(input.clone(), None);
    let gru = model.gru.forward(input, None);
    [attended.context, lstm, gru].map(Tensor::into_data)
}

#[test]
fn gates_and_projections_take_what_linear_layers_take() {
    let methods = |target: &str| -> Vec<Box<dyn Method>> {
        let target = [target];
        vec![
            Box::new(LoraConfig::new(4).with_alpha(12.0).with_targets(target)),
            Box::new(LohaConfig::new(4).with_targets(target)),
            Box::new(OftConfig::new(8).with_targets(target)),
            Box::new(HraConfig::new(4).with_targets(target)),
            Box::new(Ia3Config::new().with_targets(target)),
        ]
    };
    for (_, device) in cpu_devices() {
        let base = Zoo::new(&device.clone().autodiff());
        // Attention drops something while it is trained.
        let outputs = |model: &Zoo| outputs(&model.valid(), &device);
        let before = outputs(&base);
        for (at, target) in [
            (0, "attention.query"),
            (0, "attention.output"),
            (1, "lstm.input_gate.input_transform"),
            (1, "lstm.forget_gate.hidden_transform"),
            (1, "lstm.cell_gate.input_transform"),
            (2, "gru.update_gate.input_transform"),
            (2, "gru.new_gate.hidden_transform"),
        ] {
            for method in methods(target) {
                let place = format!("{} on {target}", method.info().title);
                let model = base.attach("a", method.as_ref()).unwrap();
                let fresh = outputs(&model);
                for (fresh, before) in fresh.iter().zip(&before) {
                    let far = farthest(fresh.iter::<f32>(), before.iter::<f32>());
                    assert!(far < 1e-5, "{place}: {far}");
                }
                let model = perturb(model, "a");
                let found = outputs(&model);
                let merged = outputs(&model.merge_and_unload().unwrap());
                for index in 0..3 {
                    let moved = farthest(found[index].iter::<f32>(), before[index].iter::<f32>());
                    assert_eq!(
                        moved > 1e-4,
                        index == at,
                        "{place}: {index} moved by {moved}"
                    );
                    let far = farthest(found[index].iter::<f32>(), merged[index].iter::<f32>());
                    assert!(far < 1e-5, "{place}: merged, {far}");
                }
            }
        }
    }
}

/// What no method changes is trained whole: a copy of the layer's parameters, in its place.
#[test]
fn layers_of_any_kind_are_saved_whole() {
    let (_, device) = cpu_devices().remove(0);
    let autodiff = device.clone().autodiff();
    let base = Zoo::new(&autodiff);
    let config = LoraConfig::new(2)
        .with_targets(["linear"])
        .with_modules_to_save(["own", "conv_transpose2d", "lstm.cell_gate"]);
    let model = perturb(base.attach("a", &config).unwrap(), "a");
    let square = WIDTH * WIDTH;
    let saved = square + (9 * square + WIDTH) + 2 * (square + WIDTH);
    assert_eq!(model.counts().trainable, 4 * WIDTH + saved);
    let all = |model: &Zoo| {
        let model = model.valid();
        let picture = values([1, WIDTH, 3, 3], 8, &device);
        let transposed = model.conv_transpose2d.forward(picture);
        let [_, lstm, _] = outputs(&model, &device);
        [
            transposed.into_data(),
            lstm,
            model.own.weight.val().into_data(),
        ]
    };
    let (before, trained) = (all(&base), all(&model));
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let loaded = all(&base
        .load_adapter("b", dir.path(), &peft::methods())
        .unwrap());
    let disabled = all(&model.disable_adapters().unwrap());
    for index in 0..3 {
        let moved = farthest(trained[index].iter::<f32>(), before[index].iter::<f32>());
        assert!(moved > 1e-2, "{index}: {moved}");
        assert_eq!(loaded[index], trained[index]);
        assert_eq!(disabled[index], before[index]);
    }
}
