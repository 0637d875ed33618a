//! The configuration file that every method writes by default, byte for byte: a change of a name, a default or an
//! order of fields is one that users' files see.

use std::fmt::Write as _;

use serde_json::{Value, json};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configurations.txt");

/// The fields that have no default.
fn needed(method: &str) -> Value {
    match method {
        "adapter-fusion" => json!({"adapter_names": ["one", "two"]}),
        "adaption-prompt" => json!({"adapter_len": 8, "adapter_layers": 2}),
        "cartridge" | "p-tuning" | "prefix-tuning" => json!({"num_virtual_tokens": 8}),
        "cpt" => {
            json!({"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]})
        }
        "trainable-tokens" => json!({"token_indices": [3, 4]}),
        _ => json!({}),
    }
}

/// A line for each method: its name, and what it writes. `UPDATE_CONFIGURATIONS=1` writes the file anew.
#[test]
fn every_method_writes_the_configuration_that_it_always_wrote() {
    let mut lines = String::new();
    for info in peft::methods() {
        let mut given = needed(info.name);
        given["peft_type"] = info.peft_type.into();
        let method = (info.parse)(&given);
        let method = method.unwrap_or_else(|error| panic!("{}: {error}", info.title));
        writeln!(lines, "{} {}", info.name, method.to_json()).expect("a string");
    }
    if std::env::var_os("UPDATE_CONFIGURATIONS").is_some() {
        std::fs::write(PATH, &lines).expect("a writable file");
    }
    let known = std::fs::read_to_string(PATH).expect("the file beside this test");
    for line in lines.lines() {
        let name = line.split(' ').next().expect("a name");
        let before = known
            .lines()
            .find(|known| known.split(' ').next() == Some(name));
        assert_eq!(
            before,
            Some(line),
            "{name}: if the change is meant, run this test with UPDATE_CONFIGURATIONS=1, and say in CHANGELOG.md \
             what becomes of older files"
        );
    }
    assert_eq!(
        known.lines().count(),
        lines.lines().count(),
        "lines of methods that are gone"
    );
}
