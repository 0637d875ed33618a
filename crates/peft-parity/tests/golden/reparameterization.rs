//! LoRA against Hugging Face PEFT 0.21.2: its checkpoints, outputs, merged outputs, gradients.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use peft_core::PeftModule;
use peft_models::{Bert, Llama};
use peft_parity::golden;
use peft_reparameterization::METHODS;

use crate::{BERT, LLAMA, LLAMA_TIED};

const CASES: &str = "../peft-reparameterization/tests/golden";
const BERT_MORE: &str = "../peft-additive/tests/golden/bert_more/base";

#[test]
fn checkpoints_compute_what_upstream_computes() {
    golden::check(
        Path::new(BERT),
        Path::new(CASES),
        &[
            "lora",
            "lora_all_linear",
            "lora_rslora",
            "lora_patterns",
            "lora_regex_layers",
            "lora_layers_to_transform",
            "lora_exclude",
            "lora_embedding",
            "lora_bias_all",
            "lora_bias_lora_only",
            "lora_modules_to_save",
            "lora_dora",
            "lora_bias",
            "lora_pissa",
            "lora_token_rows",
            "lora_token_rows_named",
            "vera",
            "randlora",
            "vblora",
            "oft",
            "oft_exact",
            "oft_coft_share",
            "boft",
            "boft_butterfly",
            "c3a",
            "c3a_patterns",
            "fourierft",
            "fourierft_patterns",
            "adalora",
            "adalora_rank_pattern",
            "hira",
            "hira_patterns_embedding",
            "loha",
            "loha_patterns",
            "lokr",
            "lokr_both",
            "lokr_patterns",
            "hra",
            "hra_all",
            "hra_gs",
            "miss",
            "miss_remainder",
            "miss_mini",
            "miss_bat",
        ],
        METHODS,
    );
}

/// Grouped queries, layers without biases, and embeddings that are the head as well.
#[test]
fn checkpoints_of_a_llama_compute_what_upstream_computes() {
    golden::check(
        Path::new(LLAMA),
        &Path::new(CASES).join("llama"),
        &[
            "lora",
            "lora_all_linear",
            "lora_rslora",
            "lora_patterns",
            "lora_regex_layers",
            "lora_layers_to_transform",
            "lora_exclude",
            "lora_pissa",
            "lora_bias",
            // Merged, it must be what it is unmerged, which upstream's is not.
            "lora_embedding",
            "lora_dora",
            "lora_trainable_tokens",
            "adalora",
            "boft",
            "c3a",
            "fourierft",
            "hra",
            "loha",
            "lokr",
            "lokr_both",
            "miss",
            "oft",
            "randlora",
            "vblora",
            "vera",
        ],
        METHODS,
    );
}

/// Heads that are the table: adapted, saved beside it, and kept equal to it (`ensure_weight_tying`).
#[test]
fn checkpoints_of_tied_heads_compute_what_upstream_computes() {
    let cases = &Path::new(CASES).join("llama_tied");
    golden::check(
        &cases.join("base"),
        cases,
        &[
            "lora_tied_head",
            "lora_saved_both",
            "lora_saved_norm",
            "lora_weight_tying_saved",
            "lora_weight_tying_targets",
            "lora_weight_tying_tokens",
            "lora_dora_embedding",
        ],
        METHODS,
    );
}

/// Scales and changes of weights, biases that are made of the weight, and layers without a bias.
#[test]
fn generalized_lora_computes_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let names = [
        "glora_constant_none_none",
        "glora_lora_lora_vector",
        "glora_lora_none_none",
        "glora_none_lora_constant",
        "glora_vector_vector_constant",
    ];
    golden::check(Path::new(BERT_MORE), &cases, &names, METHODS);
    let cases = Path::new(CASES).join("llama_tied");
    let names = ["glora_lora_lora_vector", "glora_vector_vector_constant"];
    golden::check(Path::new(LLAMA_TIED), &cases, &names, METHODS);
}

/// Upstream writes zeros for parts that a layer does not have. Other numbers there would change its outputs.
#[test]
fn parts_that_are_not_there_are_zero() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let base = Bert::load(BERT_MORE, device).unwrap();
    let case = Path::new(CASES).join("bert_more/glora_lora_none_none");
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(case.join(file), dir.path().join(file)).unwrap();
    }
    assert!(base.load_adapter("x", dir.path(), METHODS).is_ok());
    let file = dir.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let key = "base_model.model.encoder.layer.1.attention.self.value.glora_E.zeros";
    let one: Vec<u8> = (0..32).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
    let changed = tensors.tensors().into_iter().map(|(name, view)| {
        if name == key {
            let view = safetensors::tensor::TensorView::new(view.dtype(), vec![32], &one);
            (name, view.unwrap())
        } else {
            (name, view)
        }
    });
    let changed = safetensors::serialize(changed, None).unwrap();
    std::fs::write(&file, changed).unwrap();
    let refused = base.load_adapter("x", dir.path(), METHODS).unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains(key) && refused.contains("zero"),
        "{refused}"
    );
}

/// Rotations of a weight's largest singular directions, which point as upstream's do.
#[test]
fn rotated_directions_compute_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let names = ["psoft", "psoft_free", "psoft_neumann"];
    golden::check(Path::new(BERT_MORE), &cases, &names, METHODS);
    let cases = Path::new(CASES).join("llama_tied");
    let names = ["psoft", "psoft_neumann"];
    golden::check(Path::new(LLAMA_TIED), &cases, &names, METHODS);
}

/// Changes of a weight's smallest singular directions, and of its parts in a basis that layers share.
#[test]
fn parts_of_a_spectrum_compute_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let names = ["osf", "osf_fraction", "frod"];
    golden::check(Path::new(BERT_MORE), &cases, &names, METHODS);
    let cases = Path::new(CASES).join("llama_tied");
    let names = ["osf", "frod"];
    golden::check(Path::new(LLAMA_TIED), &cases, &names, METHODS);
}

/// Groups of outputs, which a file does not name: they are found in the base again.
#[test]
fn groups_of_outputs_compute_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let names = ["adamss", "adamss_dynamic"];
    golden::check(Path::new(BERT_MORE), &cases, &names, METHODS);
    let cases = Path::new(CASES).join("llama_tied");
    golden::check(Path::new(LLAMA_TIED), &cases, &["adamss"], METHODS);
}

/// Upstream converts what such starts train to plain LoRA of twice the rank. Its count is of before.
#[test]
fn what_was_converted_to_plain_lora_is_plain_lora() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new(BERT_MORE);
    let names = [
        "lora_corda_kpm",
        "lora_ga_a2rbr_weight_svd",
        "lora_ga_arb2r_stable",
        "lora_ga_arbr_gd_scale",
        "lora_pissa_converted",
    ];
    golden::check(base, &cases, &names, METHODS);
    let tied = Path::new(CASES).join("llama_tied");
    golden::check(Path::new(LLAMA_TIED), &tied, &["lora_corda_kpm"], METHODS);
    let (_, device) = &peft_core::device::cpu_devices()[0];
    for name in names {
        let measured = golden::measure(base, &cases.join(name), METHODS, device).unwrap();
        assert_eq!(measured.counted, Some(golden::Counted::BeforeConversion));
        assert_eq!(measured.trainable, 2048, "{name}");
    }
    // The rule is for what was converted, and for nothing else.
    let plain = Path::new(CASES).join("lora_pissa");
    let measured = golden::measure(Path::new(BERT), &plain, METHODS, device).unwrap();
    assert_eq!(measured.counted, None);
}

#[test]
fn variants_compute_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new("../peft-additive/tests/golden/bert_more/base");
    let names = [
        "lora_kasa",
        "lora_bd",
        "lora_mica",
        "lora_loftq",
        "lora_loftq_iter3",
    ];
    golden::check(base, &cases, &names, METHODS);
    let tied = Path::new(CASES).join("llama_tied");
    let names = [
        "lora_kasa",
        "lora_bd",
        "lora_alora",
        "lora_velora",
        "lora_monteclora",
    ];
    golden::check(Path::new(LLAMA_TIED), &tied, &names, METHODS);
}

/// The invocation is 7, 9; the second row has none.
#[test]
fn an_alora_acts_on_with_a_cache() {
    let (_, device) = &peft_core::device::cpu_devices()[0];
    let case = Path::new(CASES).join("llama_tied/lora_alora");
    let base = Llama::load(LLAMA_TIED, device).unwrap();
    let model = base.load_adapter("a", &case, METHODS).unwrap();
    let text = [[3_i64, 7, 9, 12, 40, 8, 21], [3, 7, 8, 12, 40, 8, 21]];
    let ids = |from: usize, to: usize| {
        let values: Vec<i64> = text
            .iter()
            .flat_map(|row| &row[from..to])
            .copied()
            .collect();
        Tensor::<2, Int>::from_data(TensorData::new(values, [2, to - from]), device)
    };
    let mut cache = model.cache();
    let mut last = model.next_logits(ids(0, 3), &mut cache);
    for at in 3..7 {
        last = model.next_logits(ids(at, at + 1), &mut cache);
    }
    let whole = |model: &Llama| -> Vec<f32> {
        let logits = model.forward(ids(0, 7), None);
        logits.slice_dim(1, 6..7).into_data().iter().collect()
    };
    let last: Vec<f32> = last.into_data().iter().collect();
    let distance = peft_testing::farthest(last, whole(&model));
    assert!(distance < 1e-4, "{distance}");
    // The row without an invocation has the base's logits, the other one has not.
    let (with, without) = (whole(&model), whole(&base));
    let half = with.len() / 2;
    assert!(peft_testing::farthest(with[..half].to_vec(), without[..half].to_vec()) > 1e-2);
    assert_eq!(with[half..], without[half..]);
}

#[test]
fn chosen_vectors_are_upstreams_without_logits() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new(BERT_MORE);
    golden::check(base, &cases, &["vblora_topk"], METHODS);
    let tied = Path::new(CASES).join("llama_tied");
    golden::check(Path::new(LLAMA_TIED), &tied, &["vblora_topk"], METHODS);

    let (_, device) = &peft_core::device::cpu_devices()[0];
    let case = cases.join("vblora_topk");
    let model = Bert::load(base, device)
        .unwrap()
        .load_adapter("a", &case, METHODS)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("a", dir.path()).unwrap();
    let tensors = |dir: &Path| {
        let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = file
            .iter()
            .map(|(key, view)| (key.to_string(), view.dtype(), view.data().to_vec()))
            .collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    };
    assert_eq!(tensors(dir.path()), tensors(&case));
}

/// Random numbers that a file has, and those that it leaves to a seed.
#[test]
fn fixed_numbers_are_upstreams_in_a_file_or_drawn_again() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new("../peft-additive/tests/golden/bert_more/base");
    golden::check(
        base,
        &cases,
        &[
            "unilora",
            "unilora_seeded",
            "tinylora",
            "tinylora_tied",
            "tinylora_seeded",
            "tinylora_table",
            "pvera",
            "pvera_seeded",
        ],
        METHODS,
    );
    let tied = Path::new(CASES).join("llama_tied");
    let names = ["unilora", "tinylora", "tinylora_tied", "pvera"];
    golden::check(Path::new(LLAMA_TIED), &tied, &names, METHODS);
}

/// Few coefficients and many of each layer, in all and in proportion to its size, and without a transform.
#[test]
fn wavelets_are_upstreams() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new("../peft-additive/tests/golden/bert_more/base");
    let names = [
        "waveft_db1",
        "waveft_sym3",
        "waveft_no_idwt",
        "waveft_coif2",
        "waveft_db4",
    ];
    golden::check(base, &cases, &names, METHODS);
    let tied = Path::new(CASES).join("llama_tied");
    let names = ["waveft_db1", "waveft_sym3"];
    golden::check(Path::new(LLAMA_TIED), &tied, &names, METHODS);
}

#[test]
fn methods_of_blocks_and_of_the_weight_itself_compute_what_upstream_computes() {
    let cases = Path::new(CASES).join("bert_more");
    let base = Path::new("../peft-additive/tests/golden/bert_more/base");
    golden::check(
        base,
        &cases,
        &[
            "gralora_hybrid",
            "delora",
            "deft_relu",
            "deft_para",
            "peanut_deep",
        ],
        METHODS,
    );
    let tied = Path::new(CASES).join("llama_tied");
    golden::check(
        Path::new(LLAMA_TIED),
        &tied,
        &["gralora", "delora", "deft_qr", "peanut"],
        METHODS,
    );
}
