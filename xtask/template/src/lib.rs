//! My method: every output feature of a linear layer is scaled, `W' = W · diag(1 + g)`, with g = 0 at first.
//!
//! Replace the mathematics by yours: the fields of [`MyMethod`], what `compose` and `linear` compute from them, and the
//! initial values in `plan`. `cargo test` then says what does not hold.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, LINEAR, Layout, Method, MethodInfo, Plan,
    Selection, Targets, WeightAdapter, by_peft_type, config_from_json, config_to_json, select,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The method's registration.
pub static MY_METHOD: MethodInfo = MethodInfo {
    name: "my-method",
    peft_type: "MY_METHOD",
    title: "My method",
    family: Family::Reparameterization,
    reference: "name the paper and the section here",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<MyMethodConfig>,
    recognises: by_peft_type,
};

/// What is trained for one layer.
#[derive(Module, Debug)]
pub struct MyMethod {
    /// g, `[out]`.
    pub gain: Param<Tensor<1>>,
}

impl MyMethod {
    /// `x (1 + g)`, for `x` whose last axis is the layer's output.
    fn scaled<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x * (self.gain.val() + 1.0).unsqueeze::<D>()
    }
}

impl Adapter for MyMethod {
    const METHOD: &'static str = "my method";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("gain", "my_method_gain")]
    }
}

impl WeightAdapter for MyMethod {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.scaled(weight)
    }

    // Scaling the outputs is cheaper than scaling the matrix. Without this function `compose` is used.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.with_bias(self.scaled(base.product(input)))
    }
}

/// The method's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MyMethodConfig {
    /// Layers to adapt. Default: all linear layers but the output head.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

impl MyMethodConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the layers to adapt.
    #[must_use]
    pub fn with_targets(mut self, targets: impl Into<Selection>) -> Self {
        self.targets.target_modules = Some(targets.into());
        self
    }
}

impl Method for MyMethodConfig {
    fn info(&self) -> &'static MethodInfo {
        &MY_METHOD
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for (_, weight) in select(&self.targets, layout, plan, &MY_METHOD, LINEAR)? {
            let options = (&weight.device(), weight.dtype());
            let gain = plan.init().zeros([weight.shape()[1]], options);
            plan.adapt_weight(weight, MyMethod { gain });
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        config_to_json(self, &MY_METHOD)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
