//! `adapter_config.json` and `adapter_model.safetensors`: names, layouts, strict reading.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use crate::adapter::checkpoint_key::{
    Specs, Stored, Style, field_names, specs_by_field, transpose,
};
use crate::adapter::erased::{AnyAdapter, ErasedModule, FromDyn};
use crate::files;
use crate::layout::model_layout::{LayerKind, Layout, LayoutParam};
use crate::method::contract::{PlannedAdapter, is_transposed};
use crate::model::attached::place_name;
use crate::{Error, Result};

/// The configuration's file name.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name.
pub const MODEL_FILE: &str = "adapter_model.safetensors";
/// The tensors' file name in AdapterHub's layout.
pub const ADAPTERHUB_FILE: &str = "adapter.safetensors";

/// No configuration is larger; a file that is, is none.
const MOST_CONFIG_BYTES: u64 = 1 << 20;

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
        // Upstream knows a head that is the table by a name of its own.
        let named = layer.name == name || param.is_tied() && name == TIED_HEAD;
        named && param.field() == "weight" && (layer.kind == LayerKind::Embedding || layer.head)
    };
    let Some(param) = layout.params.iter().find(table) else {
        return Ok(false);
    };
    // A quantized table has the values of its format, and a file of 16 bits those of its own.
    let quantized = param.quantized_format().is_some();
    let last_place = last_place(data.dtype()).max(last_place(param.dtype()));
    let near = |own: f32| {
        if quantized {
            1e-2 * own.abs().max(1.0)
        } else {
            last_place * own.abs() + 1e-6
        }
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
            .all(|(own, stored)| (own - stored).abs() <= near(own));
    if same {
        return Ok(true);
    }
    if own.shape() != data.shape() {
        return Err(format!(
            "`{key}` has {} rows of {} in the file, the model's `{name}` has {} of {}: the adapter was made on a \
             model with another vocabulary (new tokens, as a rule); load that model",
            data.shape().first().unwrap_or(&0),
            data.shape().last().unwrap_or(&0),
            own.shape().first().unwrap_or(&0),
            own.shape().last().unwrap_or(&0),
        ));
    }
    let tied = layout
        .tied_weights()
        .find(|(head, _)| head.path == param.path);
    Err(match tied {
        Some((_, table)) => format!(
            "`{key}` holds other values than the model's tied head `{name}`, which is the table `{}`: if the head \
             was trained, the configuration must say so (`{name}` in modules_to_save or target_modules, or \
             ensure_weight_tying); if not, the adapter was made on a model with another table: load that model",
            layout.layer_of(table).name
        ),
        None => format!(
            "`{key}` is a table that the base model does not have: the adapter was made on a model with another \
             `{name}` (new tokens, as a rule); load that model"
        ),
    })
}

/// Whether two tensors of a shape hold the same numbers, in whatever formats.
fn equal(a: &TensorData, b: &TensorData) -> bool {
    a.iter::<f64>().eq(b.iter::<f64>())
}

/// Where the parameter at `path` of a state is stored, and where its twin is.
///
/// # Panics
///
/// If [`refuse_unlisted`] was not asked first.
fn stored<'a>(specs: &'a Specs, path: &[String]) -> &'a (Stored, Option<Stored>) {
    let field = path.join(".");
    specs
        .get(&field)
        .unwrap_or_else(|| panic!("the adapter's `tensors()` does not list `{field}`"))
}

/// Names the fields of a state that are parameters.
#[derive(Default)]
struct Fields {
    path: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for Fields {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        self.found.push(self.path.join("."));
    }
}

fn fields(adapter: &dyn ErasedModule) -> Vec<String> {
    let mut fields = Fields::default();
    adapter.visit(&mut FromDyn(&mut fields));
    fields.found
}

/// Refuses states with a parameter that their `tensors()` do not list: it would be missing in every file.
pub(crate) fn refuse_unlisted(layout: &Layout, planned: &[PlannedAdapter]) -> Result<()> {
    for PlannedAdapter { path, adapter } in planned {
        let adapter = adapter.module();
        let listed = field_names(&adapter.tensors());
        if let Some(field) = fields(adapter)
            .iter()
            .find(|field| !listed.contains(*field))
        {
            return Err(Error::UnlistedTensor {
                method: adapter.method(),
                place: place_name(layout, path),
                field: field.clone(),
            });
        }
    }
    Ok(())
}

/// The keys that a state at `layer` is looked for under; those of a layer with the number of segments that lead to it.
pub(crate) fn keys(
    adapter: &dyn ErasedModule,
    style: Style,
    layer: &str,
    name: &str,
) -> Vec<(String, Option<usize>)> {
    let fields = fields(adapter);
    let specs = adapter.tensors().into_iter();
    specs
        .filter(|spec| fields.contains(&spec.field))
        .filter_map(|spec| {
            let key = spec.key(style, layer, name)?;
            Some((key, spec.segments_to_layer(style, layer)))
        })
        .collect()
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
        let (stored, twin) = stored(self.specs, &self.path);
        for stored in [Some(stored), twin.as_ref()].into_iter().flatten() {
            let Some(key) = &stored.key else { continue };
            let before = self.out.remove(key);
            let whole = stored.put(before, param.val().into_data());
            self.out.insert(key.clone(), whole);
        }
    }
}

/// Puts the tensors of an adapter's state into `out`, under their checkpoint keys.
pub(crate) fn export(
    adapter: &dyn ErasedModule,
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
    adapter.visit(&mut FromDyn(&mut export));
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
        let (stored, twin) = stored(self.specs, &self.path);
        let Some(key) = &stored.key else { return param };
        let Some(data) = self.tensors.get(key) else {
            self.problem
                .get_or_insert(format!("tensor `{key}` is missing"));
            return param;
        };
        // Before the parameter takes memory: its shape comes from a file that may say anything.
        let expected = stored.shape(&param.lazy_shape());
        if data.shape().to_vec() != expected {
            self.problem.get_or_insert(format!(
                "tensor `{key}` has shape {:?}, the model and the configuration need {expected:?}",
                data.shape().to_vec(),
            ));
            return param;
        }
        let data = stored.value(data, &param.lazy_shape());
        if let Some((twin, twin_key)) = twin
            .as_ref()
            .and_then(|twin| Some((twin, twin.key.as_ref()?)))
            && let Some(twin_data) = self.tensors.get(twin_key)
        {
            let expected = twin.shape(&param.lazy_shape());
            if twin_data.shape().to_vec() != expected
                || !equal(&twin.value(twin_data, &param.lazy_shape()), &data)
            {
                self.problem.get_or_insert(format!(
                    "tensor `{twin_key}` must have the values of `{key}`: the adapter keeps the two tied"
                ));
                return param;
            }
            self.used.push(twin_key.clone());
        }
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
    let specs = specs_by_field(adapter.module(), style, layer, name);
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

/// What the last place of a format is of a number, at most.
fn last_place(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 1e-6,
    }
}

/// Files that Python wrote by pickling: they can run whatever they like, and are not read.
const PICKLED: &[&str] = &["adapter_model.bin", "pytorch_adapter.bin"];

/// Refuses a folder that has only a pickled file, with the way out.
pub(crate) fn refuse_pickled(dir: &Path, style: Style) -> Result<()> {
    let wanted = style.file();
    let pickled = PICKLED.iter().find(|name| dir.join(name).exists());
    let Some(pickled) = pickled.filter(|_| !dir.join(wanted).exists()) else {
        return Ok(());
    };
    Err(wrong(
        &dir.join(pickled),
        format!(
            "the folder has no `{wanted}`, only this pickled file, which is not read, as it can run any program. \
             Convert it with Python, in the folder: `import torch, safetensors.torch; \
             safetensors.torch.save_file(torch.load(\"{pickled}\", weights_only=True), \"{wanted}\")`"
        ),
    ))
}

/// Reads a configuration file.
///
/// # Errors
///
/// [`Error::Io`], and [`Error::Checkpoint`] if it is no JSON object of a plausible size.
pub fn read_config(dir: &Path) -> Result<Value> {
    let path = files::readable(dir, CONFIG_FILE, CONFIG_FILE);
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
