//! A method: a configuration that plans adapters for a model.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::layout::model_layout::Layout;
use crate::layout::targets::Targets;
use crate::method::bias::Bias;
use crate::method::hooks::{MethodHooks, States};
use crate::method::plan::Plan;
use crate::statistics::wanted::CalibrationConfig;
use crate::upstream::CONFIG_FILE;

/// Lialin et al.'s families (Scaling Down to Scale Up, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Family {
    /// New layers.
    Additive,
    /// A part of the model's own parameters.
    Selective,
    /// A low-dimensional form of the weights' change.
    Reparameterization,
    /// Trained input or attention state.
    SoftPrompt,
    /// Several methods of different families.
    Hybrid,
    /// Not parameter-efficient: head only and full fine-tuning, to compare with.
    Reference,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Additive => "additive",
            Self::Selective => "selective",
            Self::Reparameterization => "reparameterization",
            Self::SoftPrompt => "soft prompt",
            Self::Hybrid => "hybrid",
            Self::Reference => "reference",
        })
    }
}

/// What is known of a method before it is configured: its registration.
///
/// A method crate lists its methods in one constant, `METHODS`. Loading by `peft_type`, the
/// conformance suite and the comparison suite all go by this.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// Short name, as in `lora`.
    pub name: &'static str,
    /// `peft_type` in `adapter_config.json`, as in `LORA`.
    pub peft_type: &'static str,
    /// Name as it is written, as in `LoRA`.
    pub title: &'static str,
    /// Family.
    pub family: Family,
    /// Paper and section.
    pub reference: &'static str,
    /// The [promise](Promises) of usual configurations about a fresh adapter.
    pub identity_at_init: bool,
    /// Theirs about a trained one.
    pub mergeable: bool,
    /// Reads the method's `adapter_config.json`.
    pub parse: fn(&Value) -> Result<Box<dyn Method>>,
    /// Whether a configuration in another library's layout is one of this method.
    pub recognises: Option<fn(&Value) -> bool>,
}

impl MethodInfo {
    /// The refusal of a field of the method's configuration: [`Error::Config`].
    pub fn refusal(
        &self,
        field: &'static str,
        value: impl std::fmt::Debug,
        expected: impl Into<String>,
    ) -> Error {
        Error::config(self.title, field, value, expected)
    }
}

/// What adapters of a configuration keep to. The conformance suite holds them to both promises, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promises {
    /// Whether a fresh adapter leaves the model's outputs as they were.
    pub identity_at_init: bool,
    /// Whether the trained adapter can be folded into the base weights.
    pub mergeable: bool,
}

/// What a method's configuration says: the part of a [`Method`] that
/// [`method_config`](crate::method::method_config) writes.
pub trait MethodConfig: std::fmt::Debug + Send + Sync {
    /// The method's registration.
    fn info(&self) -> &'static MethodInfo;

    /// The fields that every configuration has.
    fn common(&self) -> &Common;

    /// The same, to change.
    fn common_mut(&mut self) -> &mut Common;

    /// Checks the range of every field by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the field, its value and what would be right.
    fn check_fields(&self) -> Result<()>;

    /// Checks fields by layer against `layers`, the names of all layers that are adapted.
    ///
    /// # Errors
    ///
    /// [`Error::UnusedPattern`] for patterns that fit none of them.
    fn check_layers(&self, _layers: &[&str]) -> Result<()> {
        Ok(())
    }

    /// The field `targets`, if there is one.
    fn targets(&self) -> Option<&Targets> {
        None
    }

    /// The field `bias`; none where there is no such field.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// The content of `adapter_config.json`.
    fn to_json(&self) -> Value;

    /// A copy.
    fn boxed(&self) -> Box<dyn Method>;
}

/// Names of the two files of an adapter's folder, for a method whose upstream gives them others than `adapter_config.json`
/// and `adapter_model.safetensors` or `adapter.safetensors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNames {
    /// The configuration: `adapter_…_config.json`, by which a folder without the usual file is recognised.
    pub config: &'static str,
    /// The tensors: a safetensors file.
    pub tensors: &'static str,
}

/// A configured method.
///
/// Implemented by a method's `XConfig`. [`plan`](Self::plan) says which adapters go where;
/// attaching, freezing, saving and all the rest is the core's. A method that puts one state on each linear layer
/// implements [`LinearMethod`](crate::method::LinearMethod), and has this by it.
pub trait Method: MethodConfig {
    /// Checks every field. Called before anything is touched. Default: [`check_fields`](MethodConfig::check_fields).
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the field, its value and what would be right.
    fn validate(&self) -> Result<()> {
        self.check_fields()
    }

    /// Plans the adapters for a model.
    ///
    /// # Errors
    ///
    /// Whatever makes the method impossible on this model.
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()>;

    /// What adapters of this configuration keep to. Default: what the registration says of usual ones.
    fn promises(&self) -> Promises {
        let info = self.info();
        Promises {
            identity_at_init: info.identity_at_init,
            mergeable: info.mergeable,
        }
    }

    /// Largest rank that the change of a weight can have (Lialin et al., section 3), where the
    /// configuration bounds it below the weight's own.
    fn max_rank(&self) -> Option<usize> {
        None
    }

    /// Whether upstream counts the method as prompt learning, where no tuner is around the model: the model's
    /// parameters are then `base_model.<name>` in files, and `base_model.model.<name>` otherwise. Default: soft
    /// prompts are.
    fn is_prompt_learning(&self) -> bool {
        self.info().family == Family::SoftPrompt
    }

    /// The names of the adapter's files, where upstream has others than the usual ones. Default: the usual ones.
    fn file_names(&self) -> Option<FileNames> {
        None
    }

    /// Whether a head that is the embedding table shall go on being it ([`TiedHead`](crate::TiedHead)): one saved copy
    /// then serves both. Default: no; the two are saved apart.
    fn ties_heads(&self) -> bool {
        false
    }

    /// Whether its adapters are copies that take the place of what lies below them, so that of several active ones the last
    /// alone shows. Default: no; changes add up.
    fn replaces(&self) -> bool {
        false
    }

    /// Whether a new adapter has values drawn at random. Attaching then takes a seed from the device's generator. Default: yes.
    fn draws(&self) -> bool {
        true
    }

    /// The statistics that the plan of a new adapter needs ([`Plan::calibration`]), for
    /// [`Calibrate::attach_on`](crate::calibration::Calibrate::attach_on) to gather. Default: none.
    fn statistics(&self) -> Option<CalibrationConfig> {
        None
    }

    /// What the method does in a training loop of `steps` steps besides being trained: a penalty, a schedule
    /// of ranks. Default: nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the configuration does not fit such a training.
    fn schedule(&self, _steps: usize, _states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        Ok(None)
    }

    /// Called when an adapter is saved, with copies of its states to change as the file shall hold them.
    /// Returns fields of the configuration that training has decided; they replace its own. Default: none.
    ///
    /// # Errors
    ///
    /// Whatever makes the states impossible to save.
    fn finalize(&self, _states: &mut States) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
}

/// Configuration fields that every method has; unknown ones of a loaded file are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// Upstream's task. `SEQ_CLS`, `TOKEN_CLS` and `QUESTION_ANS` train and save the model's heads
    /// whole; others change nothing.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Modules to train and save whole besides the adapter, as a rule a fresh head. Names match the end of a
    /// module's, as upstream's do: `norm` is every norm. Default: none.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// The model that the adapter was trained on; for the reader's information.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// That model's revision; for the reader's information.
    #[serde(default)]
    pub revision: Option<String>,
    /// Whether the adapter was saved for use and not for further training.
    #[serde(default)]
    pub inference_mode: bool,
    /// Fields of a loaded file that are unknown here; written back as they were.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Refuses a number that does not fit, saying what is `expected`.
///
/// # Errors
///
/// [`Error::Config`].
pub fn check_field<T: Copy + std::fmt::Debug>(
    info: &MethodInfo,
    field: &'static str,
    value: T,
    expected: &str,
    fits: impl Fn(T) -> bool,
) -> Result<()> {
    if fits(value) {
        return Ok(());
    }
    Err(Error::config(info.title, field, value, expected))
}

/// The configuration as upstream writes it: with its `peft_type`, and the method's name in `bias`. For
/// [`MethodConfig::to_json`].
pub fn upstream_json<C: MethodConfig + Serialize>(config: &C) -> Value {
    let info = config.info();
    let mut json = config_to_json(config, info);
    if let Some(bias) = json.get_mut("bias")
        && bias == "lora_only"
    {
        *bias = format!("{}_only", info.peft_type.to_lowercase()).into();
    }
    json
}

/// Serializes a configuration with its `peft_type`.
///
/// For implementing [`MethodConfig::to_json`].
pub fn config_to_json<C: Serialize>(config: &C, info: &MethodInfo) -> Value {
    let mut json = serde_json::to_value(config).expect("a configuration is plain data");
    if let Some(fields) = json.as_object_mut() {
        fields.insert("peft_type".into(), info.peft_type.into());
    }
    json
}

/// Reads a configuration; for implementing [`MethodInfo::parse`].
///
/// # Errors
///
/// [`Error::Checkpoint`] naming the field that does not fit.
pub fn config_from_json<C: Method + for<'de> Deserialize<'de> + 'static>(
    json: &Value,
) -> Result<Box<dyn Method>> {
    let mut config: C =
        serde_json::from_value(json.clone()).map_err(|error| Error::Checkpoint {
            path: Path::new(CONFIG_FILE).into(),
            reason: error.to_string(),
        })?;
    // What `config_to_json` adds.
    config.common_mut().unknown.remove("peft_type");
    config.validate()?;
    Ok(Box::new(config))
}
