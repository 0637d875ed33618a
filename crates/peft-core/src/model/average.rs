//! The mean of several adapters, as a new one.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::{Map, Value};

use crate::attached::traversal;
use crate::error::{Error, Result};
use crate::model::load::{Source, Stored, install_stored};
use crate::model::save::{Saved, saved};
use crate::model::states::unmerged;

/// Fields of a configuration that say nothing about what the tensors mean, or that the tensors' keys say again.
const OF_NO_MATTER: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "model_class",
    "model_name",
    "model_type",
    "modules_to_save",
    "name",
    "peft_version",
    "revision",
    "target_modules",
    "version",
];

/// See [`AdapterState::average_adapters`](crate::state::AdapterState::average_adapters).
pub(crate) fn average<M: Module>(model: &M, name: &str, weights: &[(&str, f64)]) -> Result<M> {
    let attached = unmerged(model)?;
    let names: Vec<&str> = weights.iter().map(|(name, _)| *name).collect();
    attached.refuse_unknown(&names)?;
    let refuse = |adapter: &str, reason: String| Error::Tensors {
        adapter: adapter.into(),
        reason,
    };
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let shares: Vec<f64> = weights.iter().map(|(_, weight)| weight / sum).collect();
    if weights.is_empty() || !shares.iter().all(|share| share.is_finite()) {
        let reason = "a mean needs at least one adapter, and weights whose sum is not 0";
        return Err(refuse(name, reason.into()));
    }
    let as_saved = |name: &&str| saved(traversal::gather(model), name, names[0]);
    let adapters = names.iter().map(as_saved);
    let mut adapters = adapters.collect::<Result<Vec<Saved>>>()?.into_iter();
    let first = adapters.next().expect("there is at least one");
    let mut means: BTreeMap<String, Mean> = BTreeMap::new();
    for (key, data) in &first.tensors {
        means.insert(key.clone(), Mean::new(data, shares[0]));
    }
    for ((other, name), share) in adapters.zip(&names[1..]).zip(&shares[1..]) {
        let differ = differing(&first, &other).map(|field| {
            format!(
                "its configuration differs from that of `{}`: {field}",
                names[0]
            )
        });
        let wrong = differ.or_else(|| add(&mut means, &other.tensors, *share, names[0]));
        if let Some(reason) = wrong {
            return Err(refuse(name, reason));
        }
    }
    let tensors = means.into_iter().map(|(key, mean)| (key, mean.data()));
    let adapter = Stored {
        key_name: names[0],
        method: first.method,
        style: first.style,
        tensors: tensors.collect(),
    };
    let source = Source {
        dir: None,
        path: Path::new(name),
    };
    install_stored(model, name, adapter, source)
}

/// The first field of two configurations in which they say different things about the tensors, with both values.
fn differing(first: &Saved, other: &Saved) -> Option<String> {
    let (a, b) = (first.method.info(), other.method.info());
    if a.peft_type != b.peft_type {
        return Some(format!("one is {}, the other {}", a.title, b.title));
    }
    let (a, b) = (meaning(&first.config), meaning(&other.config));
    let fields = a.keys().chain(b.keys());
    let mut unequal = fields.filter(|field| a.get(*field) != b.get(*field));
    unequal.next().map(|field| {
        let words = |fields: &Map<String, Value>| {
            let value = fields.get(field);
            value.map_or("missing".to_string(), Value::to_string)
        };
        format!("`{field}` is {} there and {} here", words(&a), words(&b))
    })
}

/// The fields that say what tensors mean, those of inner objects among them. Dropout is none of them.
fn meaning(config: &Value) -> Map<String, Value> {
    let mut found = Map::new();
    for (field, value) in config.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) if field == "config" => found.extend(meaning(value)),
            _ if OF_NO_MATTER.contains(&field.as_str()) || field.contains("dropout") => {}
            _ => {
                found.insert(field.clone(), value.clone());
            }
        }
    }
    found
}

/// A tensor of the mean, as far as it is added up.
struct Mean {
    data: TensorData,
    sum: Vec<f64>,
}

impl Mean {
    fn new(data: &TensorData, share: f64) -> Self {
        Self {
            data: data.clone(),
            sum: data.iter::<f64>().map(|value| value * share).collect(),
        }
    }

    /// The mean in the tensor's number format; integers are as they were.
    fn data(self) -> TensorData {
        let Self { data, sum } = self;
        if !data.dtype().is_float() {
            return data;
        }
        let shape = data.shape().to_vec();
        TensorData::new(sum, shape).convert_dtype(data.dtype())
    }
}

/// Adds an adapter's share. Returns what is wrong with its tensors.
fn add(
    means: &mut BTreeMap<String, Mean>,
    tensors: &BTreeMap<String, TensorData>,
    share: f64,
    first: &str,
) -> Option<String> {
    let missing = means.keys().find(|key| !tensors.contains_key(*key));
    if let Some(key) = missing.or_else(|| tensors.keys().find(|key| !means.contains_key(*key))) {
        return Some(format!(
            "it and `{first}` do not both have a tensor `{key}`"
        ));
    }
    for (key, data) in tensors {
        let mean = means.get_mut(key)?;
        let shapes = [data.shape().to_vec(), mean.data.shape().to_vec()];
        if shapes[0] != shapes[1] {
            return Some(format!(
                "tensor `{key}` has shape {:?}, that of `{first}` has {:?}",
                shapes[0], shapes[1]
            ));
        }
        if !data.dtype().is_float() && *data != mean.data {
            return Some(format!(
                "tensor `{key}` holds other integers than that of `{first}`, and integers have no mean"
            ));
        }
        for (sum, value) in mean.sum.iter_mut().zip(data.iter::<f64>()) {
            *sum += share * value;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(data: TensorData) -> BTreeMap<String, Mean> {
        BTreeMap::from([("key".into(), Mean::new(&data, 0.25))])
    }

    #[test]
    fn floats_have_a_mean_and_equal_integers_stay() {
        let mut floats = means(TensorData::from([1.0_f32, 2.0]));
        let other = BTreeMap::from([("key".into(), TensorData::from([5.0_f32, -2.0]))]);
        assert_eq!(add(&mut floats, &other, 0.75, "first"), None);
        let mean = floats.remove("key").unwrap().data();
        assert_eq!(mean, TensorData::from([4.0_f32, -1.0]));
        let integers = TensorData::from([7_i32, 9]);
        let mut same = means(integers.clone());
        let other = BTreeMap::from([("key".into(), integers.clone())]);
        assert_eq!(add(&mut same, &other, 0.75, "first"), None);
        assert_eq!(same.remove("key").unwrap().data(), integers);
    }

    #[test]
    fn what_has_no_mean_is_named() {
        for (tensors, expected) in [
            (("key", TensorData::from([1_i32, 2])), "integers"),
            (("key", TensorData::from([1_i32])), "shape [1]"),
            (("other", TensorData::from([1_i32, 3])), "`key`"),
        ] {
            let mut first = means(TensorData::from([1_i32, 3]));
            let other = BTreeMap::from([(tensors.0.to_string(), tensors.1)]);
            let reason = add(&mut first, &other, 0.75, "first").unwrap();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
