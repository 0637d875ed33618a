//! A method of the user's own that forgets a parameter in what a file holds.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Layout, Method, Plan, WeightAdapter, method_config,
};
use peft_core::{Error, PeftModule as _, Result};

#[derive(Module, Debug)]
struct Forgetful {
    listed: Param<Tensor<2>>,
    inner: Inner,
}

#[derive(Module, Debug)]
struct Inner {
    forgotten: Param<Tensor<1>>,
}

impl Adapter for Forgetful {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("listed", "listed")]
    }
}

impl WeightAdapter for Forgetful {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        weight
    }
}

/// Forgets a tensor.
#[method_config(
    FORGETFUL, peft_type = "FORGETFUL", title = "Forgetful", family = Reparameterization, identity_at_init, mergeable, new(),
    reference = "a method of this test"
)]
pub struct ForgetfulConfig {
    /// Fields that every method has.
    pub common: Common,
}

impl Method for ForgetfulConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let param = &layout.params[0];
        let like = (&param.device(), param.dtype());
        let init = plan.init();
        let state = Forgetful {
            listed: init.zeros([2, 2], like),
            inner: Inner {
                forgotten: init.zeros([2], like),
            },
        };
        plan.adapt_weight(param, state);
        Ok(())
    }
}

#[test]
fn a_forgotten_tensor_is_found_when_attaching() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let model: Linear = LinearConfig::new(3, 2).init(&device);
    let error = model
        .attach("mine", &ForgetfulConfig::default())
        .unwrap_err();
    assert!(matches!(error, Error::UnlistedTensor { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("`inner.forgotten`") && text.contains("Forgetful"),
        "{text}"
    );
    assert!(model.adapters().is_empty());
}
