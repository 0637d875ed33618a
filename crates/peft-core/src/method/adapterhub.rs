//! Configurations in AdapterHub's layout, and the layers that they name.
//!
//! `adapter_config.json` has the method's fields in an object `config` there, beside `name`, `version` and what the model
//! was; `architecture` among the fields says which method it is. There is no `peft_type`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::site_type::HiddenState;
use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout};
use crate::method::contract::{Common, MethodInfo};
use crate::method::linear::TargetLayer;
use crate::method::plan::Plan;
use crate::upstream::{ADAPTERHUB_VERSION, CONFIG_FILE, PACKED, PROJECTIONS, Projection};

/// The method's fields in a configuration of AdapterHub's layout; `None` in another layout.
pub fn adapterhub_fields(json: &Value) -> Option<&Map<String, Value>> {
    if json.get("peft_type").is_some() {
        return None;
    }
    json.get("config")?.as_object()
}

/// The `architecture` of AdapterHub's that a configuration is of; bottlenecks have none. `None` in another layout.
pub fn architecture(json: &Value) -> Option<Option<&str>> {
    let fields = adapterhub_fields(json)?;
    Some(fields.get("architecture").and_then(Value::as_str))
}

/// Reads a configuration of AdapterHub's layout: the method's fields as a `C`, and what is beside them as [`Common`],
/// where it is kept. `None` in another layout.
///
/// # Errors
///
/// [`Error::Checkpoint`] naming the field that does not fit.
pub fn read_adapterhub<C: for<'de> Deserialize<'de>>(json: &Value) -> Result<Option<(C, Common)>> {
    let Some(fields) = adapterhub_fields(json) else {
        return Ok(None);
    };
    let wrong = |error: serde_json::Error| Error::Checkpoint {
        path: Path::new(CONFIG_FILE).into(),
        reason: error.to_string(),
    };
    let config = serde_json::from_value(Value::Object(fields.clone())).map_err(wrong)?;
    let mut common: Common = serde_json::from_value(json.clone()).map_err(wrong)?;
    common.unknown.remove("config");
    // Written with the name that the adapter has then.
    common.unknown.remove("name");
    Ok(Some((config, common)))
}

/// The content of `adapter_config.json` in AdapterHub's layout, of the method's `fields`.
pub fn adapterhub_json<C: Serialize>(common: &Common, fields: &C) -> Value {
    let mut json = serde_json::to_value(common).expect("a configuration is plain data");
    let beside = json!({
        "model_class": null,
        "model_name": null,
        "model_type": null,
        "version": ADAPTERHUB_VERSION,
    });
    if let (Some(outer), Value::Object(beside)) = (json.as_object_mut(), beside) {
        for (field, value) in beside {
            outer.entry(field).or_insert(value);
        }
        let fields = serde_json::to_value(fields).expect("a configuration is plain data");
        outer.insert("config".into(), fields);
    }
    json
}

/// What the model without its head is called, in which what all layers of an adapter share has its place: empty for a model
/// without a head.
pub fn model_root(layout: &Layout) -> String {
    let mut sites = layout.hidden_sites(HiddenState::EmbeddingOutput);
    sites.next().map_or(String::new(), |site| site.name.clone())
}

/// The key of what is no layer's: in AdapterHub's files `<module>.<list>.<adapter>.<key>`, where the module is the model
/// itself if its name is empty.
pub fn listed(
    field: &str,
    (module, list): (&str, &str),
    key: &str,
    transposed: bool,
) -> CheckpointKey {
    let list = if module.is_empty() {
        list.to_string()
    } else {
        format!("{module}.{list}")
    };
    let in_file = CheckpointKey::root("", &format!("{list}.{{adapter}}.{key}"));
    let in_memory = CheckpointKey::named(field, &format!("{list}.{key}"));
    if transposed {
        in_memory.transposed().in_adapterhub(in_file.transposed())
    } else {
        in_memory.in_adapterhub(in_file)
    }
}

/// What a layer is, by the end of its name.
fn projection(name: &str) -> Option<Projection> {
    let is = |end: &str| {
        let before = name.strip_suffix(end);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    // The first that fits: `attention.output.dense` is none, `output.dense` is one.
    let found = PROJECTIONS.iter().find(|(end, _)| is(end));
    found.and_then(|(_, projection)| *projection)
}

/// Whether a layer is queries, keys and values in one matrix.
fn is_packed(name: &str) -> bool {
    name.rsplit('.')
        .next()
        .is_some_and(|last| PACKED.contains(&last))
}

/// The first number among the segments of a name: the block's index.
pub(crate) fn block(name: &str) -> Option<usize> {
    name.split('.').find_map(|segment| segment.parse().ok())
}

/// A name in AdapterHub's configurations that none of its layers has.
const OUTPUT: &str = "o";

/// Linear layers of a model's blocks, as AdapterHub's configurations choose them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projections {
    /// Attention's: `q`, `k`, `v`, some of them.
    pub attention: Vec<String>,
    /// Whether what AdapterHub calls the intermediate layer of feed-forward is among them.
    pub intermediate: bool,
    /// Whether what AdapterHub calls the output layer of feed-forward is among them.
    pub output: bool,
    /// Indices of blocks of which none is.
    pub leave_out: Vec<usize>,
}

impl Projections {
    /// Refuses names of attention's matrices that AdapterHub has no layer for. `o` is one that its configurations may have,
    /// and none of its layers is called so: it means nothing in a file, and is refused by [`select`](Self::select) in a new
    /// adapter.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn check(&self, info: &MethodInfo) -> Result<()> {
        let known = |name: &&String| ["q", "k", "v", OUTPUT].contains(&name.as_str());
        match self.attention.iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let expected = "q, k and v, some of them";
                Err(Error::config(info.title, "attn_matrices", name, expected))
            }
        }
    }

    fn contains(&self, layer: &Layer) -> bool {
        if layer.kind != LayerKind::Linear
            || block(&layer.name).is_none_or(|block| self.leave_out.contains(&block))
        {
            return false;
        }
        let attention = |matrix: &str| self.attention.iter().any(|other| other == matrix);
        match projection(&layer.name) {
            None => false,
            Some(Projection::Query) => attention("q"),
            Some(Projection::Key) => attention("k"),
            Some(Projection::Value) => attention("v"),
            Some(Projection::Intermediate) => self.intermediate,
            Some(Projection::Output) => self.output,
        }
    }

    /// The same with the layers of feed-forward called the other way round.
    fn swapped(&self) -> Self {
        Self {
            intermediate: self.output,
            output: self.intermediate,
            ..self.clone()
        }
    }

    /// The layers. `list` is the list of modules that their tensors are in, in a file: `<layer>.<list>.<adapter>`. While
    /// one is loaded, it says which layer of feed-forward is which: AdapterHub does not call them alike in all models.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the model has none of them.
    pub fn select<'a>(
        &self,
        layout: &'a Layout,
        plan: &Plan,
        (info, list): (&MethodInfo, &str),
    ) -> Result<Vec<TargetLayer<'a>>> {
        if plan.is_new() && self.attention.iter().any(|name| name == OUTPUT) {
            let expected =
                "q, k and v, some of them: AdapterHub adapts no projection of attention's output";
            return Err(Error::config(info.title, "attn_matrices", OUTPUT, expected));
        }
        let layers = |chosen: &Self| -> Vec<&'a Layer> {
            let all = layout.layers.iter();
            all.filter(|layer| chosen.contains(layer)).collect()
        };
        let is_stored = |layer: &&Layer| plan.is_stored(&format!("{}.{list}.", layer.name));
        let (as_named, swapped) = (layers(self), layers(&self.swapped()));
        let is_swapped =
            !plan.is_new() && !as_named.iter().all(is_stored) && swapped.iter().all(is_stored);
        let chosen = if is_swapped { swapped } else { as_named };
        let of_attention = |layer: &&Layer| {
            let of = projection(&layer.name);
            matches!(
                of,
                Some(Projection::Query | Projection::Key | Projection::Value)
            )
        };
        let wants_attention = self.attention.iter().any(|name| name != OUTPUT);
        let lacks_attention = wants_attention && !chosen.iter().any(of_attention);
        let found = chosen.into_iter().filter_map(|layer| {
            let weight = layout.param(layer, "weight")?;
            let free = !plan.is_saved(weight);
            free.then(|| TargetLayer::new(layout, (layer, weight)))
        });
        let found: Vec<_> = found.collect();
        let packed = || layout.layers.iter().find(|layer| is_packed(&layer.name));
        if lacks_attention && let Some(packed) = packed() {
            let expected = format!(
                "layers of queries, keys and values by themselves: `{}` is all of them in one matrix, for which AdapterHub has \
                 factors of another form, and here there are none",
                packed.name
            );
            return Err(Error::config(info.title, "attn_matrices", self, expected));
        }
        if found.is_empty() || lacks_attention {
            let expected = format!(
                "projections that the model has, by names as `query`, `q_proj`, `intermediate.dense`, `up_proj`, \
                 `output.dense`, `down_proj`, in blocks that are not left out; it has {}",
                layout.listing()
            );
            return Err(Error::config(info.title, "attn_matrices", self, expected));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_the_end_of_their_names() {
        let of = |name: &str| projection(&format!("encoder.layer.3.{name}"));
        assert_eq!(of("attention.self.query"), Some(Projection::Query));
        assert_eq!(of("self_attn.k_proj"), Some(Projection::Key));
        assert_eq!(of("intermediate.dense"), Some(Projection::Intermediate));
        assert_eq!(of("output.dense"), Some(Projection::Output));
        assert_eq!(of("attention.output.dense"), None);
        assert_eq!(of("prequery"), None);
        assert_eq!(block("encoder.layer.3.output"), Some(3));
        assert!(is_packed("h.0.attn.c_attn") && !is_packed("h.0.attn.c_proj"));
    }

    #[test]
    fn what_is_beside_the_fields_is_kept() {
        type Fields = Map<String, Value>;

        let file = json!({
            "config": {"architecture": "a", "field": 3},
            "model_type": "bert", "version": "adapters.1.2.0", "name": "a",
        });
        assert_eq!(architecture(&file), Some(Some("a")));
        let (fields, common) = read_adapterhub::<Fields>(&file).unwrap().unwrap();
        assert_eq!(fields["field"], 3);
        let written = adapterhub_json(&common, &fields);
        assert_eq!(written["version"], "adapters.1.2.0");
        assert_eq!(written["model_type"], "bert");
        assert_eq!(written["config"], file["config"]);
        assert!(written.get("name").is_none());
        let other = json!({"peft_type": "X", "config": {}});
        assert!(read_adapterhub::<Fields>(&other).unwrap().is_none());
    }
}
