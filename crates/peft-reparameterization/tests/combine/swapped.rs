//! An adapter that another one takes the place of.

use burn::tensor::Tensor;
use peft_conformance::{TinyTransformer, perturb};
use peft_core::PeftModule as _;
use peft_reparameterization::LoraConfig;

use super::{assert_same, attached, base, changes, device};

#[test]
fn an_adapter_is_swapped_in_its_place() {
    let config = |rank| LoraConfig::new(rank).with_targets(["query", "value"]);
    let model = attached(&base(), "a", &config(2));
    let model = attached(&model, "b", &config(3));
    let model = model.activate(&["a", "b"]).unwrap();
    let other = attached(&base(), "x", &config(4));
    let dir = tempfile::tempdir().unwrap();
    other.save_adapter("x", dir.path()).unwrap();
    let methods = peft_reparameterization::METHODS;
    let swapped = model.swap_adapter("a", dir.path(), methods).unwrap();
    assert_eq!(swapped.adapters(), ["a", "b"]);
    assert_same(&changes(&swapped, "a"), &changes(&other, "x"));
    assert_same(&changes(&swapped, "b"), &changes(&model, "b"));
    // Both are active, as they were.
    let summary = swapped.summary();
    assert!(summary.adapters.iter().all(|adapter| adapter.active));
    let disabled = swapped.disable_adapters().unwrap();
    let still = disabled.swap_adapter("a", dir.path(), methods).unwrap();
    assert!(
        still
            .summary()
            .adapters
            .iter()
            .all(|adapter| !adapter.active)
    );
    // A checkpoint that cannot be loaded changes nothing.
    std::fs::write(dir.path().join("adapter_model.safetensors"), b"x").unwrap();
    assert!(model.swap_adapter("a", dir.path(), methods).is_err());
    assert!(model.swap_adapter("c", dir.path(), methods).is_err());
    assert_eq!(changes(&model, "a").len(), 4);
}

#[test]
fn swapping_and_detaching_keep_order_and_rows() {
    use burn::tensor::Int;
    use peft_reparameterization::{METHODS, OftConfig};
    let run = |model: &TinyTransformer| {
        let ids = Tensor::<2, Int>::from_data([[5, 6, 7], [8, 9, 10]], &device());
        model.hidden(ids, None).into_data()
    };
    // Rotations do not commute: the order at each layer shows.
    let oft = |targets| OftConfig::new(8).with_targets(targets);
    let model = base().attach("a", &oft(".*layer.1.*query")).unwrap();
    let model = perturb(model, "a");
    let model = perturb(model.attach("b", &oft(".*query")).unwrap(), "b");
    let model = model.activate(&["a", "b"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        model.save_adapter(name, dir.path()).unwrap();
        let swapped = model.swap_adapter(name, dir.path(), METHODS).unwrap();
        run(&swapped).assert_eq(&run(&model), true);
    }
    let rows = model.set_adapter_per_row(&[Some("a"), Some("b")]).unwrap();
    let swapped = rows.swap_adapter("b", dir.path(), METHODS).unwrap();
    run(&swapped).assert_eq(&run(&rows), true);
    let left = rows.detach("b").unwrap();
    let expected = rows.set_adapter_per_row(&[Some("a"), None]).unwrap();
    run(&left).assert_eq(&run(&expected), true);
}
