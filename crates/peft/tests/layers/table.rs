//! The table of docs/layers.md: which method takes which kind of layer. It is made by asking every method.

use std::fmt::Write as _;

use peft::core::method::{Family, MethodInfo};
use peft::core::state::AdapterState as _;
use peft::core::{Error, PeftModule, device::cpu_devices};
use serde_json::{Value, json};

use crate::zoo::Zoo;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/layers.md");

/// Around the table in the page.
const MARKS: [&str; 2] = ["<!-- table of layers -->\n", "<!-- end of the table -->"];

/// Heads of the columns, and the layers that they are about.
const COLUMNS: [(&str, &str); 11] = [
    ("Linear", "linear"),
    ("Embedding", "embedding"),
    ("Conv1d", "conv1d"),
    ("Conv2d", "conv2d"),
    ("grouped", "conv2d_groups"),
    ("ConvTranspose2d", "conv_transpose2d"),
    ("LayerNorm", "layer_norm"),
    ("RmsNorm", "rms_norm"),
    ("BatchNorm", "batch_norm"),
    ("GroupNorm", "group_norm"),
    ("own struct", "own"),
];

/// Fields that a method needs to be put on a layer of 64 features, besides its defaults.
pub(crate) fn needed(method: &str) -> Value {
    match method {
        "adapter-fusion" => json!({"adapter_names": ["one", "two"]}),
        "c3a" => json!({"block_size": 32}),
        // Of a norm's few numbers one at least.
        "fishmask" | "lt-sft" | "diff-pruning" => json!({"keep_ratio": 0.1}),
        "trainable-tokens" => json!({"token_indices": [3, 4]}),
        "vblora" => json!({"vector_length": 32}),
        _ => json!({}),
    }
}

/// What becomes of a method that is to be put on one layer.
fn takes(base: &Zoo, info: &MethodInfo, layer: &str) -> Result<bool, Error> {
    let mut given = needed(info.name);
    given["peft_type"] = info.peft_type.into();
    given["target_modules"] = json!([layer]);
    let method = (info.parse)(&given)?;
    let model = match base.attach("a", method.as_ref()) {
        Err(Error::UnsupportedLayer { .. } | Error::NoTarget { .. } | Error::NoSite { .. }) => {
            return Ok(false);
        }
        // None of the layers is one for it.
        Err(Error::Config {
            field: "target_modules" | "modules_to_save",
            ..
        }) => return Ok(false),
        // It has found its layer, and asks for what is gathered on data.
        Err(Error::Calibration { .. }) => return Ok(true),
        attached => attached?,
    };
    let below = format!("base_model.model.{layer}.");
    match model.adapter_tensors("a") {
        // It trains the model itself.
        Err(Error::UnknownAdapter { .. }) => Ok(false),
        // What a method trains may be shared by all layers, and named after none.
        tensors => {
            let asked = method.to_json()["target_modules"] == given["target_modules"];
            let tensors = tensors?;
            let named = tensors.keys().any(|key| key.starts_with(&below));
            Ok(named || asked && !tensors.is_empty())
        }
    }
}

fn table() -> String {
    let (_, device) = cpu_devices().remove(0);
    let base = Zoo::new(&device);
    let mut rows = String::new();
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    writeln!(rows, "| method | {} |", heads.join(" | ")).expect("a string");
    writeln!(rows, "|---|{}", "---|".repeat(COLUMNS.len())).expect("a string");
    let mut wrong = Vec::new();
    // Prompts have no layers.
    let methods = peft::methods().into_iter();
    for info in methods.filter(|info| info.family != Family::SoftPrompt) {
        let mut row = Vec::new();
        for (_, layer) in COLUMNS {
            match takes(&base, info, layer) {
                Ok(taken) => row.push(if taken { "●" } else { " " }),
                Err(error) => wrong.push(format!("{} on `{layer}`: {error}", info.name)),
            }
        }
        if row.contains(&"●") {
            writeln!(rows, "| {} | {} |", info.title, row.join(" | ")).expect("a string");
        }
    }
    assert!(
        wrong.is_empty(),
        "give these in `needed` what they need:\n{}",
        wrong.join("\n")
    );
    rows
}

/// `UPDATE_LAYERS=1` writes the table anew.
#[test]
fn the_page_says_which_method_takes_which_layer() {
    let page = std::fs::read_to_string(PAGE).expect("docs/layers.md");
    let (before, rest) = page
        .split_once(MARKS[0])
        .expect("the mark before the table");
    let (known, after) = rest
        .split_once(MARKS[1])
        .expect("the mark behind the table");
    let found = table();
    if std::env::var_os("UPDATE_LAYERS").is_some() {
        let [start, end] = MARKS;
        let page = format!("{before}{start}{found}{end}{after}");
        std::fs::write(PAGE, page).expect("a writable file");
        return;
    }
    assert_eq!(
        known, found,
        "run this test with UPDATE_LAYERS=1 to write the table of docs/layers.md anew"
    );
}
