//! How an adapter's parameters are called and laid out in a checkpoint.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::tensor::TensorData;
use serde_json::Value;

use crate::adapter::erased::ErasedModule;
use crate::checkpoint::read::{ADAPTERHUB_FILE, MODEL_FILE};
use crate::checkpoint::transpose::transposed_bytes;
use crate::method::contract::Method;

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    HuggingFace,
    /// Hugging Face PEFT's for soft prompts, where the model is in no tuner.
    HuggingFacePrompt,
    AdapterHub,
}

/// In front of the names of models, in Hugging Face PEFT's files.
const PREFIX: &str = "base_model.model.";
/// The same for soft prompts.
const PROMPT_PREFIX: &str = "base_model.";

impl Style {
    pub(crate) fn of(config: &Value, method: &dyn Method) -> Self {
        let adapterhub = config["version"]
            .as_str()
            .is_some_and(|v| v.starts_with("adapters."));
        if adapterhub {
            Self::AdapterHub
        } else {
            Self::upstream(method)
        }
    }

    /// Hugging Face PEFT's for a method.
    pub(crate) fn upstream(method: &dyn Method) -> Self {
        if method.is_prompt_learning() {
            Self::HuggingFacePrompt
        } else {
            Self::HuggingFace
        }
    }

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
    transposed: bool,
    columns: Option<Columns>,
    copy: Option<String>,
    twin: Option<Box<CheckpointKey>>,
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

/// Where one parameter of an adapter's state is in a file.
pub(crate) struct Stored {
    /// None of what is not saved.
    pub(crate) key: Option<String>,
    transposed: bool,
    columns: Option<Columns>,
}

impl Stored {
    /// The tensor's shape in the file, for a parameter of `shape`.
    pub(crate) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        if let (Some(columns), Some(last)) = (self.columns, whole.last_mut()) {
            *last = columns.of;
        }
        if self.transposed {
            whole.reverse();
        }
        whole
    }

    /// How a parameter of `shape` lies in the file's tensor.
    fn runs(&self, shape: &[usize]) -> Runs {
        let (width, others) = shape.split_last().expect("a part has an axis");
        let others = others.iter().product();
        let (outer, inner) = if self.transposed {
            (1, others)
        } else {
            (others, 1)
        };
        Runs {
            outer,
            width: *width,
            inner,
        }
    }

    /// The value of a parameter of `shape`, from the file's tensor, which has the right shape.
    pub(crate) fn value(&self, tensor: &TensorData, shape: &[usize]) -> TensorData {
        let mut value = tensor.clone();
        if let Some(columns) = self.columns {
            let runs = self.runs(shape);
            let (size, whole) = (tensor.dtype().size(), tensor.as_bytes());
            let mut bytes = Vec::with_capacity(runs.outer * runs.width * runs.inner * size);
            for run in 0..runs.outer {
                bytes.extend_from_slice(&whole[columns.bytes(&runs, run, size)]);
            }
            let mut own = shape.to_vec();
            if self.transposed {
                own.reverse();
            }
            value = TensorData::from_bytes_vec(bytes, own, tensor.dtype());
        }
        if self.transposed {
            transpose(value)
        } else {
            value
        }
    }

    /// The file's tensor with a parameter's `value` in it; `before` is what other places left there.
    ///
    /// # Panics
    ///
    /// If there is something in the place of the value already.
    pub(crate) fn put(&self, before: Option<TensorData>, value: TensorData) -> TensorData {
        let shape = value.shape().to_vec();
        let value = if self.transposed {
            transpose(value)
        } else {
            value
        };
        let Some(columns) = self.columns else {
            assert!(
                before.is_none(),
                "two places of the adapter write {:?}",
                self.key
            );
            return value;
        };
        let (whole, dtype) = (self.shape(&shape), value.dtype());
        let mut bytes = match before {
            Some(before) => before.as_bytes().to_vec(),
            None => vec![0; whole.iter().product::<usize>() * dtype.size()],
        };
        let runs = self.runs(&shape);
        let run_bytes = runs.width * runs.inner * dtype.size();
        for (run, part) in value.as_bytes().chunks_exact(run_bytes).enumerate() {
            bytes[columns.bytes(&runs, run, dtype.size())].copy_from_slice(part);
        }
        TensorData::from_bytes_vec(bytes, whole, dtype)
    }
}

/// The last two axes of row-major data, swapped.
pub(crate) fn transpose(data: TensorData) -> TensorData {
    let [rows, columns] = [data.shape()[0], data.shape()[1]];
    let (source, shape) = (data.as_bytes(), [rows, columns]);
    let bytes = match data.dtype().size() {
        2 => transposed_bytes::<2>(source, shape),
        4 => transposed_bytes::<4>(source, shape),
        8 => transposed_bytes::<8>(source, shape),
        size => unreachable!("no float tensor has elements of {size} bytes"),
    };
    TensorData::from_bytes_vec(bytes, vec![columns, rows], data.dtype())
}

/// A part of a tensor: elements from `from` on along an axis that has `of`.
#[derive(Clone, Copy, Debug)]
struct Columns {
    from: usize,
    of: usize,
}

/// Row-major data as a part lies in it: `outer` runs of `width` of the `of` elements of the axis, each of
/// `inner` numbers.
struct Runs {
    outer: usize,
    width: usize,
    inner: usize,
}

impl Columns {
    /// Where the bytes of run `run` are in the whole.
    fn bytes(self, runs: &Runs, run: usize, size: usize) -> Range<usize> {
        let from = (run * self.of + self.from) * runs.inner * size;
        from..from + runs.width * runs.inner * size
    }
}

/// By field, for every parameter of an adapter's state: where it is, and where its twin is.
pub(crate) type Specs = HashMap<String, (Stored, Option<Stored>)>;

pub(crate) fn specs_by_field(
    adapter: &dyn ErasedModule,
    style: Style,
    layer: &str,
    name: &str,
) -> Specs {
    let stored = |spec: &CheckpointKey| Stored {
        key: spec.key(style, layer, name),
        transposed: spec.transposed,
        columns: spec.columns,
    };
    adapter
        .tensors()
        .into_iter()
        .map(|spec| {
            let twin = spec.twin.as_deref().map(stored);
            (spec.field.clone(), (stored(&spec), twin))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(transposed: bool, from: usize, of: usize) -> Stored {
        Stored {
            key: Some("key".into()),
            transposed,
            columns: Some(Columns { from, of }),
        }
    }

    fn data(values: &[f32], shape: [usize; 2]) -> TensorData {
        TensorData::new(values.to_vec(), shape)
    }

    #[test]
    fn places_share_a_tensor_by_columns() {
        let whole = data(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let (left, right) = (
            data(&[1.0, 4.0], [2, 1]),
            data(&[2.0, 3.0, 5.0, 6.0], [2, 2]),
        );
        let (first, second) = (stored(false, 0, 3), stored(false, 1, 3));
        assert_eq!(second.shape(&[2, 2]), [2, 3]);
        assert_eq!(first.value(&whole, &[2, 1]), left);
        assert_eq!(second.value(&whole, &[2, 2]), right);
        let half = second.put(None, right);
        assert_eq!(first.put(Some(half), left), whole);
    }

    #[test]
    fn columns_are_counted_before_transposing() {
        // As above, transposed.
        let whole = data(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0], [3, 2]);
        let right = data(&[2.0, 3.0, 5.0, 6.0], [2, 2]);
        let second = stored(true, 1, 3);
        assert_eq!(second.shape(&[2, 2]), [3, 2]);
        assert_eq!(second.value(&whole, &[2, 2]), right);
        let first = stored(true, 0, 3);
        let half = second.put(None, right);
        assert_eq!(first.put(Some(half), data(&[1.0, 4.0], [2, 1])), whole);
    }

    #[test]
    fn columns_of_a_vector_are_its_elements() {
        let whole = TensorData::new(vec![1.0_f32, 2.0, 3.0], [3]);
        let last = TensorData::new(vec![3.0_f32], [1]);
        assert_eq!(stored(false, 2, 3).value(&whole, &[1]), last);
        let put = stored(false, 2, 3).put(None, last);
        assert_eq!(put, TensorData::new(vec![0.0_f32, 0.0, 3.0], [3]));
    }
}
