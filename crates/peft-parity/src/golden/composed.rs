//! Cases of several adapters that act together, one in each sub-folder.

use std::path::Path;

use peft_core::method::MethodInfo;
use peft_core::nn::Routing;
use peft_core::{Composition, PeftModule, checkpoint};

use super::case::{name, parts, read};
use super::{Problem, routed, upstream_average};

/// The folder of AdapterHub's fusion layers.
const FUSION: &str = "fusion";

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
    let (mut model, mut names, mut keys) = (base.clone(), Vec::new(), Vec::new());
    for part in parts(case) {
        model = model.load_adapter(name(&part), &part, methods)?;
        keys.extend(read(&part.join(checkpoint::ADAPTERHUB_FILE))?.0.into_keys());
        names.push(name(&part).to_string());
    }
    match name(case) {
        "composition_stack" => Ok(model.set_composition(&Composition::Stack(names))?),
        "composition_average" if names.len() == AVERAGE.len() => {
            upstream_average::compose(&model, &names, &AVERAGE, &keys)
        }
        "composition_average" => {
            let weights = AVERAGE.len();
            Err(problem(&format!("an average has {weights} adapters here")))
        }
        "composition_fuse" => Ok(model.load_adapter(FUSION, case.join(FUSION), methods)?),
        other => Err(Problem::Unsupported(format!("composition `{other}`"))),
    }
}
