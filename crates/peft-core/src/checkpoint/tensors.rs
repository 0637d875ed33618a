//! The tensors of an adapter's state, out of it and into it.

use std::collections::BTreeMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use crate::adapter::checkpoint_key::{Style, field_names};
use crate::adapter::erased::{AnyAdapter, ErasedModule, FromDyn};
use crate::checkpoint::stored::{Specs, Stored, specs_by_field};
use crate::error::{Error, Result};
use crate::layout::model_layout::Layout;
use crate::method::plan::PlannedAdapter;

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
                place: layout.place_name(path),
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
