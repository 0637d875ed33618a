//! What is learned has the tokens that it has at inference: with tokenizers of SentencePiece's kind, which put
//! a space in front of every text.

use std::fs;
use std::path::Path;

use peft_models::{LlamaTokenizer, Message};
use peft_train::data::NO_TARGET;
use peft_train::{ChatTemplate, Dataset, Record, TrainConfig};
use serde_json::{Value, json};

const BOS: u32 = 1;
const EOS: u32 = 2;

/// The tokens by their ids; `▁` is a space.
const TOKENS: [&str; 20] = [
    "<unk>", "<s>", "</s>", "▁", "1", "2", "=", "h", "e", "l", "o", "\n", "▁1", "▁2", "▁=", "he",
    "ll", "hell", "hello", "▁hello",
];

/// The id of a token.
fn id(token: &str) -> u32 {
    let place = TOKENS.iter().position(|known| *known == token);
    place.unwrap_or_else(|| panic!("{token}")) as u32
}

/// Writes a tokenizer with the given normalizer and pre-tokenizer, for texts of a few words.
fn written(dir: &Path, normalizer: &Value, pre_tokenizer: &Value) -> LlamaTokenizer {
    let vocabulary: serde_json::Map<String, Value> = TOKENS
        .iter()
        .map(|token| ((*token).to_string(), json!(id(token))))
        .collect();
    let added: Vec<Value> = TOKENS[..3]
        .iter()
        .map(|token| {
            json!({ "id": id(token), "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let part = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, part("A")],
            "pair": [part("A"), part("B")],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [BOS], "tokens": ["<s>"] } },
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary,
            "merges": ["▁ 1", "▁ 2", "▁ =", "h e", "l l", "he ll", "hell o", "▁ hello"],
        },
    });
    // As Mistral's: the reply has its space, and what begins a text is not written out.
    let template = "{% for m in messages %}{% if m['role'] == 'user' %}={{ m['content'] }}={% else %} \
                    {{ m['content'] }}</s>{% endif %}{% endfor %}";
    let texts = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
    let config = json!({ "vocab_size": TOKENS.len(), "bos_token_id": BOS, "eos_token_id": EOS });
    for (name, content) in [
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", texts),
        ("config.json", config),
    ] {
        fs::write(dir.join(name), content.to_string()).unwrap();
    }
    LlamaTokenizer::load(dir).unwrap()
}

/// Llama 2's way, and that of newer files.
fn tokenizers() -> Vec<LlamaTokenizer> {
    let prepend = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ]});
    let first = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    [(prepend, Value::Null), (Value::Null, first)]
        .iter()
        .map(|(normalizer, pre_tokenizer)| {
            let dir = tempfile::tempdir().unwrap();
            written(dir.path(), normalizer, pre_tokenizer)
        })
        .collect()
}

/// Ids and targets of the one row.
fn row(record: Record, tokenizer: &LlamaTokenizer, config: &TrainConfig) -> (Vec<u32>, Vec<i64>) {
    let data = Dataset::new(&[record], tokenizer, config).unwrap();
    assert_eq!(data.len(), 1);
    let batch = data.batch(&[0]);
    (batch.ids, batch.targets)
}

/// The row of these tokens, of which the last `learned` are learned.
fn expected(tokens: &[u32], learned: usize) -> (Vec<u32>, Vec<i64>) {
    let given = tokens.len() - learned;
    let target = |at: usize| {
        if at < given {
            NO_TARGET
        } else {
            i64::from(tokens[at])
        }
    };
    let last = tokens.len() - 1;
    (
        tokens[..last].to_vec(),
        (1..tokens.len()).map(target).collect(),
    )
}

#[test]
fn a_completion_has_the_tokens_that_it_has_behind_its_prompt() {
    for tokenizer in tokenizers() {
        // By itself it has a space that is not there.
        assert_eq!(tokenizer.encode("2", false).unwrap(), [id("▁2")]);
        let cases: [(&str, &str, &[&str]); 4] = [
            ("1 =", " 2", &["▁2"]),
            ("1 =", "2", &["2"]),
            // The prompt keeps its space, though it would be part of the next token.
            ("1 = ", "2", &["2"]),
            ("", "2", &["▁2"]),
        ];
        for (prompt, completion, learned) in cases {
            let mut tokens = tokenizer.encode(prompt, true).unwrap();
            assert_eq!(tokens[0], BOS);
            tokens.extend(learned.iter().map(|token| id(token)));
            tokens.push(EOS);
            let record = Record::Completion {
                prompt: prompt.into(),
                completion: completion.into(),
            };
            let found = row(record, &tokenizer, &TrainConfig::new());
            let expected = expected(&tokens, learned.len() + 1);
            assert_eq!(found, expected, "{prompt:?} {completion:?}");
        }
    }
}

#[test]
fn conversations_begin_as_generation_does() {
    for tokenizer in tokenizers() {
        let messages = vec![
            Message::user("1"),
            Message::assistant("hello"),
            Message::user("2"),
            Message::assistant("hello"),
        ];
        let asked = &messages[..1];
        let prompt = tokenizer.chat(asked).unwrap();
        let given = tokenizer.encode(&prompt, true).unwrap();
        let whole = tokenizer.apply_chat_template(&messages, false).unwrap();
        assert_eq!(whole, "=1= hello</s>=2= hello</s>");
        let whole = tokenizer.encode(&whole, true).unwrap();

        let config = TrainConfig::new();
        let (ids, targets) = row(Record::chat(messages.clone()), &tokenizer, &config);
        assert_eq!(ids, whole[..whole.len() - 1]);
        assert_eq!(ids[..given.len()], given);
        let reply = [i64::from(id("▁hello")), i64::from(EOS)];
        let learned: Vec<i64> = targets
            .iter()
            .copied()
            .filter(|target| *target != NO_TARGET)
            .collect();
        assert_eq!(learned, [reply, reply].concat());
        assert_eq!(targets[given.len() - 1], reply[0]);

        // Marks of one's own are no exception, and what they write out is not there twice.
        for before in ["=", "<s>="] {
            let template = ChatTemplate::new(before, "</s>");
            let text = template.render(asked, false);
            let config = TrainConfig::new().with_chat(template);
            let (ids, _) = row(
                Record::chat(vec![messages[0].clone(), messages[1].clone()]),
                &tokenizer,
                &config,
            );
            let given = tokenizer.encode(&text, before == "=").unwrap();
            assert_eq!(ids[..given.len()], given, "{before}");
        }
    }
}
