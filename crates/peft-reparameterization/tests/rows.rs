//! Rows of a batch with adapters of their own: each row's output is that of its adapter alone.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, Tensor};
use peft_core::device::cpu_devices;
use peft_core::nn::{AdaptedForward, ForwardContext};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_reparameterization::{Bias, InitLora, LoraConfig, LoraLinear, METHODS, cast_factors};

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
    table: Embedding,
}

impl Net {
    fn new(device: &Device) -> Self {
        Self {
            first: LinearConfig::new(6, 8).init(device),
            second: LinearConfig::new(8, 5).with_bias(false).init(device),
            table: EmbeddingConfig::new(7, 6).init(device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        peft_core::nn::adapted_gelu(&self.second, self.first.adapted(x), &ForwardContext::new())
    }
}

fn lora<const N: usize>(r: usize, targets: [&str; N]) -> LoraConfig {
    LoraConfig::new(r)
        .with_alpha(7.0)
        .with_targets(targets)
        .with_init_lora_weights(InitLora::Default(false))
}

/// Three adapters: of other ranks, and one on one layer only.
fn adapted(device: &Device) -> Net {
    Net::new(device)
        .attach("a", &lora(2, ["first", "second"]))
        .unwrap()
        .attach("b", &lora(3, ["first", "second"]))
        .unwrap()
        .attach("c", &lora(1, ["second"]))
        .unwrap()
}

const ROWS: [Option<&str>; 6] = [Some("b"), None, Some("a"), Some("c"), Some("b"), Some("a")];

#[test]
fn each_row_is_that_of_its_adapter() {
    for (name, device) in cpu_devices() {
        let model = adapted(&device);
        let x = Tensor::<3>::random([6, 4, 6], Distribution::Default, &device);
        let mixed = model.set_adapter_per_row(&ROWS).unwrap();
        let found = mixed.forward(x.clone());
        for (row, adapter) in ROWS.iter().enumerate() {
            let alone = match adapter {
                Some(adapter) => model.activate(&[adapter]).unwrap(),
                None => model.disable_adapters().unwrap(),
            };
            let expected = alone.forward(x.clone().narrow(0, row, 1));
            let found = found.clone().narrow(0, row, 1);
            let error = (found - expected).abs().max().into_scalar::<f32>();
            assert!(error < 1e-5, "{name}, row {row}: {error}");
        }
        // The same adapters for all rows again.
        let again = mixed.activate(&["a"]).unwrap().forward(x.clone());
        let expected = model.activate(&["a"]).unwrap().forward(x);
        assert_eq!(again.into_data(), expected.into_data(), "{name}");
    }
}

/// Adapter "a" as `adapted` has it, in another number format.
fn with_a_in(model: &Net, dtype: DType) -> Net {
    cast_factors(model, "a", dtype).unwrap()
}

/// The largest difference; what is no number is larger than all.
fn farthest(one: Tensor<3>, other: Tensor<3>) -> f32 {
    let differences = (one - other).abs().into_data();
    let differences = differences.iter::<f32>();
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

#[test]
fn factors_of_16_bits_lie_beside_others() {
    for (name, device) in cpu_devices() {
        if !device.supports_dtype(DType::BF16) {
            continue;
        }
        let device = device.autodiff();
        let narrow = with_a_in(&adapted(&device), DType::BF16);
        // The same values in 32 bits.
        let wide = with_a_in(&narrow, DType::F32);
        let x = Tensor::<3>::random([6, 4, 6], Distribution::Default, &device);
        let both = |model: &Net| model.activate(&["a", "b"]).unwrap().forward(x.clone());
        let error = farthest(both(&narrow), both(&wide));
        assert!(error <= 1e-6, "{name}: {error}");
        let rows = |model: &Net| model.set_adapter_per_row(&ROWS).unwrap().forward(x.clone());
        let error = farthest(rows(&narrow), rows(&wide));
        assert!(error <= 1e-6, "{name}: {error}");
        let moved = farthest(rows(&narrow), rows(&adapted(&device)));
        assert!(moved > 1e-4, "{name}: the adapters change nothing");
        let gradients = rows(&narrow).sum().backward();
        let model = narrow.activate(&["a", "b"]).unwrap();
        let of_both = both(&narrow).sum().backward();
        for gradients in [gradients, of_both] {
            let states = model.adapter_states::<LoraLinear>("a").unwrap();
            for (place, state) in states {
                let gradient = state.lora_b.val().grad(&gradients);
                let Some(gradient) = gradient else { continue };
                let sum = gradient.cast(DType::F32).abs().sum().into_scalar::<f32>();
                assert!(sum > 0.0, "{name}, {place}");
            }
        }
    }
    let (_, flex) = cpu_devices().remove(0);
    assert!(flex.supports_dtype(DType::BF16), "flex has them");
}

#[test]
fn the_same_adapter_in_all_rows_is_that_adapter() {
    for (name, device) in cpu_devices() {
        let model = adapted(&device);
        let x = Tensor::<3>::random([3, 4, 6], Distribution::Default, &device);
        for adapter in [Some("b"), None] {
            let rows = model.set_adapter_per_row(&[adapter; 3]).unwrap();
            let names: Vec<&str> = adapter.into_iter().collect();
            let alone = model.activate(&names).unwrap();
            let error = farthest(rows.forward(x.clone()), alone.forward(x.clone()));
            assert!(error <= 1e-6, "{name}: {error}");
        }
    }
}

#[test]
fn an_adapter_is_swapped_while_rows_are_mixed() {
    for (name, device) in cpu_devices() {
        let model = adapted(&device);
        let other = model
            .unload()
            .unwrap()
            .attach("new", &lora(4, ["first", "second"]))
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        other.save_adapter("new", dir.path()).unwrap();
        let x = Tensor::<3>::random([6, 4, 6], Distribution::Default, &device);
        let mixed = model.set_adapter_per_row(&ROWS).unwrap();
        let swapped = mixed.swap_adapter("a", dir.path(), METHODS).unwrap();
        let found = swapped.forward(x.clone());
        let before = mixed.forward(x.clone());
        for (row, adapter) in ROWS.iter().enumerate() {
            let expected = match adapter {
                Some("a") => other.forward(x.clone()),
                _ => before.clone(),
            };
            let row = |output: &Tensor<3>| output.clone().narrow(0, row, 1);
            let error = farthest(row(&found), row(&expected));
            assert!(error <= 1e-5, "{name}, {adapter:?}: {error}");
        }
        // Without it, its rows have none.
        let without = swapped.detach("a").unwrap().forward(x.clone());
        let base = model.disable_adapters().unwrap().forward(x.clone());
        let error = farthest(without.narrow(0, 2, 1), base.narrow(0, 2, 1));
        assert!(error <= 1e-6, "{name}: {error}");
    }
}

#[test]
fn adapters_with_heads_biases_and_tables_are_swapped_in_among_rows() {
    let (_, device) = cpu_devices().remove(0);
    let model = adapted(&device);
    let base = model.unload().unwrap();
    let x = Tensor::<3>::random([6, 4, 6], Distribution::Default, &device);
    let mixed = model.set_adapter_per_row(&ROWS).unwrap();
    let before = mixed.forward(x.clone()).into_data();
    let configs: [LoraConfig; 3] = [
        lora(2, ["first"]).with_modules_to_save(["table"]),
        lora(2, ["first"]).with_bias(Bias::All),
        lora(2, ["table"]),
    ];
    for config in configs {
        let other = base.attach("new", &config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        other.save_adapter("new", dir.path()).unwrap();
        let swapped = mixed.swap_adapter("a", dir.path(), METHODS).unwrap();
        assert_eq!(swapped.composition(), mixed.composition());
        let found = swapped.forward(x.clone());
        let alone = swapped.activate(&["a"]).unwrap().forward(x.clone());
        for (row, name) in ROWS.iter().enumerate() {
            let whole = if *name == Some("a") {
                &alone
            } else {
                &mixed.forward(x.clone())
            };
            let (found, expected) = (
                found.clone().narrow(0, row, 1),
                whole.clone().narrow(0, row, 1),
            );
            let error = farthest(found, expected);
            assert!(error <= 1e-6, "row {row}: {error}");
        }
        assert_eq!(mixed.forward(x.clone()).into_data(), before);
    }
}

#[test]
fn what_is_not_low_rank_runs_once_for_each_adapter() {
    for (name, device) in cpu_devices() {
        let model = adapted(&device);
        // A copy of the second layer of its own, which has no bias.
        let config = lora(2, ["first"]).with_modules_to_save(["second"]);
        let model = model.attach("s", &config).unwrap();
        let x = Tensor::<3>::random([4, 3, 6], Distribution::Default, &device);
        let rows = [Some("s"), Some("a"), None, Some("s")];
        let found = model.set_adapter_per_row(&rows).unwrap().forward(x.clone());
        for (row, adapter) in rows.iter().enumerate() {
            let names: Vec<&str> = adapter.iter().copied().collect();
            let alone = model.activate(&names).unwrap();
            let expected = alone.forward(x.clone().narrow(0, row, 1));
            let found = found.clone().narrow(0, row, 1);
            let error = (found - expected).abs().max().into_scalar::<f32>();
            assert!(error < 1e-5, "{name}, row {row}: {error}");
        }
    }
}

#[test]
fn only_the_adapters_in_use_get_gradients() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let model = adapted(&device);
        let x = Tensor::<3>::random([2, 4, 6], Distribution::Default, &device);
        let rows = [Some("a"), Some("c")];
        let mixed = model.set_adapter_per_row(&rows).unwrap();
        let gradients = mixed.forward(x).sum().backward();
        for (adapter, used) in [("a", true), ("b", false)] {
            for (place, state) in mixed.adapter_states::<LoraLinear>(adapter).unwrap() {
                // Attaching another adapter froze it; what was attached last is trained.
                let gradient = state.lora_b.val().grad(&gradients);
                assert!(gradient.is_none() || used, "{name}, {adapter} at {place}");
            }
        }
        let states = mixed.adapter_states::<LoraLinear>("c").unwrap();
        assert!(states.iter().all(|(_, state)| {
            let gradient = state.lora_b.val().grad(&gradients);
            gradient.is_some_and(|gradient| gradient.abs().sum().into_scalar::<f32>() > 0.0)
        }));
    }
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let model = adapted(&device);
    let refused = |model: &Net, rows: &[Option<&str>]| model.set_adapter_per_row(rows).unwrap_err();
    assert!(matches!(
        refused(&model, &[Some("z")]),
        Error::UnknownAdapter { .. }
    ));
    let mixed = model.set_adapter_per_row(&[Some("a"), None]).unwrap();
    assert!(matches!(
        mixed.merge_adapters().unwrap_err(),
        Error::Composition { .. }
    ));
    let merged = model.merge_adapters().unwrap();
    assert!(matches!(refused(&merged, &[None]), Error::Merged));
}

#[test]
#[should_panic(expected = "the adapters of 2 rows, and the batch has 3")]
fn a_batch_of_other_size_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let mixed = adapted(&device)
        .set_adapter_per_row(&[Some("a"), None])
        .unwrap();
    mixed.forward(Tensor::zeros([3, 4, 6], &device));
}

#[test]
#[should_panic(expected = "call its layer through `peft_core::nn::AdaptedForward`")]
fn a_weight_used_by_itself_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let mixed = adapted(&device)
        .set_adapter_per_row(&[Some("a"), None])
        .unwrap();
    mixed.first.forward(Tensor::<3>::zeros([2, 4, 6], &device));
}
