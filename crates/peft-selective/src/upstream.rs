//! What upstream's configurations of this family lack.

use peft_core::method::{MethodConfig, Value, upstream_json};
use serde::Serialize;

/// The configuration as upstream writes it, without those of `others` that are not used: fields of
/// [`Targets`](peft_core::Targets) that upstream's configuration does not have.
pub(crate) fn json_without<C: MethodConfig + Serialize>(config: &C, others: &[&str]) -> Value {
    let mut json = upstream_json(config);
    if let Some(fields) = json.as_object_mut() {
        fields.retain(|field, value| !(others.contains(&field.as_str()) && value.is_null()));
    }
    json
}
