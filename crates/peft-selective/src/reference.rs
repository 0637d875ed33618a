//! The two references of every comparison: training only the head, and training all parameters.

use peft_core::method::{Common, Layout, Method, Plan, method_config};
use peft_core::{Error, Result};

/// Trains the model's output heads, or the modules named in `modules_to_save`, and nothing else.
#[method_config(
    HEAD_ONLY, peft_type = "HEAD_ONLY", title = "Head only", family = Reference, identity_at_init, mergeable, new(),
    reference = "reference: a linear probe on the frozen model"
)]
pub struct HeadOnlyConfig {
    /// Fields that every method has.
    pub common: Common,
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
#[method_config(
    FULL, peft_type = "FULL", title = "Full fine-tuning", family = Reference, identity_at_init, mergeable, new(),
    reference = "reference: every parameter trains, in place"
)]
pub struct FullConfig {
    /// Fields that every method has; `modules_to_save` changes nothing.
    pub common: Common,
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
