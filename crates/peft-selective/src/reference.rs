//! What every comparison needs at its ends: training the head alone, and training everything.

use peft_core::method::{
    Common, Family, Layout, Method, MethodConfig, MethodInfo, Plan, by_peft_type, config_from_json,
    config_to_json,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Registration of training the head alone.
pub static HEAD_ONLY: MethodInfo = MethodInfo {
    name: "head-only",
    peft_type: "HEAD_ONLY",
    title: "Head only",
    family: Family::Reference,
    reference: "reference: a linear probe on the frozen model",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<HeadOnlyConfig>,
    recognises: by_peft_type,
};

/// Registration of training everything.
pub static FULL: MethodInfo = MethodInfo {
    name: "full",
    peft_type: "FULL",
    title: "Full fine-tuning",
    family: Family::Reference,
    reference: "reference: every parameter trains, in place",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<FullConfig>,
    recognises: by_peft_type,
};

/// Trains the model's output heads, or the modules named in `modules_to_save`, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadOnlyConfig {
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

impl HeadOnlyConfig {
    /// The model's own heads.
    pub fn new() -> Self {
        Self::default()
    }
}

impl MethodConfig for HeadOnlyConfig {
    fn info(&self) -> &'static MethodInfo {
        &HEAD_ONLY
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
        config_to_json(self, &HEAD_ONLY)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for HeadOnlyConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if self
            .common
            .modules_to_save
            .as_ref()
            .is_some_and(|named| !named.is_empty())
        {
            return Ok(());
        }
        for param in layout
            .params
            .iter()
            .filter(|param| layout.layer_of(param).head)
        {
            plan.save_param(layout, param);
        }
        if plan.is_empty() {
            return Err(Error::config(
                HEAD_ONLY.title,
                "modules_to_save",
                &self.common.modules_to_save,
                "name the head's module: this model does not say which its head is",
            ));
        }
        Ok(())
    }
}

/// Trains every parameter of the model in place.
///
/// No adapter: nothing is kept of the base, so there is nothing to disable, detach or save as
/// one. Save the model itself ([`save_model`](peft_core::PeftModule::save_model)).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FullConfig {
    /// Fields that every method has; `modules_to_save` changes nothing.
    #[serde(flatten)]
    pub common: Common,
}

impl FullConfig {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }
}

impl MethodConfig for FullConfig {
    fn info(&self) -> &'static MethodInfo {
        &FULL
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
        config_to_json(self, &FULL)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for FullConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        layout
            .params
            .iter()
            .for_each(|param| plan.train_in_place(param));
        Ok(())
    }
}
