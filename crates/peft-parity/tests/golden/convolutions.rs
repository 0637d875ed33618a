//! Methods on convolutions, and norms with running statistics, against Hugging Face PEFT 0.21.2.

use std::path::Path;

use peft_core::PeftModule;
use peft_core::checkpoint::MODEL_FILE;
use peft_parity::golden;
use safetensors::SafeTensors;

use crate::CNN;

const REPARAMETERIZATION: &str = "../peft-reparameterization/tests/golden/cnn";

#[test]
fn kernels_are_changed_as_upstream_changes_them() {
    let names = [
        // Of groups: A sees all channels, and B has the groups.
        "dora_grouped",
        "loha_effective",
        "lokr_both",
        "hra_gs",
        "boft",
        // Merged upstream is right, and its unmerged output is not.
        "oft_kernel3",
        "lora_modules_to_save",
    ];
    let cases = Path::new(REPARAMETERIZATION);
    golden::check(
        Path::new(CNN),
        cases,
        &names,
        peft_reparameterization::METHODS,
    );
    let cases = Path::new("../peft-additive/tests/golden/cnn");
    golden::check(Path::new(CNN), cases, &["ia3"], peft_additive::METHODS);
}

#[test]
fn norms_over_batches_are_trained_as_upstream_trains_them() {
    let cases = Path::new("../peft-selective/tests/golden/cnn");
    golden::check(
        Path::new(CNN),
        cases,
        &["ln_tuning"],
        peft_selective::METHODS,
    );
}

/// Keys, shapes and bytes of a file, sorted.
fn tensors(dir: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(dir.join(MODEL_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(key, view)| (key.to_string(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

#[test]
fn what_was_read_is_written_as_upstream_wrote_it() {
    let methods = peft::methods();
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = golden::Cnn::load(Path::new(CNN), device).unwrap();
    for (family, names) in [
        (
            "reparameterization",
            &["dora_grouped", "loha_effective", "lokr_both", "boft"][..],
        ),
        ("reparameterization", &["lora_modules_to_save"]),
        ("additive", &["ia3"]),
        ("selective", &["ln_tuning"]),
    ] {
        for name in names {
            let case = format!("../peft-{family}/tests/golden/cnn/{name}");
            let case = Path::new(&case);
            let model = base.load_adapter("a", case, &methods).unwrap();
            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("a", dir.path()).unwrap();
            assert_eq!(tensors(dir.path()), tensors(case), "{name}");
        }
    }
}

#[test]
fn statistics_of_another_model_are_refused() {
    let methods = peft::methods();
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = golden::Cnn::load(Path::new(CNN), device).unwrap();
    let case = Path::new("../peft-selective/tests/golden/cnn/ln_tuning");
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", MODEL_FILE] {
        std::fs::copy(case.join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join(MODEL_FILE);
    let mut tensors = peft_core::checkpoint::read_tensors(&path).unwrap();
    let key = "base_model.model.norm_stem.ln_tuning_layers.running_var";
    let other = tensors["base_model.model.norm_stem.ln_tuning_layers.weight"].clone();
    tensors.insert(key.into(), other);
    peft_core::checkpoint::write_tensors(&path, &tensors).unwrap();
    let refused = base
        .load_adapter("a", dir.path(), &methods)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains(key) && refused.contains("the model first"),
        "{refused}"
    );
    // A file without them says all that is trained.
    tensors.retain(|key, _| !key.contains("running_") && !key.contains("num_batches"));
    peft_core::checkpoint::write_tensors(&path, &tensors).unwrap();
    base.load_adapter("a", dir.path(), &methods).unwrap();
}

#[test]
fn what_lora_adds_to_groups_is_not_merged() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = golden::Cnn::load(Path::new(CNN), device).unwrap();
    let config = peft_reparameterization::LoraConfig::new(4).with_targets(["grouped"]);
    let model = base.attach("a", &config).unwrap();
    let refused = model.merge_adapters().unwrap_err();
    assert!(
        matches!(refused, peft_core::Error::Unmergeable { .. }),
        "{refused}"
    );
    let odd = peft_reparameterization::LoraConfig::new(3).with_targets(["grouped"]);
    let refused = base.attach("a", &odd).unwrap_err().to_string();
    assert!(refused.contains("a multiple of 2"), "{refused}");
}
