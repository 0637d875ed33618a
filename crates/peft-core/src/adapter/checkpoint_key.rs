//! How an adapter's parameters are called and laid out in a checkpoint.

use std::collections::HashSet;

use burn::tensor::TensorData;

use crate::adapter::indices::Indices;
use crate::upstream::{ADAPTERHUB_FILE, MODEL_FILE, PREFIX, PROMPT_PREFIX};

/// Stands for the adapter's name in a key.
const ADAPTER: &str = "{adapter}";

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
    /// Below the adapted layer, where a file may hold zeros that are no field's.
    Zeros(String),
    /// A whole name within the model, of a value that is no field's.
    Constant(String, Constant),
}

/// A tensor that a file holds beside a state's parameters, and that no adapter changes: a copy of what the model has. It
/// is written with the state. A file may lack it.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    pub(crate) value: TensorData,
    /// Whether a file in which it has other values is read, too.
    pub(crate) any: bool,
}

/// The rank that a file has a field in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The field's.
    Same,
    /// A vector, as a matrix of one column.
    Upright,
    /// A matrix of one row, as a vector.
    Flat,
}

/// How one parameter of an adapter is called and laid out in a checkpoint.
///
/// A parameter is a `Param` of floats or of integers. Integers are never trained. A file has them in the number format
/// that the state has; reading takes U8, I16, I32 and I64, if the values fit. A tensor that is not in a `Param` is a
/// constant that no file holds.
#[derive(Clone, Debug)]
pub struct CheckpointKey {
    pub(crate) field: String,
    /// The same in AdapterHub's layout, where that is something else.
    in_adapterhub: Option<Box<CheckpointKey>>,
    key: Key,
    pub(crate) transposed: bool,
    pub(crate) form: Form,
    /// Another shape in the file.
    pub(crate) shaped: Option<Vec<usize>>,
    pub(crate) columns: Option<Columns>,
    pub(crate) rows: Option<Columns>,
    copies: Vec<Copy>,
    pub(crate) twins: Vec<CheckpointKey>,
    pub(crate) indices: Option<Indices>,
    sparse: bool,
}

/// Where upstream writes a tensor once more.
#[derive(Clone, Debug)]
struct Copy {
    /// The layer, if it is another than the state's.
    layer: Option<String>,
    /// The key below it.
    key: String,
}

impl CheckpointKey {
    fn new(field: &str, key: Key) -> Self {
        Self {
            field: field.into(),
            in_adapterhub: None,
            key,
            transposed: false,
            form: Form::Same,
            shaped: None,
            columns: None,
            rows: None,
            copies: Vec::new(),
            twins: Vec::new(),
            indices: None,
            sparse: false,
        }
    }

    /// The state's field `field` (with dots for nested modules) as `key` below the adapted layer:
    /// `lora_A.weight` becomes `base_model.model.<layer>.lora_A.weight`. In AdapterHub's layout it is
    /// `<layer>.adapters.<adapter's name>.<key>`; `{adapter}` in `key` says that the name is there instead.
    pub fn layer(field: &str, key: &str) -> Self {
        Self::new(field, Key::Layer(key.into()))
    }

    /// The field as the parameter called `name` in the model: `base_model.model.<name>`, and
    /// `base_model.<name>` for soft prompts.
    pub fn named(field: &str, name: &str) -> Self {
        Self::new(field, Key::Named(name.into()))
    }

    /// The field as `key`, without any prefix; `{adapter}` in it stands for the adapter's name.
    pub fn root(field: &str, key: &str) -> Self {
        Self::new(field, Key::Root(key.into()))
    }

    /// The field is not in the file: the configuration says all about it, so that it is the same
    /// again wherever the adapter is planned.
    pub fn unsaved(field: &str) -> Self {
        Self::new(field, Key::Unsaved)
    }

    /// No field: `key` below the layer is where upstream writes zeros in place of a part that an adapter may lack. A file
    /// may hold them, of any shape, and other numbers there are refused. Nothing is written.
    pub fn zeros(key: &str) -> Self {
        Self::new("", Key::Zeros(key.into()))
    }

    /// No field: the tensor called `name` in the model, as [`named`](Self::named) has it. A file in which it has other
    /// values is refused.
    pub(crate) fn constant(name: &str, value: TensorData) -> Self {
        let constant = Constant { value, any: false };
        Self::new("", Key::Constant(name.into(), constant))
    }

    /// The same, where a file may have any values: they mean nothing here.
    pub(crate) fn any_constant(name: &str, value: TensorData) -> Self {
        let constant = Constant { value, any: true };
        Self::new("", Key::Constant(name.into(), constant))
    }

    /// What stands for the field in AdapterHub's layout, where that is not the same below the layer. The field that `key`
    /// names does not matter. `{adapter}` in the key is the adapter's name: `loras.{adapter}.lora_A` becomes
    /// `<layer>.loras.<adapter's name>.lora_A`.
    #[must_use]
    pub fn in_adapterhub(mut self, key: CheckpointKey) -> Self {
        self.in_adapterhub = Some(Box::new(key));
        self
    }

    /// How the field lies in a file of this style.
    pub(crate) fn of(&self, style: Style) -> &Self {
        match &self.in_adapterhub {
            Some(key) if style == Style::AdapterHub => key,
            _ => self,
        }
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

    /// Stored as a matrix of one column, `[n, 1]`. For fields of rank 1.
    #[must_use]
    pub fn upright(mut self) -> Self {
        self.form = Form::Upright;
        self
    }

    /// Stored as a vector, `[n]`. For fields of rank 2 that have one row.
    #[must_use]
    pub fn flat(mut self) -> Self {
        self.form = Form::Flat;
        self
    }

    /// Stored in another shape, of as many elements in the same order (in that of the transposed, behind
    /// [`transposed`](Self::transposed)): a matrix as the kernel of a convolution, say. Not with columns or rows.
    #[must_use]
    pub fn shaped(mut self, shape: &[usize]) -> Self {
        self.shaped = Some(shape.to_vec());
        self
    }

    /// The field's last axis is elements `from` and up of one of `of`: several places share one tensor in the
    /// file, and together they must be all of it.
    #[must_use]
    pub fn columns(mut self, from: usize, of: usize) -> Self {
        self.columns = Some(Columns { from, of });
        self
    }

    /// The field's rows are rows `from` and up of one of `of`, for fields of rank 2 that are not transposed: states, or
    /// fields of one state, share one tensor in the file, and together they must be all of it. It goes together with
    /// [`columns`](Self::columns).
    #[must_use]
    pub fn rows(mut self, from: usize, of: usize) -> Self {
        self.rows = Some(Columns { from, of });
        self
    }

    /// Upstream writes a copy under another key below the layer, too: it is read, must be equal, and
    /// is not written. Of a tensor that several states share, each state may name one.
    #[must_use]
    pub fn also(mut self, key: &str) -> Self {
        self.copies.push(Copy {
            layer: None,
            key: key.into(),
        });
        self
    }

    /// As [`also`](Self::also), below another layer, which has no state of its own.
    #[must_use]
    pub fn also_below(mut self, layer: &str, key: &str) -> Self {
        self.copies.push(Copy {
            layer: Some(layer.into()),
            key: key.into(),
        });
        self
    }

    /// Upstream writes the same values under the key of `twin`, too, perhaps laid out otherwise: written here as well.
    /// A file may lack it; where it is there, it must be equal. There can be several.
    #[must_use]
    pub fn twin(mut self, twin: CheckpointKey) -> Self {
        self.twins.push(twin);
        self
    }

    /// The field's integers are indices into a tensor of `shape`. A file in which one is negative or too large is
    /// refused. For fields of integers.
    ///
    /// With one axis, each integer is an index below `shape[0]`: into the flattened weight, the rows of a table, the
    /// vectors of a bank. With several, the field is `[axes, count]`, `count` points: its row `a` holds indices along
    /// axis `a`, each below `shape[a]`.
    #[must_use]
    pub fn indices(mut self, shape: &[usize]) -> Self {
        self.indices = Some(Indices::new(shape));
        self
    }

    /// None of the indices, or points, is there twice: a file in which one is, is refused. Call it behind
    /// [`indices`](Self::indices).
    #[must_use]
    pub(crate) fn distinct(mut self) -> Self {
        if let Some(indices) = &mut self.indices {
            indices.distinct = true;
        }
        self
    }

    /// Each element of the field changes one element of the weight, and the adapter changes no others: the counts of
    /// changed elements go by it. For fields of floats. Without such a field, all of the weight counts as changed.
    #[must_use]
    pub fn sparse(mut self) -> Self {
        self.sparse = true;
        self
    }

    /// The key where a file may hold zeros.
    pub(crate) fn zeros_key(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        match &self.key {
            Key::Zeros(key) => Self::layer("", key).key(style, layer, adapter),
            _ => None,
        }
    }

    /// The key and the value of a constant.
    pub(crate) fn as_constant(&self, style: Style) -> Option<(String, &Constant)> {
        match &self.key {
            Key::Constant(name, constant) => Some((format!("{}{name}", style.prefix()), constant)),
            _ => None,
        }
    }

    /// The keys of the copies.
    pub(crate) fn copies(&self, style: Style, layer: &str, adapter: &str) -> Vec<String> {
        let copies = self.of(style).copies.iter();
        let keys = copies.map(|copy| {
            let layer = copy.layer.as_deref().unwrap_or(layer);
            Self::layer("", &copy.key).key(style, layer, adapter)
        });
        keys.flatten().collect()
    }

    /// How many segments of the key lead to the layer, for a tensor of one.
    pub(crate) fn segments_to_layer(&self, style: Style, layer: &str) -> Option<usize> {
        match &self.of(style).key {
            Key::Named(_) | Key::Root(_) | Key::Unsaved | Key::Zeros(_) | Key::Constant(..) => None,
            Key::Layer(_) => Some(format!("{}{layer}", style.prefix()).split('.').count()),
        }
    }

    /// The key for a state at `layer` of the adapter `adapter`.
    pub(crate) fn key(&self, style: Style, layer: &str, adapter: &str) -> Option<String> {
        Some(match (&self.of(style).key, style) {
            (Key::Unsaved | Key::Zeros(_) | Key::Constant(..), _) => return None,
            (Key::Root(key), _) => key.replace(ADAPTER, adapter),
            (Key::Named(name), style) => format!("{}{name}", style.prefix()),
            (Key::Layer(key), Style::AdapterHub) if key.contains(ADAPTER) => {
                format!("{layer}.{}", key.replace(ADAPTER, adapter))
            }
            (Key::Layer(key), Style::AdapterHub) => format!("{layer}.adapters.{adapter}.{key}"),
            (Key::Layer(key), style) => {
                let key = key.replace(ADAPTER, adapter);
                format!("{}{layer}.{key}", style.prefix())
            }
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

/// The fields whose elements are the changed ones; none if the adapter changes all of the weight.
pub(crate) fn sparse_fields(specs: &[CheckpointKey]) -> HashSet<String> {
    let sparse = specs.iter().filter(|spec| spec.sparse);
    sparse.map(|spec| spec.field.clone()).collect()
}

/// The fields whose values a file holds no more than `count` times besides, under the keys of twins.
pub(crate) fn fields_with_twins_up_to(specs: &[CheckpointKey], count: usize) -> HashSet<String> {
    let few = specs.iter().filter(|spec| spec.twins.len() <= count);
    few.map(|spec| spec.field.clone()).collect()
}

/// A part of a tensor: elements from `from` on along an axis that has `of`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) from: usize,
    pub(crate) of: usize,
}
