//! Configurations in AdapterHub's layout: what describes the method is in `config`.

use peft_core::Result;
use peft_core::method::{Common, Method, Value, config_from_json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

/// Reads AdapterHub's nested layout and a flat one, over a preset.
pub(crate) fn parse<C: Method + Serialize + for<'de> Deserialize<'de> + 'static>(
    json: &Value,
    preset: C,
) -> Result<Box<dyn Method>> {
    let mut fields = match serde_json::to_value(preset) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let mut given = json.as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(config)) = given.remove("config") {
        fields.extend(config);
    }
    fields.extend(given);
    config_from_json::<C>(&Value::Object(fields))
}

/// The layout, with `config` for what is in `config`.
pub(crate) fn json(common: &Common, mut config: Value) -> Value {
    let mut json = serde_json::to_value(common).expect("plain data");
    if let (Some(outer), Some(inner)) = (json.as_object_mut(), config.as_object_mut()) {
        // What was read from AdapterHub and is unknown here goes back to where it was.
        for (field, value) in inner.iter_mut() {
            if let Some(kept) = outer.remove(field) {
                *value = kept;
            }
        }
        for field in ["model_class", "model_name", "model_type"] {
            outer.entry(field).or_insert(Value::Null);
        }
        outer.entry("version").or_insert(json!("adapters.1.3.0"));
        outer.insert("config".into(), config);
    }
    json
}
