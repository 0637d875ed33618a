//! Model folders in Hugging Face's layout, and what can happen to them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Map, Value, json};

use super::values::{hostile, keys, parts, pointer, twice};
use super::{bytes, tensors};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

/// A folder: contents by name.
#[derive(Clone, Default)]
pub(crate) struct Folder(BTreeMap<String, Vec<u8>>);

/// A tensor: name, number format, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

impl Folder {
    /// A folder of the golden files, without the values that tests compare with.
    pub(crate) fn golden(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name != "io.safetensors" {
                files.insert(name.to_string(), fs::read(&path).unwrap());
            }
        }
        Self(files)
    }

    /// The same model with its weights in two files and an index.
    pub(crate) fn sharded(&self) -> Self {
        let mut folder = self.clone();
        let mut shards = [Vec::new(), Vec::new()];
        let mut map = Map::new();
        for (place, tensor) in self.tensors().into_iter().enumerate() {
            map.insert(tensor.0.clone(), SHARDS[place % 2].into());
            shards[place % 2].push(tensor);
        }
        folder.0.remove(WEIGHTS);
        for (name, tensors) in SHARDS.iter().zip(&shards) {
            folder.set(name, stored(tensors));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
        folder.set(INDEX, index.to_string());
        folder
    }

    /// A model of the same shapes with its matrices in 4-bit codes.
    pub(crate) fn quantized(&self) -> Self {
        let mut folder = self.clone();
        let (mut quantized, mut shapes) = (Vec::new(), Map::new());
        for (name, dtype, shape, bytes) in self.tensors() {
            if shape.len() != 2 {
                quantized.push((name, dtype, shape, bytes));
                continue;
            }
            let count = shape[0] * shape[1];
            let (codes, groups) = (count.div_ceil(2), count.div_ceil(32));
            let noise = bytes.iter().copied().cycle().take(codes).collect();
            quantized.push((format!("{name}.q4"), Dtype::U8, vec![codes], noise));
            // Scales of 1/128, in f16.
            let scales = [0x00_u8, 0x20].repeat(groups);
            quantized.push((format!("{name}.scales"), Dtype::F16, vec![groups], scales));
            shapes.insert(name, json!(shape));
        }
        folder.set(WEIGHTS, stored(&quantized));
        folder.set("shapes.json", Value::Object(shapes).to_string());
        folder
    }

    fn tensors(&self) -> Vec<Tensor> {
        let file = SafeTensors::deserialize(self.file(WEIGHTS)).unwrap();
        let mut tensors: Vec<Tensor> = file
            .iter()
            .map(|(name, view)| {
                let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
                (name.to_string(), view.dtype(), shape, data)
            })
            .collect();
        // The crate has them in no order.
        tensors.sort();
        tensors
    }

    /// A file that is there.
    pub(crate) fn file(&self, name: &str) -> &[u8] {
        &self.0[name]
    }

    /// Adds a file, or replaces it.
    pub(crate) fn set(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        self.0.insert(name.to_string(), content.into());
    }

    /// Changes a JSON file that is there.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.0[name]).unwrap();
        change(&mut json);
        self.set(name, json.to_string());
    }

    /// Writes the folder's files into a directory that is there.
    pub(crate) fn write(&self, dir: &Path) {
        for (name, content) in &self.0 {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    fn names(&self, ending: &str) -> Vec<String> {
        let names = self.0.keys().filter(|name| name.ends_with(ending));
        names.cloned().collect()
    }
}

/// A safetensors file.
fn stored(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize(views, None).unwrap()
}

/// What happens to a folder.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// Somewhere in a JSON file there is another value.
    Value(Index, Vec<Index>, Value),
    /// A member of an object or a list in a JSON file is not there.
    NoValue(Index, Vec<Index>, Index),
    /// A key is twice in a JSON file's object.
    Twice(Index, Index, Value),
    /// A part of the tokenizer is another one.
    Part(&'static str, Value),
    /// The index has another file for a tensor.
    Shard(Index, &'static str),
    /// A file is not there.
    NoFile(Index),
    /// A file has the content of another one.
    Content(Index, Index),
    /// A safetensors file is damaged.
    Tensors(Index, tensors::Damage),
    /// The bytes of a file are damaged.
    Bytes(Index, bytes::Damage),
}

/// Any damage.
pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<Index>;
    let steps = || prop::collection::vec(any::<Index>(), 1..6);
    let sections = [
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "model",
    ];
    let names = [
        "../x",
        "..",
        "",
        "/etc/passwd",
        "x/../x",
        "config.json",
        "model.safetensors/",
        "\u{0}",
    ];
    prop_oneof![
        8 => (index(), steps(), hostile())
            .prop_map(|(file, steps, value)| Damage::Value(file, steps, value)),
        2 => (index(), steps(), index())
            .prop_map(|(file, steps, at)| Damage::NoValue(file, steps, at)),
        1 => (index(), index(), hostile()).prop_map(|(file, at, value)| Damage::Twice(file, at, value)),
        3 => (select(sections.to_vec()), select(parts()))
            .prop_map(|(section, part)| Damage::Part(section, part)),
        1 => (index(), select(names.to_vec())).prop_map(|(at, name)| Damage::Shard(at, name)),
        1 => index().prop_map(Damage::NoFile),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Content(from, to)),
        5 => (index(), tensors::damage()).prop_map(|(file, damage)| Damage::Tensors(file, damage)),
        3 => (index(), bytes::damage()).prop_map(|(file, damage)| Damage::Bytes(file, damage)),
    ]
}

impl Damage {
    /// Damages a folder. One that has no such file stays as it is.
    pub(crate) fn apply(&self, folder: &mut Folder) {
        let chosen =
            |at: &Index, names: &[String]| (!names.is_empty()).then(|| at.get(names).clone());
        let name = match self {
            Self::Value(at, ..) | Self::NoValue(at, ..) | Self::Twice(at, ..) => {
                chosen(at, &folder.names(".json"))
            }
            Self::Tensors(at, _) => chosen(at, &folder.names(".safetensors")),
            Self::Part(..) => Some(TOKENIZER.to_string()),
            Self::Shard(..) => Some(INDEX.to_string()),
            Self::NoFile(at) | Self::Bytes(at, _) | Self::Content(at, _) => {
                chosen(at, &folder.names(""))
            }
        };
        let Some((name, mut content)) = name.and_then(|name| folder.0.remove_entry(&name)) else {
            return;
        };
        match self {
            Self::NoFile(_) => return,
            Self::Content(_, other) => {
                if let Some(other) = chosen(other, &folder.names("")) {
                    content.clone_from(&folder.0[&other]);
                }
            }
            Self::Tensors(_, damage) => damage.apply(&mut content),
            Self::Bytes(_, damage) => damage.apply(&mut content),
            _ => {
                if let Ok(json) = serde_json::from_slice(&content) {
                    content = self.json(json).into_bytes();
                }
            }
        }
        folder.0.insert(name, content);
    }

    /// The text of a JSON file after the damage.
    fn json(&self, mut json: Value) -> String {
        match self {
            Self::Value(_, steps, value) => {
                let pointer = pointer(&json, steps);
                *json.pointer_mut(&pointer).unwrap() = value.clone();
            }
            Self::NoValue(_, steps, at) => {
                let pointer = pointer(&json, &steps[1..]);
                match json.pointer_mut(&pointer).unwrap() {
                    Value::Object(map) if !map.is_empty() => {
                        let key = at.get(&keys(map)).clone();
                        map.remove(&key);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        list.remove(at.index(list.len()));
                    }
                    _ => {}
                }
            }
            Self::Twice(_, at, value) => {
                if let Value::Object(map) = &json {
                    return twice(map, at, value);
                }
            }
            Self::Part(section, part) => {
                if let Value::Object(map) = &mut json {
                    map.insert((*section).to_string(), part.clone());
                }
            }
            Self::Shard(at, name) => {
                if let Some(Value::Object(map)) = json.get_mut("weight_map")
                    && !map.is_empty()
                {
                    let key = at.get(&keys(map)).clone();
                    map.insert(key, Value::from(*name));
                }
            }
            _ => {}
        }
        json.to_string()
    }
}
