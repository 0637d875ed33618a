//! The model as it came, as a method: what every language-model task is held against.

use peft_core::Result;
use peft_core::method::{
    Common, Family, Layout, Method, MethodConfig, MethodInfo, Plan, config_from_json,
    config_to_json,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Registration of training nothing. Known to the suite alone: there is nothing to attach, train or save.
pub(crate) static UNTRAINED: MethodInfo = MethodInfo {
    name: crate::reference::BASE,
    peft_type: "BASE",
    title: "Base model, not trained",
    family: Family::Reference,
    reference: "reference: the model as it came",
    identity_at_init: true,
    mergeable: false,
    parse: config_from_json::<BaseConfig>,
    recognises: None,
};

/// Trains nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BaseConfig {
    /// Fields that every method has; they change nothing.
    #[serde(flatten)]
    common: Common,
}

impl MethodConfig for BaseConfig {
    fn info(&self) -> &'static MethodInfo {
        &UNTRAINED
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn check_fields(&self) -> Result<()> {
        Ok(())
    }

    fn to_json(&self) -> Value {
        config_to_json(self, &UNTRAINED)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for BaseConfig {
    fn plan(&self, _layout: &Layout, _plan: &mut Plan) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_no_settings() {
        let read = (UNTRAINED.parse)(&serde_json::json!({ "peft_type": "BASE" })).unwrap();
        assert!(read.common().unknown.is_empty());
        assert!(read.validate().is_ok());
    }
}
