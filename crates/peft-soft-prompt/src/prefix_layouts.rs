//! Prefix tuning's configurations in the layouts of Hugging Face PEFT and AdapterHub.

use peft_core::Result;
use peft_core::method::{Method, Value, config_from_json};
use serde_json::Map;

use crate::adapterhub_prefix::AdapterHubPrefixConfig;
use crate::prefix_tuning::PrefixTuningConfig;

/// Whether a configuration is one of AdapterHub's prefix tuning.
fn is_prefix(json: &Value) -> bool {
    json["config"]["architecture"] == "prefix_tuning"
}

/// Reads AdapterHub's nested layout.
fn read(json: &Value) -> Result<Box<dyn Method>> {
    let mut fields = Map::new();
    let mut given = json.as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(config)) = given.remove("config") {
        fields.extend(config);
    }
    fields.extend(given);
    config_from_json::<AdapterHubPrefixConfig>(&Value::Object(fields))
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    if is_prefix(json) {
        read(json)
    } else {
        config_from_json::<PrefixTuningConfig>(json)
    }
}

impl PrefixTuningConfig {
    pub(crate) const RECOGNISES: fn(&Value) -> bool = is_prefix;
    pub(crate) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;
}
