use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    with_special: Vec<u32>,
    decoded: String,
    decoded_with_special: String,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate")
}

/// A copy of the golden model's folder without its weights, some files replaced; none removes one.
fn folder(files: &[(&str, Option<&str>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(golden().join("model").join(name), dir.path().join(name)).unwrap();
    }
    for (name, text) in files {
        match text {
            Some(text) => std::fs::write(dir.path().join(name), text).unwrap(),
            None => std::fs::remove_file(dir.path().join(name)).unwrap(),
        }
    }
    dir
}

fn load(files: &[(&str, Option<&str>)]) -> Result<LlamaTokenizer, LoadError> {
    LlamaTokenizer::load(folder(files).path())
}

#[test]
fn ids_and_texts_are_upstreams() {
    let tokenizer = load(&[]).unwrap();
    let text = std::fs::read(golden().join("tokens.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
    assert!(cases.len() >= 4);
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids);
        for id in &case.ids {
            let token = tokenizer.id_to_token(*id).unwrap();
            assert!(!token.is_empty(), "{id}");
        }
        let ids = tokenizer.encode(&case.text, true).unwrap();
        assert_eq!(ids, case.with_special);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), case.decoded);
        let whole = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(whole, case.decoded_with_special);
    }
}

#[test]
fn tokens_that_begin_and_end_texts_come_from_the_first_file_that_has_them() {
    let tokenizer = load(&[]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[2][..]));
    assert_eq!(tokenizer.vocab_size(), 324);

    let tokenizer = load(&[("generation_config.json", None)]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[1][..]));

    let config = Some(r#"{"vocab_size": 320, "eos_token_id": null}"#);
    let bare = [("generation_config.json", None), ("config.json", config)];
    let tokenizer = load(&bare).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[2][..]));

    let [generation, config] = bare;
    let none = ("tokenizer_config.json", None);
    let tokenizer = load(&[generation, config, none]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, &[][..]));
    assert!(tokenizer.chat_template().is_none());
}

#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    // A model without the last tokens: texts that hold one are refused, others are read.
    let small = ("config.json", Some(r#"{"vocab_size": 300}"#));
    let whole = load(&[]).unwrap();
    let small = load(&[small]).unwrap();
    let ids = |text: &str| whole.encode(text, false).unwrap();
    let texts = ["the mat", "the keeper", "we train"];
    let lacking = (texts.into_iter()).find(|text| ids(text).iter().any(|id| *id >= 300));
    let lacking = lacking.unwrap();
    let beyond = ids(lacking).into_iter().find(|id| *id >= 300).unwrap();
    let error = small.encode(lacking, true).unwrap_err().to_string();
    assert!(
        error.contains(&format!("id {beyond}")) && error.contains("tokenizer.json"),
        "{error}"
    );
    let fine = "\u{1}\u{2}";
    assert_eq!(
        small.encode(fine, true).unwrap(),
        whole.encode(fine, true).unwrap()
    );
    // What begins or ends texts must be there.
    let far = Some(r#"{"vocab_size": 320, "eos_token_id": [2, 400]}"#);
    let files = [("generation_config.json", None), ("config.json", far)];
    let error = load(&files).unwrap_err().to_string();
    assert!(error.contains("`eos_token_id` has id 400"), "{error}");

    let tokenizer = load(&[]).unwrap();
    assert_eq!(tokenizer.decode(&[323, 260], true).unwrap(), "the");
    let error = tokenizer.decode(&[260, 324], true).unwrap_err().to_string();
    assert!(error.contains("324") && error.contains("below"), "{error}");
}

#[test]
fn damaged_folders_are_refused() {
    for (name, text, part) in [
        ("tokenizer.json", Some("{}"), "tokenizer.json"),
        ("tokenizer.json", None, "cannot read"),
        ("config.json", Some("{}"), "`vocab_size` is missing"),
        (
            "generation_config.json",
            Some("["),
            "generation_config.json",
        ),
        ("tokenizer_config.json", Some("3"), "tokenizer_config.json"),
    ] {
        let error = load(&[(name, text)]).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[test]
fn chats_have_the_special_tokens_of_their_file() {
    let tokenizer = load(&[]).unwrap();
    let chat = [
        Message::system("we train"),
        Message::user(" the cat "),
        Message::assistant("sat"),
    ];
    let start = "<|begin|><|start|>system\nwe train<|end|>\n<|start|>user\nthe cat<|end|>\n";
    let reply = "<|start|>assistant\n";
    assert_eq!(
        tokenizer.chat(&chat[..2]).unwrap(),
        format!("{start}{reply}")
    );
    let whole = tokenizer.apply_chat_template(&chat, false).unwrap();
    assert_eq!(whole, format!("{start}{reply}sat<|end|>\n"));
    assert!(tokenizer.begins_with_bos(&whole) && !tokenizer.begins_with_bos("the"));

    // A token that the file says is none is not defined; without a file the ids count.
    let template = "{{ bos_token }}|{{ eos_token }}";
    let files = [
        ("chat_template.jinja", Some(template)),
        ("tokenizer_config.json", Some(r#"{"bos_token": null}"#)),
    ];
    assert_eq!(load(&files).unwrap().chat(&chat).unwrap(), "|");
    let files = [files[0], ("tokenizer_config.json", None)];
    let tokenizer = load(&files).unwrap();
    assert_eq!(tokenizer.chat_template(), Some(template));
    assert_eq!(tokenizer.chat(&chat).unwrap(), "<|begin|>|<|end|>");
}

#[test]
fn of_several_templates_the_default_is_taken() {
    let several = r#"{"chat_template": [{"name": "tool_use", "template": "a"},
        {"name": "default", "template": "b"}]}"#;
    let tokenizer = load(&[("tokenizer_config.json", Some(several))]).unwrap();
    assert_eq!(tokenizer.chat(&[]).unwrap(), "b");
}

#[test]
fn chats_that_cannot_be_rendered_are_errors() {
    let none = load(&[("tokenizer_config.json", Some("{}"))]).unwrap();
    let error = none.chat(&[Message::user("a")]).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    let refusing = "{{ raise_exception('only users speak here') }}";
    let refusing = load(&[("chat_template.jinja", Some(refusing))]).unwrap();
    let error = refusing.chat(&[]).unwrap_err().to_string();
    assert!(error.contains("only users speak here"), "{error}");
}
