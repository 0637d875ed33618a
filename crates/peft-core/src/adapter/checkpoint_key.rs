//! How an adapter's parameters are called and laid out in a checkpoint.

use std::collections::HashSet;

use crate::upstream::{ADAPTERHUB_FILE, MODEL_FILE, PREFIX, PROMPT_PREFIX};

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    HuggingFace,
    /// Hugging Face PEFT's for soft prompts, where the model is in no tuner.
    HuggingFacePrompt,
    AdapterHub,
}

impl Style {
    /// In front of the model's names.
    fn prefix(self) -> &'static str {
        match self {
            Self::HuggingFace => PREFIX,
            Self::HuggingFacePrompt => PROMPT_PREFIX,
            Self::AdapterHub => "",
        }
    }

    /// What a key stands for that this crate wrote before it knew upstream's prefix for soft prompts.
    pub(crate) fn former_spelling(self, key: &str) -> Option<String> {
        let name = key.strip_prefix(PREFIX)?;
        (self == Self::HuggingFacePrompt).then(|| format!("{PROMPT_PREFIX}{name}"))
    }

    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::HuggingFace | Self::HuggingFacePrompt => MODEL_FILE,
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
pub struct CheckpointKey {
    pub(crate) field: String,
    key: Key,
    pub(crate) transposed: bool,
    pub(crate) columns: Option<Columns>,
    copy: Option<String>,
    pub(crate) twin: Option<Box<CheckpointKey>>,
}

impl CheckpointKey {
    fn new(field: &str, key: Key) -> Self {
        Self {
            field: field.into(),
            key,
            transposed: false,
            columns: None,
            copy: None,
            twin: None,
        }
    }

    /// The state's field `field` (with dots for nested modules) as `key` below the adapted layer:
    /// `lora_A.weight` becomes `base_model.model.<layer>.lora_A.weight`.
    pub fn layer(field: &str, key: &str) -> Self {
        Self::new(field, Key::Layer(key.into()))
    }

    /// The field as the parameter called `name` in the model: `base_model.model.<name>`, and
    /// `base_model.<name>` for soft prompts.
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

    /// The same, of a field of the module in `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    /// Stored transposed, as torch's linear weights are. For fields of rank 2.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// The field's last axis is elements `from` and up of one of `of`: several places share one tensor in the
    /// file, and together they must be all of it.
    #[must_use]
    pub fn columns(mut self, from: usize, of: usize) -> Self {
        self.columns = Some(Columns { from, of });
        self
    }

    /// Upstream writes a copy under another key below the layer, too: it is read, must be equal, and
    /// is not written.
    #[must_use]
    pub fn also(mut self, key: &str) -> Self {
        self.copy = Some(key.into());
        self
    }

    /// Upstream writes the same values under the key of `twin`, too, perhaps laid out otherwise: written here as well.
    /// A file may lack it; where it is there, it must be equal.
    #[must_use]
    pub fn twin(mut self, twin: CheckpointKey) -> Self {
        self.twin = Some(Box::new(twin));
        self
    }

    /// The key of the copy.
    pub(crate) fn copy(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        let key = Key::Layer(self.copy.clone()?);
        Self::new("", key).key(style, layer, adapter)
    }

    /// How many segments of the key lead to the layer, for a tensor of one.
    pub(crate) fn segments_to_layer(&self, style: Style, layer: &str) -> Option<usize> {
        match &self.key {
            Key::Named(_) | Key::Root(_) | Key::Unsaved => None,
            Key::Layer(_) => Some(format!("{}{layer}", style.prefix()).split('.').count()),
        }
    }

    /// The key for a state at `layer` of the adapter `adapter`.
    pub(crate) fn key(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        Some(match (&self.key, style) {
            (Key::Unsaved, _) => return None,
            (Key::Root(key), _) => key.clone(),
            (Key::Named(name), style) => format!("{}{name}", style.prefix()),
            (Key::Layer(key), Style::AdapterHub) => format!("{layer}.adapters.{adapter}.{key}"),
            (Key::Layer(key), style) => format!("{}{layer}.{key}", style.prefix()),
        })
    }
}

/// The fields that are listed.
pub(crate) fn field_names(specs: &[CheckpointKey]) -> HashSet<String> {
    specs.iter().map(|spec| spec.field.clone()).collect()
}

/// The fields that no file holds.
pub(crate) fn unsaved_fields(specs: &[CheckpointKey]) -> HashSet<String> {
    let unsaved = specs.iter().filter(|spec| matches!(spec.key, Key::Unsaved));
    unsaved.map(|spec| spec.field.clone()).collect()
}

/// A part of a tensor: elements from `from` on along an axis that has `of`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) from: usize,
    pub(crate) of: usize,
}
