//! The suite itself: a sound method passes all conformance tests, and one that gives NaN, infinity, or something that is
//! a little wrong, fails those that look at it.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use peft_conformance::{Case, Fixture, SUITE, conformance_test, every_method_has_a_case, run};
use peft_core::device::cpu_devices;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, LayerKind, Layout, Method, MethodConfig,
    MethodInfo, Plan, WeightAdapter, config_from_json, config_to_json,
};
use peft_core::{Error, Result, Selection, Targets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

static SCALED: MethodInfo = MethodInfo {
    name: "scaled",
    peft_type: "SCALED",
    title: "Scaled",
    family: Family::Reparameterization,
    reference: "a method for this test",
    identity_at_init: true,
    mergeable: true,
    parse: config_from_json::<ScaledConfig>,
    recognises: None,
};

/// What is wrong with the method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Fault {
    #[default]
    Nothing,
    /// NaN, everywhere.
    Nan,
    /// Infinite logits.
    Infinity,
    /// Outputs are right, their gradients are NaN.
    GradientNan,
    /// Right in 32 bits; in f16 a product overflows.
    Overflow,
    /// Right in 32 bits, 10 percent off in f16.
    OffInF16,
    /// Right in 32 bits, 10 percent off in bf16.
    OffInBf16,
}

/// `W · diag(1 + g)`.
#[derive(Module, Debug)]
struct Scaled {
    gain: Param<Tensor<1>>,
    #[module(skip)]
    fault: Fault,
}

impl Scaled {
    fn scaled<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let gain = self.gain.val();
        let is_head = x.dims()[D - 1] == 2;
        let dtype = x.dtype();
        let off = |wrong: DType| if dtype == wrong { 1.1 } else { 1.0 };
        let y = x * (gain.clone() + 1.0).unsqueeze::<D>();
        match self.fault {
            Fault::Nan => y * f32::NAN,
            Fault::Infinity if is_head => y * 0.0 + f32::INFINITY,
            Fault::Nothing | Fault::Infinity => y,
            // The slope of a square root is infinite at 0.
            Fault::GradientNan => y + (gain * 0.0).sqrt().unsqueeze::<D>(),
            Fault::Overflow => y * 1e6 / 1e6,
            Fault::OffInF16 => y * off(DType::F16),
            Fault::OffInBf16 => y * off(DType::BF16),
        }
    }
}

impl Adapter for Scaled {
    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![CheckpointKey::layer("gain", "gain")]
    }
}

impl WeightAdapter for Scaled {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.scaled(weight)
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        inner.with_bias(self.scaled(inner.product(input)))
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ScaledConfig {
    #[serde(default)]
    fault: Fault,
    #[serde(flatten)]
    targets: Targets,
    #[serde(flatten)]
    common: Common,
}

impl ScaledConfig {
    fn with(fault: Fault) -> Self {
        Self {
            fault,
            ..Self::default()
        }
    }
}

impl MethodConfig for ScaledConfig {
    fn info(&self) -> &'static MethodInfo {
        &SCALED
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
        config_to_json(self, &SCALED)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for ScaledConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let default = Selection::from(["query", "value", "dense", "classifier"]);
        let strict = plan.is_new();
        for layer in self
            .targets
            .select(layout, SCALED.title, &default, strict)?
        {
            let (LayerKind::Linear, Some(weight)) = (&layer.kind, layout.param(layer, "weight"))
            else {
                return Err(Error::UnsupportedLayer {
                    method: SCALED.title,
                    layer: layer.name.clone(),
                    kind: layer.kind.to_string(),
                    supported: "Linear".into(),
                });
            };
            let out = weight.shape()[1];
            let gain = plan.init().zeros([out], (&weight.device(), weight.dtype()));
            let fault = self.fault;
            plan.adapt_weight(weight, Scaled { gain, fault });
        }
        Ok(())
    }
}

/// The conformance tests that do not see what the adapter computes, and why.
const BLIND: [(&str, &str); 4] = [
    ("counts", "it counts parameters"),
    ("adapter_file", "it compares a file with the counts"),
    ("detached", "it looks at models without the adapter"),
    (
        "not_a_number",
        "it puts NaN into the adapter, and looks at the base",
    ),
];

/// What a conformance test says of the method with a fault, on every CPU device.
fn verdicts(name: &str, fault: Fault) -> Vec<(&'static str, std::result::Result<(), String>)> {
    let verdict = |(device_name, device): (&'static str, _)| {
        let fixture = Fixture::new(&device);
        (
            device_name,
            (conformance_test(name).check)(&fixture, &ScaledConfig::with(fault)),
        )
    };
    cpu_devices().into_iter().map(verdict).collect()
}

#[test]
fn a_sound_method_passes_the_suite() {
    for test in SUITE {
        let method = ScaledConfig::with(Fault::Nothing);
        run(test, &[Case::new("scaled", method)]);
    }
}

#[test]
fn nan_and_infinity_fail_every_test_that_sees_outputs() {
    for (name, _) in BLIND {
        assert!(SUITE.iter().any(|test| test.name == name), "{name}");
    }
    for fault in [Fault::Nan, Fault::Infinity] {
        for test in SUITE {
            if BLIND.iter().any(|(name, _)| *name == test.name) {
                continue;
            }
            for (device_name, verdict) in verdicts(test.name, fault) {
                // On a backend without half formats the test has nothing to look at, and says so.
                let sees = test.name != "low_precision"
                    || cpu_devices().iter().any(|(name, device)| {
                        *name == device_name && test.left_out(device).is_none()
                    });
                assert!(
                    verdict.is_err() || !sees,
                    "`{}` passes on {device_name} with {fault:?}",
                    test.name
                );
            }
        }
    }
}

#[test]
fn gradients_that_are_no_numbers_fail_the_tests_of_training() {
    for name in ["gradients", "training", "moved", "quantized_base"] {
        for (device_name, verdict) in verdicts(name, Fault::GradientNan) {
            assert!(verdict.is_err(), "`{name}` passes on {device_name}");
        }
    }
}

#[test]
fn what_is_wrong_in_16_bits_only_fails_the_test_of_them() {
    for (fault, format) in [
        (Fault::Overflow, "F16"),
        (Fault::OffInF16, "F16"),
        (Fault::OffInBf16, "BF16"),
    ] {
        let mut seen = false;
        for (device_name, device) in cpu_devices() {
            let fixture = Fixture::new(&device);
            let method = ScaledConfig::with(fault);
            let training = (conformance_test("training").check)(&fixture, &method);
            assert_eq!(training, Ok(()), "{fault:?} on {device_name}");
            let verdict = (conformance_test("low_precision").check)(&fixture, &method);
            if conformance_test("low_precision")
                .left_out(&device)
                .is_none()
            {
                let text = verdict.expect_err(&format!("{fault:?} passes on {device_name}"));
                assert!(text.contains(format), "{fault:?} on {device_name}: {text}");
                seen = true;
            }
        }
        assert!(seen, "no backend of this build has half formats");
    }
}

/// Tests take `(a - b).abs().max()` on tensors for a distance.
#[test]
fn the_largest_of_a_tensor_is_no_number_where_one_element_is_none() {
    for (name, device) in cpu_devices() {
        for at in 0..40 {
            let mut values = vec![1.0_f32; 40];
            values[at] = f32::NAN;
            let tensor = Tensor::<1>::from_floats(values.as_slice(), &device);
            let largest: f32 = tensor.clone().abs().max().into_scalar();
            assert!(largest.is_nan(), "{name}, {at}: {largest}");
            let largest: f32 = tensor.reshape([4, 10]).abs().max().into_scalar();
            assert!(largest.is_nan(), "{name}, {at}: {largest}");
        }
    }
}

#[test]
fn a_method_without_a_case_is_named() {
    let none = std::panic::catch_unwind(|| every_method_has_a_case(&[&SCALED], &[]));
    let message = none.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("`scaled`"), "{message}");
    let unlisted = std::panic::catch_unwind(|| {
        let case = Case::new("a case", ScaledConfig::default());
        every_method_has_a_case(&[], &[case]);
    });
    let message = unlisted.unwrap_err().downcast::<String>().unwrap();
    assert!(
        message.contains("`a case`") && message.contains("`scaled`"),
        "{message}"
    );
}
