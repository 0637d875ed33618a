//! What methods have in common: which layers they adapt, which biases they train, values by pattern.

use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam};
use crate::layout::patterns::Patterns;
use crate::layout::targets::{ALL_LINEAR, Selection, Targets};
use crate::method::contract::{MethodInfo, config_to_json};
use crate::method::plan::Plan;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Which biases are trained besides the method's own parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All of the model.
    All,
    /// Those of the adapted layers; upstream writes `lora_only`, `oft_only` and so on.
    #[serde(rename = "lora_only")]
    Adapted,
}

impl<'de> Deserialize<'de> for Bias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            _ if text.ends_with("_only") => Ok(Self::Adapted),
            _ => Err(serde::de::Error::custom(format!(
                "bias is \"{text}\"; \"none\", \"all\" or \"lora_only\" would do"
            ))),
        }
    }
}

/// The configuration as upstream writes it: `bias` has the method's name in it.
pub fn bias_to_json<C: Serialize>(config: &C, info: &MethodInfo) -> Value {
    let mut json = config_to_json(config, info);
    if let Some(bias) = json.get_mut("bias")
        && bias == "lora_only"
    {
        *bias = format!("{}_only", info.peft_type.to_lowercase()).into();
    }
    json
}

/// A layer with the weight that is to be adapted.
pub type Target<'a> = (&'a Layer, &'a LayoutParam);

/// The layers that a configuration names, `all-linear` if it names none, with their weights; without
/// those that are saved whole.
///
/// # Errors
///
/// As [`Targets::select`], and [`Error::UnsupportedLayer`] for a layer of another kind than `kinds`,
/// which are called `supported`.
pub fn select<'a>(
    targets: &Targets,
    layout: &'a Layout,
    plan: &Plan,
    info: &MethodInfo,
    (kinds, supported): (&[LayerKind], &'static str),
) -> Result<Vec<Target<'a>>> {
    let default = Selection::from(ALL_LINEAR);
    let layers = targets.select(layout, info.title, &default, plan.is_new())?;
    let mut found = Vec::with_capacity(layers.len());
    for layer in layers {
        let weight = layout
            .param(layer, "weight")
            .filter(|_| kinds.contains(&layer.kind));
        let Some(weight) = weight else {
            return Err(Error::UnsupportedLayer {
                method: info.title,
                layer: layer.name.clone(),
                kind: layer.kind.to_string(),
                supported,
            });
        };
        if !plan.is_saved(weight) {
            found.push((layer, weight));
        }
    }
    Ok(found)
}

/// Linear layers, for [`select`].
pub const LINEAR: (&[LayerKind], &str) = (&[LayerKind::Linear], "Linear");

/// Linear layers and convolutions, for [`select`].
pub const LINEAR_AND_CONV2D: (&[LayerKind], &str) =
    (&[LayerKind::Linear, LayerKind::Conv2d], "Linear and Conv2d");

/// Plans the training of biases.
pub fn train_biases(bias: Bias, layout: &Layout, adapted: &[Target<'_>], plan: &mut Plan) {
    let is_bias = |param: &&LayoutParam| param.field() == "bias" && param.shape().len() == 1;
    for param in layout.params.iter().filter(is_bias) {
        let layer = layout.layer_of(param);
        let is_adapted = adapted
            .iter()
            .any(|(adapted, _)| adapted.name == layer.name);
        if bias == Bias::All || (bias == Bias::Adapted && is_adapted) {
            // Upstream wraps an adapted layer, and its bias moves into the wrapper.
            let key = is_adapted.then(|| format!("{}.base_layer.bias", layer.name));
            plan.train_bias(param, key, None);
        }
    }
}

/// The values of `rank_pattern` and its like, compiled.
///
/// # Errors
///
/// As [`read_patterns`], and [`Error::Pattern`] for a key that is no regular expression.
pub fn patterns<T: Copy>(
    fields: &Map<String, Value>,
    (info, field): (&MethodInfo, &'static str),
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Patterns<T>> {
    let values = read_patterns(fields, (info, field), expected, read)?;
    Patterns::new(info.title, field, values)
}

/// The entries of a field by pattern, as they are read.
///
/// # Errors
///
/// [`Error::Config`] naming the field and the pattern whose value `read` does not take.
pub fn read_patterns<T>(
    fields: &Map<String, Value>,
    (info, field): (&MethodInfo, &'static str),
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    /// Each is held against the name of each layer.
    const MOST: usize = 4096;
    if fields.len() > MOST {
        let expected = format!("at most {MOST} patterns");
        return Err(Error::config(info.title, field, fields.len(), expected));
    }
    fields
        .iter()
        .map(|(pattern, value)| {
            let value = read(value).ok_or_else(|| {
                let expected = format!("`{pattern}` needs {expected}");
                Error::config(info.title, field, value, expected)
            })?;
            Ok((pattern.clone(), value))
        })
        .collect()
}

/// Refuses keys of patterns that fit no target, in a configuration of a user's.
///
/// # Errors
///
/// As [`Patterns::refuse_unused`].
pub fn refuse_unused<T: Copy>(
    patterns: &Patterns<T>,
    targets: &[Target<'_>],
    plan: &Plan,
) -> Result<()> {
    if plan.is_new() {
        patterns.refuse_unused(targets.iter().map(|(layer, _)| layer.name.as_str()))
    } else {
        Ok(())
    }
}

/// For [`patterns`] of ranks: a whole number of at least 1.
pub fn at_least_one(value: &Value) -> Option<usize> {
    value
        .as_u64()
        .filter(|number| *number > 0)
        .map(|number| number as usize)
}

/// Refuses fields of upstream's that change what a checkpoint means and are not supported, unless
/// they are off.
///
/// # Errors
///
/// [`Error::Config`] naming the first.
pub fn refuse_unsupported(
    unknown: &Map<String, Value>,
    info: &MethodInfo,
    fields: &[&'static str],
) -> Result<()> {
    for field in fields {
        let value = unknown.get(*field).unwrap_or(&Value::Null);
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !off {
            let expected = "leave it out: this is not supported yet";
            return Err(Error::config(info.title, field, value, expected));
        }
    }
    Ok(())
}

/// The part of [`Method`](crate::method::Method) that is the same everywhere: for a configuration with a
/// field `common`, inside of its `impl Method`.
#[macro_export]
macro_rules! common_method {
    ($info:ident) => {
        fn info(&self) -> &'static $crate::method::MethodInfo {
            &$info
        }

        fn common(&self) -> &$crate::method::Common {
            &self.common
        }

        fn common_mut(&mut self) -> &mut $crate::method::Common {
            &mut self.common
        }

        fn to_json(&self) -> serde_json::Value {
            $crate::method::bias_to_json(self, &$info)
        }

        fn boxed(&self) -> Box<dyn $crate::method::Method> {
            Box::new(self.clone())
        }
    };
}

/// Builder methods for the fields `targets`, inside of a configuration's `impl`.
#[macro_export]
macro_rules! target_builders {
    () => {
        /// Sets the layers to adapt: a list of names, or one regular expression, or `all-linear`.
        #[must_use]
        pub fn with_targets(mut self, targets: impl Into<$crate::Selection>) -> Self {
            self.targets.target_modules = Some(targets.into());
            self
        }

        /// Leaves layers out that are selected otherwise.
        #[must_use]
        pub fn with_excluded(mut self, excluded: impl Into<$crate::Selection>) -> Self {
            self.targets.exclude_modules = Some(excluded.into());
            self
        }

        /// Adapts layers of these blocks only, by their indices in the model's list; with a list of targets.
        #[must_use]
        pub fn with_layers_to_transform(mut self, blocks: impl Into<Vec<usize>>) -> Self {
            self.targets.layers_to_transform = Some($crate::method::OneOrMany::Many(blocks.into()));
            self
        }

        /// Says what the list of blocks is called, as in `layers`, for a model that has several lists; with
        /// `layers_to_transform`.
        #[must_use]
        pub fn with_layers_pattern(mut self, pattern: impl Into<String>) -> Self {
            self.targets.layers_pattern = Some($crate::method::OneOrMany::One(pattern.into()));
            self
        }
    };
}
