//! Hostile files of which it is known what would go wrong.

use std::fs;
use std::time::Instant;

use peft_models::{Llama, LlamaTokenizer, Message};
use serde_json::{Map, Value, json};

use super::folder::{CONFIG, Folder, INDEX, TOKENIZER, WEIGHTS};
use super::tensors::with_header;
use super::{BASE, LIMIT, MODEL, device, load};

/// Why a folder's model is not loaded.
fn refusal(folder: &Folder) -> String {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let start = Instant::now();
    let refused = Llama::load(dir.path(), &device()).map(|_| ()).unwrap_err();
    assert!(start.elapsed() < LIMIT);
    refused.to_string()
}

fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in: {text}");
}

#[test]
fn sizes_in_a_configuration_cost_nothing() {
    let huge = 1_u64 << 32;
    for (fields, says) in [
        (vec![("vocab_size", huge), ("hidden_size", huge)], CONFIG),
        (vec![("intermediate_size", huge)], CONFIG),
        (
            vec![("num_attention_heads", huge), ("head_dim", huge)],
            CONFIG,
        ),
        (
            vec![("num_attention_heads", 1 << 31), ("head_dim", huge)],
            CONFIG,
        ),
        (vec![("hidden_size", u64::MAX)], "hidden_size"),
        (vec![("num_hidden_layers", 1024)], "lacks"),
        (vec![("num_hidden_layers", 1025)], "num_hidden_layers"),
    ] {
        let mut folder = Folder::golden(BASE);
        folder.edit(CONFIG, |json| {
            for (field, value) in &fields {
                json[*field] = Value::from(*value);
            }
        });
        assert_contains(&refusal(&folder), says);
    }
    // Positions are no parameters: nothing is computed before there is a text.
    let mut folder = Folder::golden(BASE);
    folder.edit(CONFIG, |json| {
        json["max_position_embeddings"] = (huge / 2).into();
    });
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    assert_eq!(load(dir.path()), (true, false));
}

#[test]
fn sizes_in_a_file_of_weights_cost_nothing() {
    let entry = |dtype: &str, shape: Value, from: u64, to: u64| {
        let places = [from, to];
        json!({"dtype": dtype, "shape": shape, "data_offsets": places})
    };
    // The most bytes whose bits can be counted. Eight tensors of them end 8 bytes before 2^64.
    let most = (1_u64 << 61) - 1;
    let many: Map<String, Value> = (0..8)
        .map(|place| {
            let entry = entry("U8", json!([most]), place * most, (place + 1) * most);
            (format!("t{place}"), entry)
        })
        .collect();
    for header in [
        json!({"a": entry("F32", json!([1_u64 << 28]), 0, 1 << 30)}),
        json!({"a": entry("F32", json!([1_u64 << 62, 1_u64 << 62]), 0, 4)}),
        json!({"a": entry("F32", json!([0, u64::MAX]), 0, 0)}),
        json!({"a": entry("F32", json!([1]), 0, 4), "b": entry("F32", json!([1]), 0, 4)}),
        Value::Object(many),
    ] {
        let mut folder = Folder::golden(BASE);
        folder.set(WEIGHTS, with_header(&header.to_string(), &[0; 64]));
        assert_contains(&refusal(&folder), WEIGHTS);
    }
}

#[test]
fn files_elsewhere_are_not_read() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("model");
    fs::create_dir_all(inner.join("sub")).unwrap();
    let base = Folder::golden(BASE);
    let weights = base.file(WEIGHTS);
    for dir in [outer.path(), &inner, &inner.join("sub")] {
        fs::write(dir.join("weights.safetensors"), weights).unwrap();
    }
    let absolute = inner.join("weights.safetensors");
    for (name, fine) in [
        ("weights.safetensors", true),
        ("../weights.safetensors", false),
        ("sub/weights.safetensors", false),
        ("./weights.safetensors", false),
        ("weights.safetensors/", false),
        (absolute.to_str().unwrap(), false),
        ("..", false),
        (".", false),
        ("", false),
    ] {
        let mut folder = base.sharded();
        folder.edit(INDEX, |json| {
            json["weight_map"] = json!({"model.norm.weight": name});
        });
        folder.write(&inner);
        let loaded = Llama::load(&inner, &device());
        match loaded {
            Ok(_) => assert!(fine, "`{name}` was read"),
            Err(error) => {
                assert!(!fine, "{error}");
                assert_contains(&error.to_string(), "not a file name");
            }
        }
    }
}

/// A tokenizer whose file was changed, and what it says: while it is read, of a text, or of ids.
fn tokenizer_says(change: impl FnOnce(&mut Value)) -> String {
    let mut folder = Folder::golden(MODEL);
    folder.edit(TOKENIZER, change);
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let tokenizer = match LlamaTokenizer::load(dir.path()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return error.to_string(),
    };
    let text = tokenizer
        .encode("a a", false)
        .and_then(|ids| tokenizer.decode(&ids, false));
    text.unwrap_err().to_string()
}

#[test]
fn what_the_tokenizers_crate_panics_on_is_an_error() {
    let template = |tokens: Value| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}],
            "pair": [], "special_tokens": tokens})
    };
    for (section, part, says) in [
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "precompiled_charsmap",
        ),
        (
            // 3,346,056,388 bytes are declared, of which the crate would make twice as many.
            "normalizer",
            json!({"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": "xMRwx0FB"}]}),
            "declares a trie",
        ),
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "chunk size",
        ),
        ("post_processor", template(json!({})), TOKENIZER),
        (
            "post_processor",
            template(json!({"a": {"id": "a", "ids": [400], "tokens": ["a"]}})),
            "id 400",
        ),
        (
            "decoder",
            json!({"type": "Strip", "content": "a", "start": 1_u64 << 40, "stop": 1_u64 << 40}),
            TOKENIZER,
        ),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]],
                "continuing_subword_prefix": "####"}),
            TOKENIZER,
        ),
    ] {
        let said = tokenizer_says(|json| json[section] = part);
        assert_contains(&said, says);
        assert_contains(&said, TOKENIZER);
    }
}

#[test]
fn a_tokenizer_that_is_cut_off_or_deep_is_an_error() {
    let deep = |depth: usize| {
        format!(
            r#"{{"decoder": {}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        )
    };
    for text in [
        r#"{"version": "1.0", "decoder": {"type": "#.to_string(),
        deep(100),
        deep(50_000),
    ] {
        let mut folder = Folder::golden(MODEL);
        folder.set(TOKENIZER, text);
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        let refused = LlamaTokenizer::load(dir.path()).unwrap_err();
        assert_contains(&refused.to_string(), TOKENIZER);
    }
}

#[test]
fn a_chat_template_that_cannot_be_run_is_an_error() {
    for template in [
        "{{ 'a\\nb' | indent(18446744073709551615) }}".to_string(),
        "{{ range(1000000) }}".to_string(),
        "{{ 'x' * 100000000000 }}".to_string(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_string(),
        format!("{{{{ {}1 }}}}", "(".repeat(10_000)),
        "{% for message in messages %}".to_string(),
        "{{ messages[0].content.nothing.at_all }}".to_string(),
        "{{ 1 // 0 }}".to_string(),
    ] {
        let mut folder = Folder::golden(MODEL);
        folder.set("chat_template.jinja", template.clone());
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        let tokenizer = LlamaTokenizer::load(dir.path()).unwrap();
        let start = Instant::now();
        let rendered = tokenizer.chat(&[Message::user("Hi")]);
        assert!(rendered.is_err(), "{template:.60}: {rendered:?}");
        assert!(start.elapsed() < LIMIT, "{template:.60}");
    }
}
