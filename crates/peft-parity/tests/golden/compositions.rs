//! Several adapters at once against AdapterHub's `adapters` 1.3: averaged and fused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData};
use peft_additive::METHODS;
use peft_core::{Composition, Nested, PeftModule};
use peft_models::Bert;
use peft_testing::farthest;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::BERT;

fn case(name: &str) -> PathBuf {
    Path::new("../peft-additive/tests/golden").join(name)
}

/// What a case's file holds.
struct Io {
    ids: TensorData,
    mask: TensorData,
    output: TensorData,
}

impl Io {
    fn of(case: &Path) -> Self {
        let bytes = fs::read(case.join("io.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let data = |key: &str| {
            let view = file.tensor(key).unwrap();
            let dtype = match view.dtype() {
                Dtype::F32 => burn::tensor::DType::F32,
                _ => burn::tensor::DType::I64,
            };
            TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
        };
        Self {
            ids: data("input_ids"),
            mask: data("attention_mask"),
            output: data("output"),
        }
    }

    fn run(&self, model: &Bert) -> TensorData {
        let device = model.embeddings.layer_norm.gamma.lazy_device();
        let ids = Tensor::<2, Int>::from_data(self.ids.clone(), &device);
        let mask = Tensor::<2, Int>::from_data(self.mask.clone(), &device);
        let output = model.forward(ids, Some(mask.equal_elem(0)));
        output.hidden.into_data()
    }

    fn check(&self, what: &str, model: &Bert) {
        let distance = farthest(self.run(model).iter::<f32>(), self.output.iter::<f32>());
        assert!(distance < 1e-5, "{what}: {distance}");
    }
}

/// The bases of all CPU devices, with a case's adapters `a` and `b`.
fn with_adapters(name: &str) -> Vec<(Bert, Io)> {
    let devices = peft_core::device::cpu_devices().into_iter();
    let models = devices.map(|(_, device)| {
        let base = Bert::load(BERT, &device).unwrap();
        let model = ["a", "b"].iter().fold(base, |model, adapter| {
            model
                .load_adapter(adapter, case(name).join(adapter), METHODS)
                .unwrap()
        });
        (model, Io::of(&case(name)))
    });
    models.collect()
}

/// AdapterHub's mean of an adapter with itself is half of that adapter; ours is the adapter.
#[test]
fn an_average_is_a_mean() {
    for (model, io) in with_adapters("composition_average") {
        let again = case("composition_average").join("a");
        let model = model.load_adapter("again", again, METHODS).unwrap();
        let mean = Composition::average([("a", 0.6), ("again", 1.4)]);
        let mean = io.run(&model.set_composition(&mean).unwrap());
        let alone = io.run(&model.activate(&["a"]).unwrap());
        let distance = farthest(mean.iter::<f32>(), alone.iter::<f32>());
        assert!(distance < 1e-5, "{distance}");
    }
}

#[test]
fn fused_adapters_compute_what_upstream_computes() {
    for (model, io) in with_adapters("composition_fuse") {
        let folder = case("composition_fuse").join("fusion");
        let fused = model.load_adapter("fusion", &folder, METHODS).unwrap();
        io.check("fusion", &fused);
        // Only the fusion is trained, and counted: 3 d² + 2 d at each of two sites.
        assert_eq!(fused.counts().trainable, 2 * (3 * 32 * 32 + 2 * 32));
        // Written and read again.
        let dir = tempfile::tempdir().unwrap();
        fused.save_adapter("fusion", dir.path()).unwrap();
        let again = model.load_adapter("again", dir.path(), METHODS).unwrap();
        io.check("the fusion, read again", &again);
        same_folder(&folder.join("adapter.safetensors"), dir.path());
    }
}

/// The names of AdapterHub's files, its keys and its fields.
fn same_folder(theirs: &Path, ours: &Path) {
    let keys = |path: &Path, name: &str| -> BTreeSet<String> {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let names = file.names().into_iter();
        names
            .map(|key| key.replace(&format!(".{name}."), ".NAME."))
            .collect()
    };
    let written = keys(&ours.join("model_adapter_fusion.safetensors"), "fusion");
    assert_eq!(written, keys(theirs, "a,b"));
    let read = |path: &Path| -> Value {
        let text = fs::read_to_string(path.join("adapter_fusion_config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let (theirs, ours) = (read(theirs.parent().unwrap()), read(ours));
    for field in ["adapter_names", "config", "hidden_size", "version"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
}

#[test]
fn a_fusion_needs_its_adapters() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let base = Bert::load(BERT, &device).unwrap();
    let folder = case("composition_fuse").join("fusion");
    let error = base.load_adapter("fusion", &folder, METHODS).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("adapter_names") && error.contains("\"a\""),
        "{error}"
    );
    assert!(base.adapters().is_empty());
}

/// Names of the cases in a folder that begin so.
fn names(folder: &Path, begin: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(begin)).collect();
    names.sort();
    names
}

/// Stacks in averages, averages in rows, rows in tokens, fusions of stacks, … as upstream nests them.
#[test]
fn nested_compositions_compute_what_upstream_computes() {
    let (additive, lora) = (
        case("nested"),
        Path::new("../peft-reparameterization/tests/golden/adapterhub").to_path_buf(),
    );
    for (folder, begin, methods, count) in [
        (&additive, "nested_bn_", METHODS, 19),
        (&additive, "nested_ia3_", METHODS, 5),
        (&lora, "nested_lora_", peft_reparameterization::METHODS, 4),
    ] {
        let found = names(folder, begin);
        assert_eq!(found.len(), count, "{begin}");
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        peft_parity::golden::check(Path::new(BERT), folder, &found, methods);
    }
}

/// Rows with a stack have what the stack gives alone. Upstream applies the residual and the norm in front of each adapter of
/// a stack once more where it is inside another composition.
#[test]
fn a_stack_is_the_same_inside_of_rows() {
    for (model, io) in with_adapters("composition_stack") {
        let stack = Nested::stack(["a", "b"]);
        let rows = Nested::batch_split([(stack.clone(), 2), ("a".into(), 1)]);
        let nested = Composition::Nested(rows);
        let found = io.run(&model.set_composition(&nested).unwrap());
        let alone = io.run(&model.set_composition(&Composition::Nested(stack)).unwrap());
        io.check(
            "the stack as a tree",
            &model
                .set_composition(&Composition::Stack(vec!["a".into(), "b".into()]))
                .unwrap(),
        );
        let numbers = |data: &TensorData| data.iter::<f32>().collect::<Vec<f32>>();
        let (found, alone) = (numbers(&found), numbers(&alone));
        let two = 2 * found.len() / 3;
        let distance = farthest(found[..two].iter().copied(), alone[..two].iter().copied());
        assert!(distance < 1e-5, "{distance}");
        let distance = farthest(alone, io.output.iter::<f32>());
        assert!(distance < 1e-5, "{distance}");
    }
}
