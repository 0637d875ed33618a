//! Cases of LoRA adapters that a router weighs: X-LoRA's classifier, and Arrow.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;
use peft::reparameterization::{ArrowConfig, XLora, arrow, gen_know_sub};
use peft_core::PeftModule;
use peft_core::checkpoint;
use peft_core::method::MethodInfo;
use peft_core::nn::{ForwardContext, Routing};
use serde_json::Value;

use super::case::name;
use super::gradients::GradientsAsValues;
use super::{Problem, Tensors};

/// The options of an Arrow case.
const OPTIONS: &str = "arrow.json";

/// Whether a folder is a case of Arrow's.
pub(super) fn is_arrow(case: &Path) -> bool {
    case.join(OPTIONS).exists()
}

/// The model with a case's experts and Arrow's routing of them.
pub(super) fn load_arrow<M: PeftModule>(
    base: &M,
    case: &Path,
    parts: &[PathBuf],
    methods: &[&MethodInfo],
) -> Result<(M, Routing), Problem> {
    let path = case.join(OPTIONS);
    let problem = Problem::new(&path);
    let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
    let options: Value = serde_json::from_str(&text).map_err(|error| problem(&error))?;
    let mut model = base.clone();
    let (mut tasks, mut general) = (Vec::new(), Vec::new());
    for part in parts {
        let name = name(part);
        model = model.load_adapter(name, part, methods)?;
        if name.starts_with("general") {
            general.push(name);
        } else {
            tasks.push(name);
        }
    }
    if options["use_gks"] == true {
        model = gen_know_sub(&model, &tasks, &general)?;
    }
    let top_k = options["top_k"]
        .as_u64()
        .and_then(|k| usize::try_from(k).ok());
    let (Some(top_k), Some(temperature)) = (top_k, options["router_temperature"].as_f64()) else {
        return Err(problem(&"top_k and router_temperature must be numbers"));
    };
    let config = ArrowConfig::new(top_k).with_router_temperature(temperature);
    Ok(arrow(&model, &tasks, config)?)
}

/// An X-LoRA case: experts in folders, and the classifier in `encoder.safetensors`, as upstream's own file has none.
pub(super) struct XLoraCase<M: Module> {
    xlora: XLora<M>,
}

impl<M: PeftModule + ModuleDisplay> XLoraCase<M> {
    /// `hidden_size` comes from the configuration.
    pub(super) fn load(base: &M, case: &Path, methods: &[&MethodInfo]) -> Result<Self, Problem> {
        let problem = Problem::new(case);
        let dir = tempfile::tempdir().map_err(|error| problem(&error))?;
        let mut config = checkpoint::read_config(case)?;
        let case = &fs::canonicalize(case).map_err(|error| problem(&error))?;
        for folder in config["adapters"].as_object_mut().into_iter().flatten() {
            let (_, path) = folder;
            *path = case
                .join(path.as_str().unwrap_or_default())
                .to_string_lossy()
                .into();
        }
        let written = dir.path().join(checkpoint::CONFIG_FILE);
        peft_core::files::write(&written, config.to_string()).map_err(|error| problem(&error))?;
        let encoder = case.join("encoder.safetensors");
        fs::copy(encoder, dir.path().join(checkpoint::MODEL_FILE))
            .map_err(|error| problem(&error))?;
        let width = config["hidden_size"]
            .as_u64()
            .and_then(|width| usize::try_from(width).ok());
        let width = width.ok_or_else(|| problem(&"the configuration says no hidden_size"))?;
        Ok(Self {
            xlora: XLora::load(base, dir.path(), methods, width)?,
        })
    }

    pub(super) fn trainable(&self) -> usize {
        self.xlora.classifier.num_params()
    }

    /// The output for a context, by the model's hidden states and its output.
    pub(super) fn run<const D: usize>(
        &self,
        autodiff: bool,
        context: ForwardContext,
        hidden: impl FnOnce(&M, ForwardContext) -> Tensor<3>,
        output: impl FnOnce(&M, ForwardContext) -> Tensor<D>,
    ) -> Tensor<D> {
        if autodiff {
            self.xlora.forward(context, hidden, output)
        } else {
            self.xlora.valid().forward(context, hidden, output)
        }
    }

    /// The classifier's gradients of mean(output²), by upstream's keys.
    pub(super) fn gradients<const D: usize>(&self, output: Tensor<D>) -> Tensors {
        let gradients = (output.clone() * output).mean().backward();
        let mut xlora = self.xlora.clone();
        xlora.classifier = xlora.classifier.map(&mut GradientsAsValues {
            gradients: &gradients,
            inside: 1,
        });
        xlora.classifier_tensors()
    }
}
