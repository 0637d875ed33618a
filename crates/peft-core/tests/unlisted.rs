//! A method of the user's own that forgets a parameter in what a file holds.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, CheckpointKey, Common, Family, Layout, Method, MethodConfig, MethodInfo, Plan,
    WeightAdapter,
};
use peft_core::{Error, PeftModule as _, Result};
use serde_json::{Value, json};

static FORGETFUL: MethodInfo = MethodInfo {
    name: "forgetful",
    peft_type: "FORGETFUL",
    title: "Forgetful",
    family: Family::Reparameterization,
    reference: "a method of this test",
    identity_at_init: true,
    mergeable: true,
    parse: |_| Ok(Box::new(ForgetfulConfig::default())),
    recognises: None,
};

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

#[derive(Clone, Debug, Default)]
struct ForgetfulConfig {
    common: Common,
}

impl MethodConfig for ForgetfulConfig {
    fn info(&self) -> &'static MethodInfo {
        &FORGETFUL
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
        json!({ "peft_type": FORGETFUL.peft_type })
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
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
