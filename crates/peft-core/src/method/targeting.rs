//! What methods have in common: which layers they adapt, which biases they train, values by pattern.

use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam};
use crate::layout::targets::{ALL_LINEAR, Selection, Targets};
use crate::method::bias::Bias;
use crate::method::contract::MethodInfo;
use crate::method::plan::Plan;
use serde_json::{Map, Value};

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

/// Linear layers, embedding tables and convolutions, for [`select`].
pub const LINEAR_EMBEDDING_AND_CONV2D: (&[LayerKind], &str) = (
    &[LayerKind::Linear, LayerKind::Embedding, LayerKind::Conv2d],
    "Linear, Embedding and Conv2d",
);

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
            return Err(Error::config(
                info.title,
                field,
                format_args!("{value}"),
                expected,
            ));
        }
    }
    Ok(())
}

/// Builder methods for the fields `targets`, inside of a configuration's `impl`.
#[macro_export]
macro_rules! target_builders {
    ($targets:ident) => {
        /// Sets the layers to adapt: a list of names, or one regular expression, or `all-linear`.
        #[must_use]
        pub fn with_targets(mut self, targets: impl Into<$crate::Selection>) -> Self {
            self.$targets.target_modules = Some(targets.into());
            self
        }

        /// Leaves layers out that are selected otherwise.
        #[must_use]
        pub fn with_excluded(mut self, excluded: impl Into<$crate::Selection>) -> Self {
            self.$targets.exclude_modules = Some(excluded.into());
            self
        }

        /// Adapts layers of these blocks only, by their indices in the model's list; with a list of targets.
        #[must_use]
        pub fn with_layers_to_transform(mut self, blocks: impl Into<Vec<usize>>) -> Self {
            self.$targets.layers_to_transform =
                Some($crate::method::OneOrMany::Many(blocks.into()));
            self
        }

        /// Says what the list of blocks is called, as in `layers`, for a model that has several lists; with
        /// `layers_to_transform`.
        #[must_use]
        pub fn with_layers_pattern(mut self, pattern: impl Into<String>) -> Self {
            self.$targets.layers_pattern = Some($crate::method::OneOrMany::One(pattern.into()));
            self
        }
    };
}

/// Builder methods for the fields that every configuration has, inside of its `impl`.
#[macro_export]
macro_rules! common_builders {
    ($common:ident) => {
        /// Trains and saves these modules whole.
        #[must_use]
        pub fn with_modules_to_save<S: Into<String>>(
            mut self,
            modules: impl IntoIterator<Item = S>,
        ) -> Self {
            let modules = modules.into_iter().map(Into::into).collect();
            self.$common.modules_to_save = Some(modules);
            self
        }

        /// Sets upstream's task type, as in `SEQ_CLS`.
        #[must_use]
        pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
            self.$common.task_type = Some(task_type.into());
            self
        }
    };
}
