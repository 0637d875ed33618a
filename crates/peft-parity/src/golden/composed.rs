//! Cases of several adapters that act together, one in each sub-folder.

use std::fs;
use std::path::Path;

use peft_core::method::MethodInfo;
use peft_core::nn::Routing;
use peft_core::{Composition, Nested, PeftModule, checkpoint};
use serde_json::Value;

use super::case::{adapters_of, name, parts, read};
use super::upstream_average::{self, ZerosConfig};
use super::{Problem, routed};

/// The folder of AdapterHub's fusion layers.
const FUSION: &str = "fusion";

/// AdapterHub's file of a composition.
const SETUP: &str = "adapter_setup.json";

/// The weights of `composition_average`, as the script that writes the cases has them: no file of AdapterHub's holds
/// any.
const AVERAGE: [f64; 2] = [0.3, 0.7];

/// The model with a case's adapters, composed as the case says, and the routing that its forward pass needs.
pub(super) fn load<M: PeftModule>(
    base: &M,
    case: &Path,
    methods: &[&MethodInfo],
) -> Result<(M, Option<Routing>), Problem> {
    if routed::is_arrow(case) {
        let (model, routing) = routed::load_arrow(base, case, &parts(case), methods)?;
        return Ok((model, Some(routing)));
    }
    Ok((load_composed(base, case, methods)?, None))
}

/// The model with a case's adapters, composed as the case's name says.
fn load_composed<M: PeftModule>(
    base: &M,
    case: &Path,
    methods: &[&MethodInfo],
) -> Result<M, Problem> {
    let problem = Problem::new(case);
    let (mut model, mut names, mut zeros) = (base.clone(), Vec::new(), ZerosConfig::new());
    for part in parts(case) {
        model = model.load_adapter(name(&part), &part, methods)?;
        let (tensors, _) = read(&part.join(checkpoint::ADAPTERHUB_FILE))?;
        zeros.add_places(&checkpoint::read_config(&part)?, &tensors);
        names.push(name(&part).to_string());
    }
    let setup = case.join(SETUP);
    if setup.exists() {
        let text = fs::read_to_string(&setup).map_err(|error| problem(&error))?;
        let json = serde_json::from_str(&text).map_err(|error| problem(&error))?;
        return nested(&model, case, &json, &zeros, methods);
    }
    match name(case) {
        "composition_stack" => Ok(model.set_composition(&Composition::Stack(names))?),
        "composition_average" if names.len() == AVERAGE.len() => {
            upstream_average::compose(&model, &names, &AVERAGE, &zeros)
        }
        "composition_average" => {
            let weights = AVERAGE.len();
            Err(problem(&format!("an average has {weights} adapters here")))
        }
        "composition_fuse" => Ok(model.load_adapter(FUSION, case.join(FUSION), methods)?),
        other => Err(Problem::Unsupported(format!("composition `{other}`"))),
    }
}

/// The model composed as a case's `adapter_setup.json` says, whose batch has as many rows as its ids.
fn nested<M: PeftModule>(
    model: &M,
    case: &Path,
    json: &Value,
    zeros: &ZerosConfig,
    methods: &[&MethodInfo],
) -> Result<M, Problem> {
    let (io, _) = read(&case.join("io.safetensors"))?;
    let rows = io.get("output").map_or(0, |output| output.shape()[0]);
    let tree = Nested::from_adapterhub(json, rows / copies(json))?;
    let tree = upstream_average::as_upstream(tree, zeros);
    let mut model = zeros.on(model)?;
    let fusion = adapters_of(case).join(FUSION);
    let Some(fused) = fused(&tree).filter(|_| fusion.exists()) else {
        return Ok(model.set_composition(&Composition::Nested(tree))?);
    };
    model = model.load_adapter(&fused, fusion, methods)?;
    Ok(model.set_composition(&Composition::Nested(tree))?)
}

/// How often AdapterHub repeats a batch for a composition.
fn copies(json: &Value) -> usize {
    let json = json.get("adapter_composition").unwrap_or(json);
    let children = json["children"].as_array().map_or(&[][..], Vec::as_slice);
    let inside = children.iter().map(copies).max().unwrap_or(1);
    if json["type"] == "Parallel" {
        children.len()
    } else {
        inside
    }
}

/// The name that a tree's fusion has.
fn fused(tree: &Nested) -> Option<String> {
    match tree {
        Nested::Above { adapter, .. } => Some(adapter.clone()),
        Nested::Stack(parts) => parts.iter().find_map(fused),
        _ => None,
    }
}
