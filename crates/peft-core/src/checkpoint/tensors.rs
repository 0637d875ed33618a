//! The tensors of an adapter's state, out of it and into it.

use std::collections::{BTreeMap, HashMap};

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor, TensorData};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::checkpoint_key::{Style, field_names};
use crate::adapter::erased::{ErasedModule, FromDyn};
use crate::checkpoint::base_table::same_values;
use crate::checkpoint::read::{FLOATS, INTEGERS};
use crate::checkpoint::stored::{Part, Specs, Stored, specs_by_field};
use crate::error::{Error, Result};
use crate::layout::model_layout::Layout;
use crate::method::plan::PlannedAdapter;

/// Whether two tensors of a shape hold the same numbers, in whatever formats.
fn equal(a: &TensorData, b: &TensorData) -> bool {
    a.iter::<f64>().eq(b.iter::<f64>())
}

/// Where the parameter at `path` of a state is stored, and where its twins are.
///
/// # Panics
///
/// If [`refuse_unlisted`] was not asked first.
fn stored<'a>(specs: &'a Specs, path: &[String]) -> &'a (Stored, Vec<Stored>) {
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
    fn visit_int<const D: usize>(&mut self, _param: &Param<Tensor<D, Int>>) {
        self.found.push(self.path.join("."));
    }
}

fn fields(adapter: &dyn ErasedModule) -> Vec<String> {
    let mut fields = Fields::default();
    adapter.visit(&mut FromDyn(&mut fields));
    fields.found
}

/// Refuses states with a parameter that their `tensors()` do not list: it would be missing in every file.
pub(crate) fn refuse_unlisted(
    method: &'static str,
    layout: &Layout,
    planned: &[PlannedAdapter],
) -> Result<()> {
    for PlannedAdapter { path, adapter, .. } in planned {
        let adapter = adapter.module();
        let listed = field_names(&adapter.tensors());
        if let Some(field) = fields(adapter)
            .iter()
            .find(|field| !listed.contains(*field))
        {
            return Err(Error::UnlistedTensor {
                method,
                place: layout.place_name(path),
                field: field.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses states of which two write one tensor of a file, or one part of it: one of them would be lost.
pub(crate) fn refuse_written_twice(
    method: &'static str,
    style: Style,
    layout: &Layout,
    planned: &[PlannedAdapter],
) -> Result<()> {
    let mut written: HashMap<String, Vec<Part>> = HashMap::new();
    for PlannedAdapter { path, adapter, .. } in planned {
        let (adapter, place) = (adapter.module(), layout.place_name(path));
        let specs = specs_by_field(adapter, style, &place, method);
        for field in fields(adapter) {
            let (stored, _) = &specs[&field];
            let Some(key) = &stored.key else { continue };
            let part = stored.part();
            let before = written.entry(key.clone()).or_default();
            if !before.iter().all(|other| other.is_beside(&part)) {
                return Err(Error::Tensors {
                    adapter: method.into(),
                    reason: format!(
                        "two of its states would write the tensor `{key}` of a file, the second at `{place}`; adapt \
                         these places by adapters of their own"
                    ),
                });
            }
            before.push(part);
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
        self.put(|| param.val().into_data());
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.put(|| param.val().into_data());
    }
}

impl Export<'_> {
    /// Puts the value of the parameter at the current path where it belongs.
    fn put(&mut self, value: impl Fn() -> TensorData) {
        let (stored, twins) = stored(self.specs, &self.path);
        for stored in std::iter::once(stored).chain(twins) {
            let Some(key) = &stored.key else { continue };
            let before = self.out.remove(key);
            let whole = stored.put(before, value());
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
    for spec in adapter.tensors() {
        if let Some((key, constant)) = spec.as_constant(style) {
            out.insert(key, constant.value.clone());
        }
    }
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
        let floats = |data: &TensorData| data.dtype().is_float();
        // Before the parameter takes memory: its shape comes from a file that may say anything.
        let Some((key, data)) = self.find(&param.lazy_shape(), floats, FLOATS) else {
            return param;
        };
        let (device, dtype) = (param.device(), param.dtype());
        let data = data.convert_dtype(dtype);
        if !data.iter::<f64>().all(f64::is_finite) {
            self.refuse(format!("tensor `{key}` does not fit into {dtype:?}"));
            return param;
        }
        self.used.push(key);
        param.map(|old| {
            let grad = old.is_require_grad();
            Tensor::from_data(data, (&device, dtype)).set_require_grad(grad)
        })
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let integers = |data: &TensorData| data.dtype().is_int() || data.dtype().is_uint();
        let Some((key, found)) = self.find(&param.lazy_shape(), integers, INTEGERS) else {
            return param;
        };
        let (stored, _) = stored(self.specs, &self.path);
        if let Some(Err(problem)) = stored.indices.as_ref().map(|indices| indices.check(&found)) {
            self.refuse(format!("tensor `{key}` {problem}"));
            return param;
        }
        let (device, dtype) = (param.device(), param.dtype());
        let data = found.clone().convert_dtype(dtype);
        if !data.iter::<i64>().eq(found.iter::<i64>()) {
            self.refuse(format!("tensor `{key}` does not fit into {dtype:?}"));
            return param;
        }
        self.used.push(key);
        param.map(|_| Tensor::from_data(data, (&device, dtype)))
    }
}

impl Fill<'_> {
    /// Keeps the first problem.
    fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// The tensor of the parameter at the current path, which has this shape, with its key. `None` if no file holds the
    /// parameter, or if there is a problem: numbers of another kind, say.
    fn find(
        &mut self,
        shape: &[usize],
        is_kind: impl Fn(&TensorData) -> bool,
        kind: &str,
    ) -> Option<(String, TensorData)> {
        let (stored, twins) = stored(self.specs, &self.path);
        let key = stored.key.as_ref()?;
        match self.value(key, stored, shape, is_kind, kind) {
            Err(problem) => {
                self.refuse(problem);
                None
            }
            Ok(data) => {
                for twin in twins {
                    let Some(twin_key) = &twin.key else { continue };
                    let Some(twin_data) = self.tensors.get(twin_key) else {
                        continue;
                    };
                    if twin_data.shape().to_vec() != twin.shape(shape)
                        || !equal(&twin.value(twin_data, shape), &data)
                    {
                        self.refuse(format!(
                            "tensor `{twin_key}` must have the values of `{key}`: the adapter keeps the two tied"
                        ));
                        return None;
                    }
                    self.used.push(twin_key.clone());
                }
                Some((key.clone(), data))
            }
        }
    }

    /// The value of a parameter of this shape, from the tensor `key`.
    fn value(
        &self,
        key: &str,
        stored: &Stored,
        shape: &[usize],
        is_kind: impl Fn(&TensorData) -> bool,
        kind: &str,
    ) -> Result<TensorData, String> {
        let data = self.tensors.get(key);
        let data = data.ok_or_else(|| format!("tensor `{key}` is missing"))?;
        if !is_kind(data) {
            let found = data.dtype();
            return Err(format!("tensor `{key}` holds {found:?}; {kind}"));
        }
        let expected = stored.shape(shape);
        if data.shape().to_vec() != expected {
            return Err(format!(
                "tensor `{key}` has shape {:?}, the model and the configuration need {expected:?}",
                data.shape().to_vec(),
            ));
        }
        Ok(stored.value(data, shape))
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
        let Some((key, constant)) = spec.as_constant(style) else {
            continue;
        };
        let Some(found) = tensors.get(&key) else {
            continue;
        };
        if !constant.any && !same_values(&constant.value, found) {
            return Err(format!(
                "tensor `{key}` has other values than the model: no adapter changes what it holds, and with the model's \
                 own the outputs would be others. Load them into the model first"
            ));
        }
        used.push(key);
    }
    for spec in adapter.module().tensors() {
        if let Some(key) = spec.zeros_key(style, layer, name)
            && let Some(data) = tensors.get(&key)
        {
            if data.iter::<f64>().any(|value| value != 0.0) {
                return Err(format!(
                    "tensor `{key}` must be zero: it stands for a part that the adapter does not have"
                ));
            }
            used.push(key);
        }
    }
    for spec in adapter.module().tensors() {
        let Some(key) = spec.key(style, layer, name) else {
            continue;
        };
        for copy in spec.copies(style, layer, name) {
            let Some(data) = tensors.get(&copy) else {
                continue;
            };
            if tensors.get(&key) != Some(data) {
                return Err(format!(
                    "tensor `{copy}` is not the copy of `{key}` that it should be"
                ));
            }
            used.push(copy);
        }
    }
    adapter.module_mut().filled();
    Ok(())
}
