use serde::Deserialize;

use super::super::metadata::{Kind, Number, Value as Found};
use super::super::tests::{golden, smollm2};
use super::*;

/// A text and its ids, as `make_gguf.py` finds them without this library's tokenizers.
#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

/// Cases by the kind of tokenizer.
fn cases(kind: &str) -> Vec<Case> {
    let bytes = std::fs::read(golden("tokens.json")).unwrap();
    let mut all: HashMap<String, Vec<Case>> = serde_json::from_slice(&bytes).unwrap();
    all.remove(kind).unwrap()
}

fn open(name: &str) -> Gguf {
    Gguf::open(golden(name)).unwrap()
}

fn set(gguf: &mut Gguf, key: &str, value: Found) {
    let key = format!("tokenizer.ggml.{key}");
    gguf.metadata.insert(key, value);
}

fn flag(value: bool) -> Found {
    Found::Number(Number::Bool(value))
}

fn text(value: &str) -> Found {
    Found::Text(value.to_string())
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
    let encoding = tokenizer.encode_fast(text, special).unwrap();
    encoding.get_ids().to_vec()
}

fn check(tokenizer: &Tokenizer, kind: &str) {
    let cases = cases(kind);
    assert!(!cases.is_empty());
    for Case {
        text,
        ids: expected,
    } in cases
    {
        assert_eq!(ids(tokenizer, &text, false), expected, "{kind}: {text:?}");
        let decoded = tokenizer.decode(&expected, false).unwrap();
        assert_eq!(decoded, text, "{kind}");
    }
}

#[test]
fn words_are_split_as_the_name_says() {
    let mut gguf = open("types.gguf");
    for kind in ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "default"] {
        set(&mut gguf, "pre", text(kind));
        check(&tokenizer(&gguf).unwrap(), kind);
    }
    gguf.metadata.remove("tokenizer.ggml.pre");
    check(&tokenizer(&gguf).unwrap(), "default");
}

#[test]
fn pieces_are_those_of_sentence_piece() {
    let gguf = open("spm.gguf");
    let tokenizer = tokenizer(&gguf).unwrap();
    check(&tokenizer, "llama");
    let cases = cases("llama");
    let case = &cases[0];
    let with_bos = [[1].as_slice(), case.ids.as_slice()].concat();
    assert_eq!(ids(&tokenizer, &case.text, true), with_bos);
}

#[test]
fn tokens_are_put_around_texts_where_the_header_asks() {
    let mut gguf = open("types.gguf");
    let plain = ids(&tokenizer(&gguf).unwrap(), "the end", false);
    // `add_bos_token` is false in the file.
    assert_eq!(ids(&tokenizer(&gguf).unwrap(), "the end", true), plain);
    gguf.metadata.remove("tokenizer.ggml.add_bos_token");
    assert_eq!(ids(&tokenizer(&gguf).unwrap(), "the end", true), plain);
    set(&mut gguf, "pre", text("llama-bpe"));
    let with_bos = [[1].as_slice(), plain.as_slice()].concat();
    assert_eq!(ids(&tokenizer(&gguf).unwrap(), "the end", true), with_bos);
    set(&mut gguf, "add_eos_token", flag(true));
    let with_both = [[1].as_slice(), plain.as_slice(), [2].as_slice()].concat();
    assert_eq!(ids(&tokenizer(&gguf).unwrap(), "the end", true), with_both);
}

#[test]
fn control_tokens_are_special_and_user_defined_ones_are_not() {
    let tokenizer = tokenizer(&open("types.gguf")).unwrap();
    let user = tokenizer.token_to_id("<tool>").unwrap();
    let found = ids(&tokenizer, "<|im_start|>the<tool>", false);
    assert_eq!((found[0], *found.last().unwrap()), (1, user));
    assert_eq!(tokenizer.decode(&found, true).unwrap(), "the<tool>");
    assert_eq!(
        tokenizer.decode(&found, false).unwrap(),
        "<|im_start|>the<tool>"
    );
}

#[test]
fn tokenizers_that_are_not_read() {
    let ints = |values: &[i32]| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Found::Numbers(Kind::I32, bytes.collect())
    };
    let texts = |values: &[&str]| Found::Texts(values.iter().map(|s| (*s).to_string()).collect());
    for (file, key, value, parts) in [
        ("types.gguf", "model", text("bert"), ["`bert`", "`gpt2`"]),
        (
            "types.gguf",
            "pre",
            text("viking"),
            ["`viking`", "`smollm`"],
        ),
        (
            "types.gguf",
            "tokens",
            text("a"),
            ["\"a\"", "array of texts"],
        ),
        (
            "types.gguf",
            "tokens",
            texts(&["a", "b", "a"]),
            ["`a` twice", "0 and 2"],
        ),
        (
            "types.gguf",
            "token_type",
            ints(&[1]),
            ["token_type", "1 entries"],
        ),
        ("types.gguf", "merges", texts(&["ab"]), ["`ab`", "space"]),
        (
            "types.gguf",
            "merges",
            texts(&["nowhere here"]),
            ["types.gguf", "nowhere"],
        ),
        (
            "spm.gguf",
            "scores",
            ints(&[1]),
            ["scores", "floating-point"],
        ),
        (
            "spm.gguf",
            "bos_token_id",
            Found::Number(Number::Int(1 << 20)),
            ["bos_token_id", "1048576"],
        ),
    ] {
        let mut gguf = open(file);
        set(&mut gguf, key, value);
        let refusal = tokenizer(&gguf).unwrap_err().to_string();
        for part in parts {
            assert!(refusal.contains(part), "`{part}` is not in: {refusal}");
        }
    }
    let mut gguf = open("types.gguf");
    set(&mut gguf, "add_bos_token", flag(true));
    gguf.metadata.remove("tokenizer.ggml.bos_token_id");
    let refusal = tokenizer(&gguf).unwrap_err().to_string();
    assert!(refusal.contains("lacks `tokenizer.ggml.bos_token_id`"));
}

#[test]
fn the_published_tokenizer_splits_as_published() {
    let Some(gguf) = smollm2() else { return };
    let tokenizer = tokenizer(&gguf).unwrap();
    // Ids of upstream's tokenizer. They begin with <|im_start|> where a BOS is asked for, which
    // this file does not do.
    for (text, expected) in [
        (
            "Once upon a time, a little girl named Emma",
            [6403, 1980, 253, 655, 28, 253, 1838, 8180, 3365, 20391].as_slice(),
        ),
        (
            "The capital of France is",
            [504, 3575, 282, 4649, 314].as_slice(),
        ),
        ("<|im_start|>", [1].as_slice()),
    ] {
        assert_eq!(ids(&tokenizer, text, true), expected);
        assert_eq!(tokenizer.decode(expected, false).unwrap(), text);
    }
}
