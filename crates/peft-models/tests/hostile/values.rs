//! What somebody might put into a JSON file.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

/// Parts of a `tokenizer.json`: those that the crate `tokenizers` has panicked on, while it read them
/// or at the first text, and some that are only odd.
pub(crate) fn parts() -> Vec<Value> {
    let template = |ids: Value| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}],
            "pair": [], "special_tokens": ids})
    };
    vec![
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}),
        json!({"type": "Precompiled", "precompiled_charsmap": [1]}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "xyz"}),
        json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "\u{0}"}),
        json!({"type": "Prepend", "prepend": "x".repeat(256)}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Strip"}]}),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "FixedLength", "length": u64::MAX}),
        json!({"type": "Split", "pattern": {"Regex": "(?=(x+x+)+y)"}, "behavior": "Isolated",
            "invert": true}),
        json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Contiguous", "invert": false}),
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"}),
        template(json!({})),
        template(json!({"a": {"id": "a", "ids": [400], "tokens": ["a"]}})),
        template(json!({"a": {"id": "a", "ids": [1, 2], "tokens": []}})),
        json!({"type": "RobertaProcessing", "sep": ["x", u32::MAX], "cls": ["y", 0],
            "trim_offsets": true, "add_prefix_space": true}),
        json!({"type": "BPEDecoder", "suffix": ""}),
        json!({"type": "Strip", "content": "a", "start": 1_u64 << 40, "stop": 1_u64 << 40}),
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]],
            "continuing_subword_prefix": "####"}),
        json!({"type": "BPE", "vocab": {"a": u32::MAX}, "merges": [], "dropout": 0.5}),
        json!({"type": "BPE", "vocab": {}, "merges": [], "unk_token": "?", "byte_fallback": true}),
        json!({"type": "Unigram", "vocab": [["a", -1e308], ["", 1.0]], "unk_id": 1}),
        json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?", "max_input_chars_per_word": 0,
            "continuing_subword_prefix": ""}),
        json!({"type": "WordLevel", "vocab": {"a": 7}, "unk_token": "?"}),
    ]
}

/// Values of any field.
pub(crate) fn hostile() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => select(vec![Value::Null, json!(true), json!(false), json!([]), json!({})]),
        3 => (-3_i64..70).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        3 => super::bytes::extreme().prop_map(Value::from),
        2 => select(vec![1e308, -1e308, 5e-324, -0.0, 0.5, 1e10]).prop_map(Value::from),
        3 => select(vec![
            "", "a", "(a+)+$", "((((((((((", "(.*)*(.*)*x", "\u{0}", "\u{2581}", "F16", "I64", "F4",
            "llama", "qwen2", "linear", "llama3", "factors", "../x", "/etc/passwd", "config.json",
            "{{ ", "{{ messages * 3 }}", "{% for a in messages %}{{ a.b.c }}{% endfor %}",
        ])
        .prop_map(Value::from),
        1 => Just(Value::from("x".repeat(256))),
        1 => select(vec![
            json!([1, [2, [3, {"a": []}]]]),
            json!(["a", "b"]),
            json!([0, 1_u64 << 63]),
            json!({"type": "Sequence"}),
            json!({"content": -1, "id": 1e300}),
            json!({"rope_type": "llama3", "factor": 5e-324, "low_freq_factor": 1, "high_freq_factor": 1,
                "original_max_position_embeddings": 1e308}),
            json!({"rope_type": "factors", "factors": [1e308, 5e-324]}),
        ]),
        1 => select(parts()),
    ]
}

/// Keys of an object, in the file's order.
pub(crate) fn keys(map: &Map<String, Value>) -> Vec<String> {
    map.keys().cloned().collect()
}

/// Where one gets from the top by going to a member of the object or list at each step; a JSON
/// pointer. It ends where there is nothing below.
pub(crate) fn pointer(json: &Value, steps: &[Index]) -> String {
    let (mut value, mut pointer) = (json, String::new());
    for step in steps {
        let (key, inner) = match value {
            Value::Object(map) if !map.is_empty() => {
                let (key, inner) = map.iter().nth(step.index(map.len())).unwrap();
                (key.replace('~', "~0").replace('/', "~1"), inner)
            }
            Value::Array(list) if !list.is_empty() => {
                let at = step.index(list.len());
                (at.to_string(), &list[at])
            }
            _ => break,
        };
        pointer = format!("{pointer}/{key}");
        value = inner;
    }
    pointer
}

/// The text of an object in which a key is there twice, at first with `value`.
#[allow(clippy::trivially_copy_pass_by_ref)] // As proptest hands them out.
pub(crate) fn twice(map: &Map<String, Value>, at: &Index, value: &Value) -> String {
    let text = Value::Object(map.clone()).to_string();
    if map.is_empty() {
        return text;
    }
    let key = Value::from(at.get(&keys(map)).clone());
    text.replacen('{', &format!("{{{key}:{value},"), 1)
}
