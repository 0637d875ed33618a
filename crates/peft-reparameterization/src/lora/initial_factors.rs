//! A LoRA that starts from factors that something else found: LoftQ, for one.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use crate::lora::config::LORA;
use crate::lora::state::LoraLinear;

/// Gives layers of an attached LoRA the factors to start from: those of each layer's upstream name, `down`
/// `[in, r]` and `up` `[r, out]`. The change of the layer's weight is then `down · up`, whatever scale s the
/// configuration has: A is `down / √|s|`, B is `up / √|s|` with the sign of s. Layers that are not named keep what
/// they have, and what trains is as before.
///
/// The factors of `peft_quantization::loftq_model` are such (Li et al. 2023, arXiv:2310.08659): with them a LoRA
/// on a 4-bit model starts near the model that was quantized.
///
/// # Errors
///
/// - [`Error::UnknownAdapter`], [`Error::Merged`].
/// - [`Error::Config`] for a layer that the adapter is not on as a LoRA of a linear layer, or that is named twice;
///   for factors of another rank or shape, or that are not finite; and for an adapter whose change is not the
///   product of its factors times s: with DoRA, PiSSA, OLoRA, or an alpha of 0.
pub fn init_from_factors<M: PeftModule>(
    model: &M,
    adapter: &str,
    factors: Vec<(String, Tensor<2>, Tensor<2>)>,
) -> Result<M> {
    let states: BTreeMap<String, LoraLinear> = model
        .adapter_states::<LoraLinear>(adapter)?
        .into_iter()
        .collect();
    let mut given = BTreeMap::new();
    for (layer, down, up) in factors {
        let Some(state) = states.get(&layer) else {
            let known: Vec<&str> = states.keys().map(String::as_str).collect();
            let expected = format!("`{adapter}` is on the linear layers {}", known.join(", "));
            return Err(refuse("factors", &layer, expected));
        };
        check(state, &layer, &down, &up)?;
        let twice = format!("`{layer}` has factors already");
        if given.insert(layer.clone(), (down, up)).is_some() {
            return Err(refuse("factors", &layer, twice));
        }
    }
    model.edit_adapter::<LoraLinear>(adapter, |layer, state| {
        let Some((down, up)) = given.remove(layer) else {
            return;
        };
        let root = state.scale.abs().sqrt();
        state.lora_a = with_value(&state.lora_a, down / root);
        state.lora_b = with_value(&state.lora_b, up / (root * state.scale.signum()));
    })
}

/// Keeps A and B of an attached LoRA in another number format: `F32`, or `BF16` for half the memory. Products are
/// computed in the format of the layer's input, whatever it is; DoRA's magnitudes and biases stay as they are.
///
/// # Errors
///
/// - [`Error::UnknownAdapter`], [`Error::Merged`].
/// - [`Error::Config`] for other formats and those that the device lacks, and for an adapter that is not all LoRA of linear layers, or that has taken
///   its factors out of the base (PiSSA, OLoRA).
pub fn cast_factors<M: PeftModule>(model: &M, adapter: &str, dtype: DType) -> Result<M> {
    if !matches!(dtype, DType::F32 | DType::BF16) {
        return Err(refuse("adapter_dtype", dtype, "F32 or BF16"));
    }
    let states = model.adapter_states::<LoraLinear>(adapter)?;
    let lacks = |state: &LoraLinear| {
        let device = state.lora_a.val().device().without_autodiff();
        !device.supports_dtype(dtype)
    };
    if states.iter().any(|(_, state)| lacks(state)) {
        let expected = "F32: the device has no such numbers";
        return Err(refuse("adapter_dtype", dtype, expected));
    }
    let removes = states.iter().find(|(_, state)| state.removed.is_some());
    if let Some((layer, _)) = removes {
        let expected = "F32: the factors that were taken out of the base must stay what they are";
        return Err(refuse(
            "adapter_dtype",
            format!("{dtype:?} (`{layer}`)"),
            expected,
        ));
    }
    let whole = model.summary();
    let places = whole.adapters.iter().find(|found| found.name == adapter);
    if places.is_some_and(|found| found.places > states.len()) {
        let expected = "F32 where an adapter is on more than linear layers";
        return Err(refuse("adapter_dtype", dtype, expected));
    }
    model.edit_adapter::<LoraLinear>(adapter, |_, state| {
        for factor in [&mut state.lora_a, &mut state.lora_b] {
            *factor = factor.clone().map(|old| {
                let trained = old.is_require_grad();
                let device = old.device();
                let data = old.into_data().convert_dtype(dtype);
                // A leaf of the parameter's own device.
                Tensor::from_data(data, (&device, dtype)).set_require_grad(trained)
            });
        }
    })
}

fn refuse(field: &'static str, value: impl std::fmt::Debug, expected: impl Into<String>) -> Error {
    Error::config(LORA.title, field, value, expected)
}

/// Refuses factors that the state has no place for.
fn check(state: &LoraLinear, layer: &str, down: &Tensor<2>, up: &Tensor<2>) -> Result<()> {
    if state.magnitude.is_some() {
        let expected = "false: DoRA's magnitudes are those that the weights had before";
        return Err(refuse("use_dora", true, expected));
    }
    if state.removed.is_some() {
        let expected = "nothing that takes factors out of the base, as PiSSA and OLoRA do";
        return Err(refuse("init_lora_weights", layer, expected));
    }
    if state.scale.abs() <= 0.0 {
        return Err(refuse("lora_alpha", 0, "another number than 0"));
    }
    let (a, b) = (state.lora_a.dims(), state.lora_b.dims());
    let rank = down.dims()[1];
    if rank != a[1] {
        let expected = format!("{rank}, as the factors of `{layer}` have");
        return Err(refuse("r", a[1], expected));
    }
    if (down.dims(), up.dims()) != (a, b) {
        let expected = format!("of shapes {a:?} and {b:?} for `{layer}`");
        return Err(refuse("factors", (down.dims(), up.dims()), expected));
    }
    let finite = |factor: &Tensor<2>| factor.to_data().iter::<f32>().all(f32::is_finite);
    if !finite(down) || !finite(up) {
        let expected = "the factors must be finite";
        return Err(refuse("factors", layer, expected));
    }
    Ok(())
}

/// The parameter with another value, trained or not as before.
fn with_value(param: &Param<Tensor<2>>, value: Tensor<2>) -> Param<Tensor<2>> {
    let data = value.into_data();
    param.clone().map(|old| {
        let trained = old.is_require_grad();
        // A leaf of the parameter's own device.
        Tensor::from_data(data, (&old.device(), old.dtype())).set_require_grad(trained)
    })
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, Distribution, Tolerance};
    use peft_core::device::cpu_devices;

    use super::*;
    use crate::lora::config::LoraConfig;

    #[derive(Module, Debug)]
    struct Net {
        first: Linear,
        second: Linear,
    }

    fn net(device: &Device) -> Net {
        Net {
            first: LinearConfig::new(6, 4).init(device),
            second: LinearConfig::new(4, 3).init(device),
        }
    }

    fn factors(device: &Device, layer: &str, rank: usize) -> (String, Tensor<2>, Tensor<2>) {
        let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, device);
        (layer.to_string(), random([6, rank]), random([rank, 4]))
    }

    fn config() -> LoraConfig {
        LoraConfig::new(2).with_targets(["first", "second"])
    }

    #[test]
    fn the_change_is_the_product_whatever_the_scale() {
        for (name, device) in cpu_devices() {
            for (device, alpha) in [
                (device.clone(), 2.0),
                (device.clone().autodiff(), 7.0),
                (device.autodiff(), -1.0),
            ] {
                let model = net(&device)
                    .attach("a", &config().with_alpha(alpha))
                    .unwrap();
                let (layer, down, up) = factors(&device, "first", 2);
                let product = down.clone().matmul(up.clone()).into_data();
                let started = init_from_factors(&model, "a", vec![(layer, down, up)]).unwrap();
                let before = model.adapter_states::<LoraLinear>("a").unwrap();
                let after = started.adapter_states::<LoraLinear>("a").unwrap();
                let close = Tolerance::<f32>::relative(1e-5).set_absolute(1e-5);
                after[0]
                    .1
                    .delta()
                    .into_data()
                    .assert_approx_eq::<f32>(&product, close);
                // The other layer is as it was, and what trains still does.
                let others =
                    [&before[1].1, &after[1].1].map(|state| state.lora_a.val().into_data());
                assert_eq!(others[0], others[1], "{name}");
                for ((_, before), (_, after)) in before.iter().zip(&after) {
                    assert_eq!(before.lora_a.id, after.lora_a.id);
                    let trained = [before, after].map(|state| state.lora_a.val().is_require_grad());
                    assert_eq!(trained, [device.is_autodiff(); 2], "{name}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (_, device) = cpu_devices().remove(0);
        let net = net(&device);
        let good = || factors(&device, "first", 2);
        let nan = || {
            let (layer, down, up) = good();
            (layer, down * f32::NAN, up)
        };
        for (config, given, word) in [
            (
                config(),
                vec![factors(&device, "third", 2)],
                "first, second",
            ),
            (config(), vec![factors(&device, "second", 2)], "shapes"),
            (
                config(),
                vec![factors(&device, "first", 3)],
                "3, as the factors",
            ),
            (config(), vec![good(), good()], "already"),
            (config(), vec![nan()], "finite"),
            (config().with_use_dora(true), vec![good()], "DoRA"),
            (
                config().with_init_lora_weights("pissa"),
                vec![good()],
                "PiSSA",
            ),
            (config().with_alpha(0.0), vec![good()], "lora_alpha"),
        ] {
            let model = net.attach("a", &config).unwrap();
            let refused = init_from_factors(&model, "a", given)
                .unwrap_err()
                .to_string();
            assert!(refused.contains(word), "{refused}");
        }
        let model = net.attach("a", &config()).unwrap();
        let unknown = init_from_factors(&model, "b", vec![good()]).unwrap_err();
        assert!(matches!(unknown, Error::UnknownAdapter { .. }));
        let merged = model.merge_adapters().unwrap();
        let refused = init_from_factors(&merged, "a", vec![good()]).unwrap_err();
        assert!(matches!(refused, Error::Merged));
    }
}
