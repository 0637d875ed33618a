//! AdapterHub's layout of a configuration: the method's fields in an object `config`, others around it.

use peft_core::Result;
use peft_core::method::{Common, Method, config_from_json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The object with the method's fields. What is in it and unknown here is kept under the same name.
const CONFIG: &str = "config";

/// Reads both AdapterHub's nested layout and a flat one, over a preset.
pub(crate) fn parse<C>(json: &Value, preset: C) -> Result<Box<dyn Method>>
where
    C: Method + Serialize + for<'de> Deserialize<'de> + 'static,
{
    let mut fields = fields_of(preset);
    let mut given = json.as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(config)) = given.remove(CONFIG) {
        let mut unknown = Map::new();
        for (field, value) in config {
            // Upstream's optional fields may be null, which is their default.
            match (fields.contains_key(&field), value.is_null()) {
                (true, true) => {}
                (true, false) => {
                    fields.insert(field, value);
                }
                (false, _) => {
                    unknown.insert(field, value);
                }
            }
        }
        if !unknown.is_empty() {
            fields.insert(CONFIG.into(), unknown.into());
        }
    }
    fields.extend(given);
    config_from_json::<C>(&Value::Object(fields))
}

/// The fields by their keys.
fn fields_of(config: impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// Removes fields that AdapterHub does not have, where they say nothing.
fn leave_out_unused(fields: &mut Map<String, Value>) {
    for (field, detail) in [
        ("adapter_drop", None),
        ("sparsity", Some("pruning")),
        ("num_experts", Some("expert_sharing")),
    ] {
        if fields.get(field).is_some_and(Value::is_null) {
            fields.remove(field);
            detail.map(|detail| fields.remove(detail));
        }
    }
}

/// Writes AdapterHub's layout, of the fields that every method has, and of a configuration in which those say nothing.
pub(crate) fn to_json(common: &Common, plain: impl Serialize) -> Value {
    let mut json = serde_json::to_value(common).expect("plain data");
    let mut fields = fields_of(plain);
    let outer = json.as_object_mut().expect("plain data");
    for field in outer.keys() {
        fields.remove(field);
    }
    fields.insert("cross_adapter".into(), false.into());
    leave_out_unused(&mut fields);
    if let Some(Value::Object(unknown)) = outer.remove(CONFIG) {
        fields.extend(unknown);
    }
    for (field, value) in [
        ("model_class", Value::Null),
        ("model_name", Value::Null),
        ("model_type", Value::Null),
        ("version", json!("adapters.1.3.0")),
    ] {
        outer.entry(field).or_insert(value);
    }
    outer.insert(CONFIG.into(), fields.into());
    json
}
