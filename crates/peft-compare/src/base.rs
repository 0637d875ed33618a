//! The model as it came, as a method: what every language-model task is held against.

use peft_core::Result;
use peft_core::method::{Common, Layout, Method, Plan, method_config};

/// Trains nothing. Known to the suite alone: there is nothing to attach, train or save.
#[method_config(
    UNTRAINED, peft_type = "BASE", title = "Base model, not trained", family = Reference, identity_at_init,
    reference = "reference: the model as it came"
)]
pub(crate) struct BaseConfig {
    /// Fields that every method has; they change nothing.
    pub common: Common,
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
