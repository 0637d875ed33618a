//! A method: a configuration that plans adapters for a model.

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adapter::contract::{HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter};
use crate::adapter::erased::AnyAdapter;
use crate::adapter::init::Init;
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam, LayoutSite};
use crate::layout::targets::{NO_EMPTY_TEXT, Targets};
use crate::method::bias::Bias;
use crate::method::hooks::{MethodHooks, States};
use crate::method::module_to_save::ModuleToSave;
use crate::method::trainable_tokens::TrainableTokens;
use crate::nn::site::SiteKind;
use crate::{Error, Result};

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
            Self::Reference => "reference",
        })
    }
}

/// What is known of a method before it is configured: its registration.
///
/// A method crate lists its methods in one constant, `METHODS`. Loading by `peft_type`, the
/// conformance battery and the comparison suite all go by this.
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
    /// Whether a fresh adapter leaves the model's outputs as they were.
    pub identity_at_init: bool,
    /// Whether the trained adapter can be folded into the base weights.
    pub mergeable: bool,
    /// Reads the method's `adapter_config.json`.
    pub parse: fn(&Value) -> Result<Box<dyn Method>>,
    /// Whether a configuration in another library's layout is one of this method.
    pub recognises: fn(&Value) -> bool,
}

/// For [`MethodInfo::recognises`]: only by `peft_type`.
pub fn by_peft_type(_: &Value) -> bool {
    false
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

    /// Whether a head that is the embedding table shall go on being it ([`TiedHead`](crate::TiedHead)): one saved copy
    /// then serves both. Default: no; the two are saved apart.
    fn ties_heads(&self) -> bool {
        false
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

/// Builder methods for the common fields, on every configuration.
pub trait ConfigExt: Method + Sized {
    /// Trains and saves these modules whole.
    #[must_use]
    fn with_modules_to_save<S: Into<String>>(
        mut self,
        modules: impl IntoIterator<Item = S>,
    ) -> Self {
        self.common_mut().modules_to_save = Some(modules.into_iter().map(Into::into).collect());
        self
    }

    /// Upstream's task type, as in `SEQ_CLS`.
    #[must_use]
    fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.common_mut().task_type = Some(task_type.into());
        self
    }
}

impl<M: Method> ConfigExt for M {}

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
            path: Path::new(crate::checkpoint::read::CONFIG_FILE).into(),
            reason: error.to_string(),
        })?;
    // What `config_to_json` adds.
    config.common_mut().unknown.remove("peft_type");
    config.validate()?;
    Ok(Box::new(config))
}

/// A method as it was attached.
#[derive(Debug)]
pub(crate) struct AttachedMethod {
    pub(crate) method: Box<dyn Method>,
    /// What the model told, for the configuration file.
    pub(crate) notes: Map<String, Value>,
}

impl AttachedMethod {
    /// The content of `adapter_config.json`.
    pub(crate) fn to_json(&self) -> Value {
        let mut json = self.method.to_json();
        if let Some(fields) = json.as_object_mut() {
            for (field, value) in &self.notes {
                fields.insert(field.clone(), value.clone());
            }
            fields.insert("inference_mode".into(), true.into());
        }
        json
    }
}

/// Where an adapter goes.
#[derive(Clone, Debug)]
pub(crate) struct PlannedAdapter {
    /// Field path of a parameter or site.
    pub(crate) path: String,
    pub(crate) adapter: AnyAdapter,
}

/// What a method wants done to a model. Nothing happens until the whole plan is there.
pub struct Plan {
    pub(crate) adapters: Vec<PlannedAdapter>,
    pub(crate) trained_in_place: Vec<String>,
    /// Paths of what is saved whole.
    saved: Vec<String>,
    pub(crate) notes: Map<String, Value>,
    /// Shapes of the tensors of the file that is being loaded, by key.
    pub(crate) stored: HashMap<String, Vec<usize>>,
    init: Init,
    strict: bool,
    /// What layers have in common, by its key.
    common: Vec<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("adapters", &self.adapters)
            .field("trained_in_place", &self.trained_in_place)
            .field("saved", &self.saved)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl Plan {
    pub(crate) fn new(init: Init, strict: bool) -> Self {
        Self {
            adapters: Vec::new(),
            trained_in_place: Vec::new(),
            saved: Vec::new(),
            notes: Map::new(),
            stored: HashMap::new(),
            init,
            strict,
            common: Vec::new(),
        }
    }

    /// Whether a target name without a match is an error: yes for configurations of a user's, no
    /// for those of a checkpoint, whose tensors tell what it adapts.
    pub fn is_new(&self) -> bool {
        self.strict
    }

    /// The source of initial values.
    pub fn init(&mut self) -> &mut Init {
        &mut self.init
    }

    /// What layers with an equal `key` have in common: made for the first of them, and a clone for the others.
    pub fn in_common<K, V>(&mut self, key: K, make: impl FnOnce() -> V) -> V
    where
        K: PartialEq + Send + 'static,
        V: Clone + Send + 'static,
    {
        let made = self.common.iter().find_map(|made| {
            let (of, value) = made.downcast_ref::<(K, V)>()?;
            (*of == key).then_some(value)
        });
        if let Some(value) = made {
            return value.clone();
        }
        let value = make();
        self.common.push(Box::new((key, value.clone())));
        value
    }

    /// Shape of the tensor `key` below `layer` in the file that is being loaded: for what upstream decided
    /// without writing it into its configuration. `None` where there is no file, or no such tensor in it.
    pub fn stored_shape(&self, layer: &Layer, key: &str) -> Option<&[usize]> {
        let key = format!("base_model.model.{}.{key}", layer.name);
        self.stored.get(&key).map(Vec::as_slice)
    }

    /// Records what only the model tells (its width, say) in `adapter_config.json`.
    pub fn set_config_field(&mut self, field: &str, value: impl Into<Value>) {
        self.notes.insert(field.to_string(), value.into());
    }

    /// Whether a parameter is saved whole, for `modules_to_save` or as a task's head: it gets no adapter
    /// besides, as upstream has it. What is planned for it all the same is dropped.
    pub fn is_saved(&self, param: &LayoutParam) -> bool {
        self.saved.contains(&param.path)
    }

    /// Puts `adapter` on a parameter.
    pub fn adapt_weight(&mut self, param: &LayoutParam, adapter: impl WeightAdapter) {
        self.push(&param.path, AnyAdapter::weight(adapter));
    }

    /// Puts `adapter` at a site for hidden states.
    ///
    /// # Panics
    ///
    /// At a site for embeddings or for keys and values, where no hidden state flows by.
    pub fn adapt_hidden(&mut self, site: &LayoutSite, adapter: impl HiddenAdapter) {
        assert!(
            !matches!(site.kind, SiteKind::Embeddings | SiteKind::KeyValue),
            "`{}` takes virtual tokens",
            site.name
        );
        self.push(&site.path, AnyAdapter::hidden(adapter));
    }

    /// Puts virtual tokens at a site for embeddings.
    ///
    /// # Panics
    ///
    /// At any other site.
    pub fn add_prompt(&mut self, site: &LayoutSite, adapter: impl PromptAdapter) {
        assert_eq!(
            site.kind,
            SiteKind::Embeddings,
            "`{}` takes no virtual tokens",
            site.name
        );
        self.push(&site.path, AnyAdapter::prompt(adapter));
    }

    /// Puts virtual tokens' keys and values at a site for such.
    ///
    /// # Panics
    ///
    /// At any other site.
    pub fn add_prefix(&mut self, site: &LayoutSite, adapter: impl KeyValueAdapter) {
        assert_eq!(
            site.kind,
            SiteKind::KeyValue,
            "`{}` takes no keys and values",
            site.name
        );
        self.push(&site.path, AnyAdapter::key_value(adapter));
    }

    /// Trains a copy of a parameter in its place, as `modules_to_save` does; the base keeps its
    /// value. Counted as a saved module. Other adapters planned there are dropped; nothing happens
    /// where the parameter itself trains.
    pub fn save_param(&mut self, layout: &Layout, param: &LayoutParam) {
        self.save_copy(layout, param, None);
    }

    /// As [`save_param`](Self::save_param), of a table whose tied head follows the copy, if `param` is such a table or
    /// the weight of its head.
    fn save_tied(&mut self, layout: &Layout, param: &LayoutParam) {
        let pair = |(head, table): &(&LayoutParam, &LayoutParam)| {
            head.path == param.path || table.path == param.path
        };
        let Some((head, table)) = layout.tied_weights().find(pair) else {
            return self.save_param(layout, param);
        };
        self.save_copy(layout, table, Some(head));
        self.saved.push(head.path.clone());
    }

    fn save_copy(&mut self, layout: &Layout, param: &LayoutParam, head: Option<&LayoutParam>) {
        if self.trained_in_place.contains(&param.path) || self.is_saved(param) {
            return;
        }
        self.adapters.retain(|planned| planned.path != param.path);
        let copy = ModuleToSave::of_module(param, is_transposed(layout, param), head);
        self.push(&param.path, copy);
        self.saved.push(param.path.clone());
    }

    /// Trains a copy of a bias in its place; the base keeps its value. `key` is its name in the
    /// checkpoint where that is not upstream's name of the parameter.
    ///
    /// # Panics
    ///
    /// If the parameter is not of rank 1.
    pub fn train_bias(&mut self, param: &LayoutParam, key: Option<String>) {
        self.adapt_weight(param, ModuleToSave::of_bias(param, key));
    }

    /// As [`train_bias`](Self::train_bias), from another value than the base's, of its shape.
    ///
    /// # Panics
    ///
    /// If the parameter is not of rank 1.
    pub fn train_bias_from(&mut self, param: &LayoutParam, key: Option<String>, value: Tensor<1>) {
        self.adapt_weight(param, ModuleToSave::of_bias(param, key).with_value(value));
    }

    /// Trains copies of some rows of an embedding table `[rows, d]` in their place; the table keeps its own.
    /// `key` is their name below the layer in the checkpoint.
    ///
    /// # Panics
    ///
    /// If the parameter is not of rank 2, or has no such row.
    pub fn train_tokens(&mut self, param: &LayoutParam, rows: &[usize], key: &str) {
        let shape = param.shape();
        assert!(
            shape.len() == 2 && rows.iter().all(|row| *row < shape[0]),
            "{} has {shape:?}, and no row of {rows:?}",
            param.name
        );
        let values = if self.strict {
            TrainableTokens::of(param, rows)
        } else {
            let like = (&param.device(), param.dtype());
            self.init.zeros([rows.len(), shape[1]], like)
        };
        self.adapt_weight(param, TrainableTokens::new(values, rows, key));
    }

    /// Whether nothing is planned so far.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty() && self.trained_in_place.is_empty()
    }

    /// Trains a parameter itself. Its base value is lost, so it cannot be disabled, detached or
    /// saved as an adapter: for full fine-tuning.
    ///
    /// A tied head is trained with its table.
    pub fn train_in_place(&mut self, param: &LayoutParam) {
        if param.is_tied() {
            return;
        }
        self.adapters.retain(|planned| planned.path != param.path);
        self.trained_in_place.push(param.path.clone());
    }

    fn push(&mut self, path: &str, adapter: AnyAdapter) {
        if self.saved.iter().any(|saved| saved == path) {
            return;
        }
        self.adapters.push(PlannedAdapter {
            path: path.to_string(),
            adapter,
        });
    }

    /// Plans the copies that `modules_to_save` and the task ask for.
    pub(crate) fn save_modules(&mut self, method: &dyn Method, layout: &Layout) -> Result<()> {
        let common = method.common();
        let named = common.modules_to_save.as_deref().unwrap_or_default();
        if named.iter().any(String::is_empty) {
            let (title, field) = (method.info().title, "modules_to_save");
            return Err(Error::config(title, field, named, NO_EMPTY_TEXT));
        }
        let save = |plan: &mut Self, param: &LayoutParam| {
            if method.ties_heads() {
                plan.save_tied(layout, param);
            } else {
                plan.save_param(layout, param);
            }
        };
        let mut unmatched = Vec::new();
        for name in named {
            let mut found = false;
            for param in &layout.params {
                // Upstream takes any end of a module's name, `norm` for `input_layernorm`.
                if module_names(&layout.layer_of(param).name)
                    .any(|module| !name.is_empty() && module.ends_with(name))
                {
                    found = true;
                    save(self, param);
                }
            }
            if !found {
                unmatched.push(name);
            }
        }
        // Upstream lists both of its usual names for heads, and a model has one of them.
        let usual = |name: &String| name == "classifier" || name == "score";
        let other = named
            .iter()
            .any(|name| usual(name) && !unmatched.contains(&name));
        if let Some(name) = unmatched.into_iter().find(|name| !(other && usual(name))) {
            let available = layout.listing();
            return Err(Error::NoModuleToSave {
                name: name.clone(),
                available,
            });
        }
        let task = common.task_type.as_deref();
        if let Some(task @ ("SEQ_CLS" | "TOKEN_CLS" | "QUESTION_ANS")) = task {
            let mut heads = layout
                .params
                .iter()
                .filter(|param| layout.layer_of(param).head)
                .peekable();
            if heads.peek().is_none() && named.is_empty() && self.strict {
                return Err(Error::config(
                    method.info().title,
                    "task_type",
                    task,
                    "such a task trains the head: name it in modules_to_save, as this model does not say which it is",
                ));
            }
            heads.for_each(|param| save(self, param));
        }
        Ok(())
    }
}

/// Whether upstream stores the parameter transposed.
pub(crate) fn is_transposed(layout: &Layout, param: &LayoutParam) -> bool {
    let layer: &Layer = layout.layer_of(param);
    layer.kind == LayerKind::Linear && param.field() == "weight"
}

/// A layer's name and those of the modules it is in.
fn module_names(layer: &str) -> impl Iterator<Item = &str> {
    layer
        .char_indices()
        .filter(|(_, c)| *c == '.')
        .map(|(at, _)| &layer[..at])
        .chain(std::iter::once(layer))
}
