//! What holds of every adapter, of those at a tied head.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, TensorData};
use peft::core::device::cpu_devices;
use peft::core::method::{LayerKind, Method};
use peft::core::{Composition, PeftModule};
use peft::reparameterization::{LohaConfig, LoraConfig, METHODS, OftConfig};
use peft_models::{Llama, LmBatch};

use crate::{HEAD, TABLE, TEXT, base, farthest, logits, lora, read, trained};

/// A configuration, and what is so once it is trained.
struct Case {
    name: &'static str,
    method: Box<dyn Method>,
    /// Whether head and table are still one when it is merged.
    stays_tied: bool,
    /// A key of its file.
    key: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |name, method: &dyn Method, stays_tied, key| Case {
        name,
        method: method.boxed(),
        stays_tied,
        key,
    };
    let tied = |config: LoraConfig| config.with_ensure_weight_tying(true);
    vec![
        case(
            "head",
            &lora(["q_proj", "lm_head"]),
            false,
            "base_model.model.lm_head.lora_B.weight",
        ),
        case(
            "head and table apart",
            &lora(["embed_tokens", "lm_head"]),
            false,
            "base_model.model.lm_head.lora_A.weight",
        ),
        case(
            "DoRA on the head",
            &lora(["lm_head"]).with_use_dora(true),
            false,
            "base_model.model.lm_head.lora_magnitude_vector",
        ),
        case(
            "PiSSA on the head",
            &lora(["lm_head"]).with_init_lora_weights("pissa"),
            false,
            "base_model.model.lm_head.lora_A.weight",
        ),
        case(
            "OFT on the head",
            &OftConfig::new(4).with_targets(["lm_head"]),
            false,
            "base_model.model.lm_head.oft_R.weight",
        ),
        case(
            "LoHa on the head",
            &LohaConfig::new(2).with_targets(["lm_head"]),
            false,
            "base_model.model.lm_head.hada_w1_a",
        ),
        case(
            "saved both",
            &lora(["q_proj"]).with_modules_to_save(["embed_tokens", "lm_head"]),
            false,
            HEAD,
        ),
        case(
            "saved head",
            &lora(["q_proj"]).with_modules_to_save(["lm_head"]),
            false,
            HEAD,
        ),
        case(
            "saved table",
            &lora(["q_proj"]).with_modules_to_save(["embed_tokens"]),
            false,
            TABLE,
        ),
        case(
            "saved, tied",
            &tied(lora(["q_proj"])).with_modules_to_save(["embed_tokens"]),
            true,
            HEAD,
        ),
        case(
            "saved by the head's name, tied",
            &tied(lora(["q_proj"])).with_modules_to_save(["lm_head"]),
            true,
            TABLE,
        ),
        case(
            "target, tied",
            &tied(lora(["q_proj", "lm_head"])),
            true,
            "base_model.model.model.embed_tokens.lora_embedding_A",
        ),
        case(
            "rows, tied",
            &tied(lora(["q_proj"])).with_trainable_token_indices([2, 17, 40]),
            true,
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        ),
    ]
}

/// Gradients by path of the parameter.
fn by_path(model: &Llama, gradients: &GradientsParams) -> BTreeMap<String, TensorData> {
    struct Look<'a> {
        gradients: &'a GradientsParams,
        path: Vec<String>,
        found: BTreeMap<String, TensorData>,
    }
    impl burn::module::ModuleVisitor for Look<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.found.insert(self.path.join("."), gradient.into_data());
            }
        }
    }
    let mut look = Look {
        gradients,
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    model.visit(&mut look);
    look.found
}

/// A loss, and its gradients.
fn gradients(model: &Llama, loss: &Tensor<1>) -> (f32, BTreeMap<String, TensorData>) {
    let value = loss.clone().into_scalar::<f32>();
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    (value, by_path(model, &gradients))
}

fn close(
    what: &str,
    found: &BTreeMap<String, TensorData>,
    expected: &BTreeMap<String, TensorData>,
) {
    assert!(
        !found.is_empty() && found.keys().eq(expected.keys()),
        "{what}"
    );
    for (path, gradient) in found {
        let expected = &expected[path];
        let distance = farthest(gradient, expected);
        let largest = farthest(expected, &(TensorData::zeros::<f32, _>(expected.shape())));
        assert!(
            distance <= 1e-4 * largest.max(1e-2),
            "{what}, {path}: {distance}"
        );
    }
}

/// The loss, which is that of the logits, as are its gradients.
fn loss_of_logits(what: &str, model: &Llama) -> f32 {
    let batch = LmBatch::of_text(&TEXT);
    let (found, of_loss) = gradients(model, &model.loss(&batch));
    let ids: Vec<i64> = TEXT.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 12]), &model.device());
    let whole = model.forward(ids, None).reshape([12, 101]);
    let whole = peft_core::ops::reference::cross_entropy(whole, &batch.targets);
    let (expected, of_logits) = gradients(model, &whole);
    assert!(
        (found / expected - 1.0).abs() < 1e-5,
        "{what}: {found} {expected}"
    );
    close(what, &of_loss, &of_logits);
    let (again, layer_by_layer) = model.loss_and_gradients(&batch, true, 1.0);
    assert!(
        (again / f64::from(expected) - 1.0).abs() < 1e-5,
        "{what}: {again}"
    );
    close(what, &by_path(model, &layer_by_layer), &of_logits);
    expected
}

/// Merged, folded in and exported, outputs stay `after`, and the loss `loss`.
fn merges(what: &str, case: &Case, model: &Llama, after: &TensorData, loss: f32) {
    let batch = LmBatch::of_text(&TEXT);
    let merged = model.merge_adapters().unwrap();
    let distance = farthest(&logits(&merged.valid()), after);
    assert!(
        distance < 1e-4,
        "{what}: merged, outputs move by {distance}"
    );
    let found = merged.valid().loss(&batch).into_scalar::<f32>();
    assert!((found / loss - 1.0).abs() < 1e-4, "{what}: {found} {loss}");
    let back = merged.unmerge_adapters();
    assert!(
        farthest(&logits(&back.valid()), after) == 0.0,
        "{what}: unmerged"
    );
    for plain in [merged.merge_and_unload(), model.merge_and_unload()] {
        let plain = plain.unwrap().valid();
        let distance = farthest(&logits(&plain), after);
        assert!(
            distance < 1e-4,
            "{what}: folded in, outputs move by {distance}"
        );
        let found = plain.loss(&batch).into_scalar::<f32>();
        assert!((found / loss - 1.0).abs() < 1e-4, "{what}: {found} {loss}");
        let untied = plain.tied_head.as_ref().unwrap().own().is_some();
        assert_eq!(untied, !case.stays_tied, "{what}");
        // Written, and read by whoever knows nothing of adapters.
        let dir = tempfile::tempdir().unwrap();
        plain.export(dir.path(), None).unwrap();
        let file = read(dir.path(), "model.safetensors");
        assert_eq!(file.contains_key("lm_head.weight"), untied, "{what}");
        let again = Llama::load(dir.path(), &plain.device()).unwrap();
        assert_eq!(again.config().tie_word_embeddings, !untied, "{what}");
        let distance = farthest(&logits(&again), after);
        assert!(
            distance < 1e-4,
            "{what}: exported, outputs move by {distance}"
        );
    }
}

#[test]
fn adapters_train_save_merge_and_leave_as_anywhere() {
    for (device_name, device) in cpu_devices() {
        let autodiff = device.clone().autodiff();
        let base = base(&autodiff);
        let before = logits(&base.valid());
        for case in cases() {
            let what = format!("{} on {device_name}", case.name);
            autodiff.seed(5);
            let fresh = base.attach("x", case.method.as_ref()).unwrap();
            let moved = farthest(&logits(&fresh.valid()), &before);
            assert!(
                moved < 1e-4,
                "{what}: a fresh adapter moves outputs by {moved}"
            );
            let model = trained(fresh);
            let after = logits(&model.valid());
            let moved = farthest(&after, &before);
            assert!(
                moved > 0.02,
                "{what}: training moves outputs by {moved} only"
            );

            let loss = loss_of_logits(&what, &model);

            // Files.
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("x", dir.path()).unwrap();
            let file = read(dir.path(), "adapter_model.safetensors");
            assert!(file.contains_key(case.key), "{what}: {:?}", file.keys());
            if case.stays_tied && file.contains_key(HEAD) {
                assert_eq!(file[HEAD], file[TABLE], "{what}");
            }
            let loaded = base.load_adapter("x", dir.path(), METHODS).unwrap();
            let distance = farthest(&logits(&loaded.valid()), &after);
            assert!(
                distance < 1e-5,
                "{what}: loaded, outputs move by {distance}"
            );
            assert_eq!(loaded.counts(), model.counts(), "{what}");

            // Disabled, detached, unloaded: the base to the last bit.
            for (state, bare) in [
                ("disabled", model.disable_adapters().unwrap()),
                ("detached", model.detach("x").unwrap()),
                ("unloaded", model.unload().unwrap()),
            ] {
                let distance = farthest(&logits(&bare.valid()), &before);
                assert!(distance == 0.0, "{what}, {state}: {distance}");
                assert!(
                    bare.tied_head.as_ref().unwrap().own().is_none(),
                    "{what}, {state}"
                );
            }
            merges(&what, &case, &model, &after, loss);
        }
    }
}

/// Once it has a matrix of its own, a head is a layer like any other.
#[test]
fn a_head_that_was_untied_takes_adapters() {
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    let model = base(&device).attach("x", &lora(["lm_head"])).unwrap();
    let untied = trained(model).merge_and_unload().unwrap();
    let layout = untied.layout();
    let head = layout
        .layers
        .iter()
        .find(|layer| layer.name == "lm_head")
        .unwrap();
    assert!(head.head && head.kind == LayerKind::Linear);
    assert!(!layout.param(head, "weight").unwrap().is_tied());
    let before = logits(&untied.valid());
    let model = trained(untied.attach("y", &lora(["lm_head"])).unwrap());
    let after = logits(&model.valid());
    assert!(farthest(&after, &before) > 0.02);
    let plain = model.merge_and_unload().unwrap();
    assert!(farthest(&logits(&plain.valid()), &after) < 1e-4);
    assert!(farthest(&logits(&model.unload().unwrap().valid()), &before) == 0.0);
}

#[test]
fn rows_of_a_batch_have_heads_of_their_own() {
    for (name, device) in cpu_devices() {
        let random = |targets| {
            LoraConfig::new(2)
                .with_targets(targets)
                .with_init_lora_weights(false)
        };
        let model = base(&device)
            .attach("a", &random(["lm_head", "q_proj"]))
            .unwrap();
        let model = model.attach("b", &random(["lm_head", "v_proj"])).unwrap();
        let ids: Vec<i64> = TEXT.iter().map(|id| i64::from(*id)).collect();
        let run = |model: &Llama, rows: usize| {
            let ids = TensorData::new(ids.repeat(rows), [rows, 12]);
            model.forward(Tensor::<2, Int>::from_data(ids, &device), None)
        };
        // The adapter c is on the table, and the head follows it.
        let tied = LoraConfig::new(2).with_targets(["lm_head"]);
        let tied = tied
            .with_init_lora_weights(false)
            .with_ensure_weight_tying(true);
        let model = model.attach("c", &tied).unwrap();
        let one = LmBatch::of_text(&TEXT);
        let batch = LmBatch {
            rows: 3,
            ids: one.ids.repeat(3),
            targets: one.targets.repeat(3),
            padding: one.padding.repeat(3),
            ..one.clone()
        };
        for rows in [
            [Some("b"), None, Some("a")],
            [Some("c"), None, Some("a")],
            [Some("c"), Some("b"), Some("c")],
        ] {
            let mixed = model.set_adapter_per_row(&rows).unwrap();
            let logits = run(&mixed, 3);
            let mut loss = 0.0;
            for (row, adapter) in rows.iter().enumerate() {
                let alone = model.activate(adapter.as_slice()).unwrap();
                loss += alone.loss(&one).into_scalar::<f32>();
                let expected = run(&alone, 1).into_data();
                let found = logits.clone().slice_dim(0, row..row + 1).into_data();
                let distance = farthest(&found, &expected);
                assert!(distance < 1e-5, "{name}, {rows:?}, row {row}: {distance}");
            }
            let found = mixed.loss(&batch).into_scalar::<f32>();
            assert!(
                (found / loss - 1.0).abs() < 1e-5,
                "{name}, {rows:?}: {found} {loss}"
            );
        }
        // What the head follows differs from row to row, and takes no weights.
        let routed = Composition::Routed(vec!["c".into()]);
        let weighted = Composition::Weighted(vec![("c".into(), 0.5)]);
        for composition in [routed, weighted] {
            let error = model.set_composition(&composition).unwrap_err().to_string();
            assert!(error.contains("also the model's head"), "{error}");
        }
    }
}

/// Weighted changes of the table leave the head alone, and those of the head the table; merged they do the same.
#[test]
fn weighted_adapters_of_head_and_table_merge() {
    let (_, device) = cpu_devices().remove(0);
    let random = |targets| {
        LoraConfig::new(2)
            .with_targets(targets)
            .with_init_lora_weights(false)
    };
    for targets in [["embed_tokens"], ["lm_head"]] {
        let model = base(&device).attach("a", &random(targets)).unwrap();
        let model = model.attach("b", &random(targets)).unwrap();
        let weights = vec![("a".to_string(), 0.3), ("b".to_string(), -0.6)];
        let weighted = model
            .set_composition(&Composition::Weighted(weights))
            .unwrap();
        let before = logits(&weighted);
        assert!(farthest(&before, &logits(&model.disable_adapters().unwrap())) > 1e-3);
        for merged in [
            weighted.merge_adapters().unwrap(),
            weighted.merge_and_unload().unwrap(),
        ] {
            let distance = farthest(&logits(&merged), &before);
            assert!(distance < 1e-5, "{targets:?}: {distance}");
        }
    }
}

/// Several adapters: what the head follows lies below what is its own.
#[test]
fn adapters_of_head_and_table_nest() {
    for (name, device) in cpu_devices() {
        let random = |config: LoraConfig| config.with_init_lora_weights(false);
        let model = base(&device);
        let model = model.attach("own", &random(lora(["lm_head"]))).unwrap();
        let shared = random(lora(["embed_tokens"])).with_ensure_weight_tying(true);
        let model = model.attach("shared", &shared).unwrap();
        let model = model
            .attach("table", &random(lora(["embed_tokens"])))
            .unwrap();
        let dora = lora(["lm_head"])
            .with_use_dora(true)
            .with_init_lora_weights(false);
        let model = model.attach("dora", &dora).unwrap();
        for active in [
            vec!["own", "shared"],
            vec!["table", "shared"],
            vec!["own", "table"],
            vec!["own", "shared", "table"],
            vec!["shared", "dora"],
        ] {
            let model = model.activate(&active).unwrap();
            let expected = logits(&model);
            let merged = model.merge_adapters().unwrap();
            let share = 1e-4 * expected.iter::<f32>().fold(1.0, |a: f32, b| a.max(b.abs()));
            assert!(
                farthest(&logits(&merged), &expected) < share,
                "{name}: {active:?}"
            );
            let plain = model.merge_and_unload().unwrap();
            assert!(
                farthest(&logits(&plain), &expected) < share,
                "{name}: {active:?}"
            );
            let back = merged.unmerge_adapters();
            assert!(
                farthest(&logits(&back), &expected) == 0.0,
                "{name}: {active:?}"
            );
        }
    }
}

/// Dropout acts on the head's input, in the loss as well.
#[test]
fn dropout_of_the_head_acts_in_the_loss() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        for tying in [false, true] {
            let config = lora(["lm_head"])
                .with_init_lora_weights(false)
                .with_lora_dropout(0.5);
            let model = base(&device)
                .attach("x", &config.with_ensure_weight_tying(tying))
                .unwrap();
            let batch = LmBatch::of_text(&TEXT);
            let loss = || model.loss(&batch).into_scalar::<f32>();
            assert!(
                (loss() - loss()).abs() > 1e-4,
                "{name}: no coins are thrown"
            );
            let still = model.valid();
            let loss = || still.loss(&batch).into_scalar::<f32>();
            assert!((loss() - loss()).abs() == 0.0, "{name}");
        }
    }
}
