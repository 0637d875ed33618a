//! What a configuration of bottleneck adapters may say.

use peft_core::method::{MethodConfig as _, Value};
use peft_core::{Error, Result};

use super::config::BottleneckConfig;
use super::fields::{BottleneckInit, ReductionFactor, ResidualBeforeLn, Scaling};

impl BottleneckConfig {
    /// What no field's own range says.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_fields()?;
        let info = self.info();
        self.reduction_factor.check(info)?;
        let problem = if !(self.mh_adapter || self.output_adapter || self.inv_adapter.is_some()) {
            Some((
                "output_adapter",
                Value::from(false),
                "this or mh_adapter must be true",
            ))
        } else if let Scaling::Fixed(factor) = self.scaling
            && !factor.is_finite()
        {
            let found = factor.to_string().into();
            Some(("scaling", found, "a finite number, `learned` or `channel`"))
        } else if self.residual_before_ln == ResidualBeforeLn::PostAdd
            && !self.original_ln_before
            && !self.is_parallel
        {
            let expected = "true or false without original_ln_before: nothing was added yet";
            Some(("residual_before_ln", "post_add".into(), expected))
        } else if self.inv_adapter.is_some() && self.inv_adapter_reduction_factor.is_none() {
            let expected = "a number above 0 with inv_adapter";
            Some(("inv_adapter_reduction_factor", Value::Null, expected))
        } else {
            self.phm_problem().or_else(|| self.training_problem())
        };
        problem.map_or(Ok(()), |(field, found, expected)| {
            Err(Error::config(info.title, field, found, expected))
        })
    }

    fn phm_problem(&self) -> Option<(&'static str, Value, &'static str)> {
        if !self.phm_layer {
            return None;
        }
        if self.init_weights != BottleneckInit::Bert {
            let found = serde_json::to_value(self.init_weights).unwrap_or_default();
            let expected = "`bert` with phm_layer, whose initial values hypercomplex_nonlinearity and phm_c_init say";
            return Some(("init_weights", found, expected));
        }
        if self.shared_w_phm && matches!(self.reduction_factor, ReductionFactor::ByBlock(_)) {
            let expected = "false where reduction_factor differs between blocks";
            return Some(("shared_W_phm", true.into(), expected));
        }
        None
    }

    fn training_problem(&self) -> Option<(&'static str, Value, &'static str)> {
        if self.num_experts.is_some() && self.phm_layer {
            return Some((
                "num_experts",
                self.num_experts.into(),
                "none with phm_layer",
            ));
        }
        self.sparsity?;
        let problem = if self.phm_layer {
            "none with phm_layer, which has few weights already"
        } else if self.num_experts.is_some() {
            "none with num_experts, whose average is not sparse"
        } else if self.init_weights == BottleneckInit::MamAdapter {
            "none with init_weights `mam_adapter`: a weight that is 0 counts as pruned"
        } else {
            return None;
        };
        Some(("sparsity", self.sparsity.into(), problem))
    }
}
