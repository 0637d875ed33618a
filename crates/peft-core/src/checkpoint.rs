//! `adapter_config.json` and `adapter_model.safetensors`: names, layouts, strict reading.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use crate::erased::{AnyAdapter, FromDyn};
use crate::layout::{LayerKind, Layout, LayoutParam};
use crate::method::is_transposed;
use crate::{Error, Result};

/// The configuration's file name.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name.
pub const MODEL_FILE: &str = "adapter_model.safetensors";
/// The tensors' file name in AdapterHub's layout.
pub const ADAPTERHUB_FILE: &str = "adapter.safetensors";

/// No configuration is larger; a file that is, is none.
const MOST_CONFIG_BYTES: u64 = 1 << 20;

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    HuggingFace,
    AdapterHub,
}

impl Style {
    pub(crate) fn of(config: &Value) -> Self {
        let adapterhub = config["version"]
            .as_str()
            .is_some_and(|v| v.starts_with("adapters."));
        if adapterhub {
            Self::AdapterHub
        } else {
            Self::HuggingFace
        }
    }

    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::HuggingFace => MODEL_FILE,
            Self::AdapterHub => ADAPTERHUB_FILE,
        }
    }
}

#[derive(Clone, Debug)]
enum Key {
    /// Below the adapted layer or site.
    Layer(String),
    /// A whole name within the model.
    Named(String),
    /// A whole key, outside of the model's names.
    Root(String),
    /// Not in the file.
    Unsaved,
}

/// How one parameter of an adapter is called and laid out in a checkpoint.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    field: String,
    key: Key,
    transposed: bool,
    copy: Option<String>,
}

impl TensorSpec {
    fn new(field: &str, key: Key) -> Self {
        Self {
            field: field.into(),
            key,
            transposed: false,
            copy: None,
        }
    }

    /// The state's field `field` (with dots for nested modules) as `key` below the adapted layer:
    /// `lora_A.weight` becomes `base_model.model.<layer>.lora_A.weight`.
    pub fn layer(field: &str, key: &str) -> Self {
        Self::new(field, Key::Layer(key.into()))
    }

    /// The field as the parameter called `name` in the model: `base_model.model.<name>`.
    pub fn named(field: &str, name: &str) -> Self {
        Self::new(field, Key::Named(name.into()))
    }

    /// The field as `key`, without any prefix.
    pub fn root(field: &str, key: &str) -> Self {
        Self::new(field, Key::Root(key.into()))
    }

    /// The field is not in the file: the configuration says all about it, so that it is the same
    /// again wherever the adapter is planned.
    pub fn unsaved(field: &str) -> Self {
        Self::new(field, Key::Unsaved)
    }

    /// Stored transposed, as torch's linear weights are. For fields of rank 2.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// Upstream writes a copy under another key below the layer, too: it is read, must be equal, and
    /// is not written.
    #[must_use]
    pub fn also(mut self, key: &str) -> Self {
        self.copy = Some(key.into());
        self
    }

    /// The key of the copy.
    fn copy(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        let key = Key::Layer(self.copy.clone()?);
        Self::new("", key).key(style, layer, adapter)
    }

    /// The key for a state at `layer` of the adapter `adapter`.
    fn key(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        Some(match (&self.key, style) {
            (Key::Unsaved, _) => return None,
            (Key::Root(key), _) => key.clone(),
            (Key::Named(name), Style::HuggingFace) => format!("base_model.model.{name}"),
            (Key::Named(name), Style::AdapterHub) => name.clone(),
            (Key::Layer(key), Style::HuggingFace) => format!("base_model.model.{layer}.{key}"),
            (Key::Layer(key), Style::AdapterHub) => format!("{layer}.adapters.{adapter}.{key}"),
        })
    }
}

/// The fields that no file holds.
pub(crate) fn unsaved_fields(specs: &[TensorSpec]) -> HashSet<String> {
    let unsaved = specs.iter().filter(|spec| matches!(spec.key, Key::Unsaved));
    unsaved.map(|spec| spec.field.clone()).collect()
}

/// Key (none of what is not saved) and whether transposed, by field, for every parameter of an adapter's
/// state.
type Specs = HashMap<String, (Option<String>, bool)>;

fn specs_by_field(adapter: &AnyAdapter, style: Style, layer: &str, name: &str) -> Specs {
    adapter
        .module()
        .tensors()
        .into_iter()
        .map(|spec| {
            let key = spec.key(style, layer, name);
            (spec.field, (key, spec.transposed))
        })
        .collect()
}

/// What upstream calls a language model's head.
const TIED_HEAD: &str = "lm_head";

/// Whether a tensor is a table or head of the base model's, which upstream writes beside an adapter of it
/// (`save_embedding_layers`); it must be as the model has it.
pub(crate) fn is_base_table(
    layout: &Layout,
    key: &str,
    data: &TensorData,
) -> std::result::Result<bool, String> {
    let Some(layer) = key
        .strip_prefix("base_model.model.")
        .and_then(|name| name.strip_suffix(".weight"))
    else {
        return Ok(false);
    };
    let name = layer.strip_suffix(".base_layer").unwrap_or(layer);
    let table = |param: &&LayoutParam| {
        let layer = layout.layer_of(param);
        layer.name == name
            && param.field() == "weight"
            && (layer.kind == LayerKind::Embedding || layer.head)
    };
    // Upstream knows a head that is the table by a name of its own.
    let tied = || {
        let (_, table) = layout.tied.first().filter(|_| name == TIED_HEAD)?;
        layout.params.iter().find(|param| param.path == *table)
    };
    let Some(param) = layout.params.iter().find(table).or_else(tied) else {
        return Ok(false);
    };
    // A packed table has the values of its format.
    let near = if param.packed_format().is_some() {
        1e-2
    } else {
        1e-6
    };
    let own = param.stored().to_data();
    let own = if is_transposed(layout, param) {
        transpose(own)
    } else {
        own
    };
    let same = own.shape() == data.shape()
        && own
            .iter::<f32>()
            .zip(data.iter::<f32>())
            .all(|(own, stored)| (own - stored).abs() <= near * own.abs().max(1.0));
    if same {
        Ok(true)
    } else {
        Err(format!(
            "`{key}` is a table that the base model does not have: the adapter was made on a model with another \
             `{name}` (new tokens, as a rule); load that model"
        ))
    }
}

/// The last two axes of row-major data, swapped.
pub(crate) fn transpose(data: TensorData) -> TensorData {
    let [rows, columns] = [data.shape()[0], data.shape()[1]];
    let size = data.dtype().size();
    let source = data.as_bytes();
    let mut bytes = Vec::with_capacity(source.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            bytes.extend_from_slice(&source[at..at + size]);
        }
    }
    TensorData::from_bytes_vec(bytes, vec![columns, rows], data.dtype())
}

/// Reads the parameters of one adapter's state.
struct Export<'a> {
    specs: &'a Specs,
    path: Vec<String>,
    out: &'a mut BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Export<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let field = self.path.join(".");
        let (key, transposed) = self
            .specs
            .get(&field)
            .unwrap_or_else(|| panic!("the adapter's `tensors()` does not list `{field}`"));
        let Some(key) = key else { return };
        let data = param.val().into_data();
        let data = if *transposed { transpose(data) } else { data };
        let other = self.out.insert(key.clone(), data);
        assert!(other.is_none(), "two places of the adapter write `{key}`");
    }
}

/// Puts the tensors of an adapter's state into `out`, under their checkpoint keys.
pub(crate) fn export(
    adapter: &AnyAdapter,
    style: Style,
    layer: &str,
    name: &str,
    out: &mut BTreeMap<String, TensorData>,
) {
    let specs = specs_by_field(adapter, style, layer, name);
    let mut export = Export {
        specs: &specs,
        path: Vec::new(),
        out,
    };
    adapter.module().visit(&mut FromDyn(&mut export));
}

/// Writes read tensors into one adapter's state.
struct Fill<'a> {
    specs: &'a Specs,
    path: Vec<String>,
    tensors: &'a mut BTreeMap<String, TensorData>,
    used: &'a mut Vec<String>,
    problem: Option<String>,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let field = self.path.join(".");
        let (key, transposed) = self
            .specs
            .get(&field)
            .unwrap_or_else(|| panic!("the adapter's `tensors()` does not list `{field}`"));
        let Some(key) = key else { return param };
        let Some(data) = self.tensors.get(key) else {
            self.problem
                .get_or_insert(format!("tensor `{key}` is missing"));
            return param;
        };
        // Before the parameter takes memory: its shape comes from a file that may say anything.
        let mut expected = param.lazy_shape().to_vec();
        if *transposed {
            expected.reverse();
        }
        if data.shape().to_vec() != expected {
            self.problem.get_or_insert(format!(
                "tensor `{key}` has shape {:?}, the model and the configuration need {expected:?}",
                data.shape().to_vec(),
            ));
            return param;
        }
        let data = if *transposed {
            transpose(data.clone())
        } else {
            data.clone()
        };
        let (device, dtype) = (param.device(), param.dtype());
        let data = data.convert_dtype(dtype);
        if !data.iter::<f64>().all(f64::is_finite) {
            self.problem
                .get_or_insert(format!("tensor `{key}` does not fit into {dtype:?}"));
            return param;
        }
        self.used.push(key.clone());
        param.map(|old| {
            let grad = old.is_require_grad();
            Tensor::from_data(data, (&device, dtype)).set_require_grad(grad)
        })
    }
}

/// Puts tensors of a checkpoint into an adapter's state; keys used are added to `used`.
pub(crate) fn fill(
    adapter: &mut AnyAdapter,
    style: Style,
    layer: &str,
    name: &str,
    tensors: &mut BTreeMap<String, TensorData>,
    used: &mut Vec<String>,
) -> Result<(), String> {
    let specs = specs_by_field(adapter, style, layer, name);
    let mut fill = Fill {
        specs: &specs,
        path: Vec::new(),
        tensors,
        used,
        problem: None,
    };
    adapter.module_mut().map(&mut FromDyn(&mut fill));
    if let Some(problem) = fill.problem {
        return Err(problem);
    }
    for spec in adapter.module().tensors() {
        let (Some(key), Some(copy)) = (spec.key(style, layer, name), spec.copy(style, layer, name))
        else {
            continue;
        };
        if let Some(data) = tensors.get(&copy) {
            if tensors.get(&key) != Some(data) {
                return Err(format!(
                    "tensor `{copy}` is not the copy of `{key}` that it should be"
                ));
            }
            used.push(copy);
        }
    }
    Ok(())
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint {
        path: path.into(),
        reason: reason.into(),
    }
}

/// Reads a configuration file.
///
/// # Errors
///
/// [`Error::Io`], and [`Error::Checkpoint`] if it is no JSON object of a plausible size.
pub fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join(CONFIG_FILE);
    let size = fs::metadata(&path).map_err(io(&path))?.len();
    if size > MOST_CONFIG_BYTES {
        return Err(wrong(
            &path,
            format!("{size} bytes are too many for a configuration"),
        ));
    }
    let text = fs::read_to_string(&path).map_err(io(&path))?;
    let config: Value = serde_json::from_str(&text)
        .map_err(|error| wrong(&path, format!("no valid JSON: {error}")))?;
    if !config.is_object() {
        return Err(wrong(&path, "the configuration must be a JSON object"));
    }
    Ok(config)
}

/// Reads the tensors of a checkpoint, checking all that can be checked without a model.
pub(crate) fn read_tensors(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    let bytes = fs::read(path).map_err(io(path))?;
    parse_tensors(path, &bytes)
}

fn parse_tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, TensorData>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| wrong(path, format!("no valid safetensors file: {error}")))?;
    let mut tensors = BTreeMap::new();
    for (key, view) in file.iter() {
        let dtype = match view.dtype() {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let reason =
                    format!("tensor `{key}` holds {other:?}; F32, F16, BF16 or F64 would do");
                return Err(wrong(path, reason));
            }
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
        if let Some(at) = data.iter::<f64>().position(|value| !value.is_finite()) {
            let reason = format!("tensor `{key}` holds NaN or infinity at element {at}");
            return Err(wrong(path, reason));
        }
        tensors.insert(key.to_string(), data);
    }
    Ok(tensors)
}
