#![doc = include_str!("../README.md")]

mod fixture;
mod model;
mod suite;

use std::sync::{Mutex, PoisonError};

use peft_core::method::{Family, Method, MethodInfo};

pub use fixture::{Fixture, farthest, perturb};
pub use model::{
    Attention, Embeddings, Encoder, Intermediate, Layer, Output, SelfAttention, TinyTransformer,
};
pub use suite::{ConformanceTest, SUITE, conformance_test};

/// One configuration to check.
#[derive(Debug)]
pub struct Case {
    /// Name, for messages.
    pub name: &'static str,
    /// The configured method.
    pub method: Box<dyn Method>,
    /// Adapters that are on the model before, frozen and inactive, by name.
    pub beside: Vec<(&'static str, Box<dyn Method>)>,
}

impl Case {
    /// A configuration under a name.
    pub fn new(name: &'static str, method: impl Method + 'static) -> Self {
        Self {
            name,
            method: Box::new(method),
            beside: Vec::new(),
        }
    }

    /// Puts an adapter on the model before, frozen and inactive: for a method that works on what others compute.
    #[must_use]
    pub fn beside(mut self, name: &'static str, method: impl Method + 'static) -> Self {
        self.beside.push((name, Box::new(method)));
        self
    }
}

/// Held while a conformance test draws random numbers.
static DRAWING: Mutex<()> = Mutex::new(());

/// Of every conformance test and case.
const SEED: u64 = 1;

/// Runs one conformance test for all cases on all CPU devices.
///
/// # Panics
///
/// If it fails. The message names test, case and device, and says what is wrong: see the test's documentation in
/// [`suite`](SUITE). Also if there are no cases.
pub fn run(test: &ConformanceTest, cases: &[Case]) {
    assert!(!cases.is_empty(), "a suite without cases checks nothing");
    for (device_name, device) in peft_core::device::cpu_devices() {
        for case in cases {
            let place = format!(
                "conformance test `{}`, case `{}` ({}), device {device_name}",
                test.name,
                case.name,
                case.method.info().title
            );
            if let Some(why) = test.left_out(&device) {
                let what = format!("conformance test `{}` on {device_name}", test.name);
                peft_testing::does_not_apply(what, why);
            }
            let verdict = {
                // A backend has one generator for all threads. A test that has it to itself draws the same noise in
                // every run.
                let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
                let fixture = Fixture::beside(&device, &case.beside);
                device.seed(SEED);
                (test.check)(&fixture, case.method.as_ref())
            };
            if let Err(problem) = verdict {
                panic!("{place}: {problem}");
            }
        }
    }
}

/// Checks that the cases cover a crate's list of methods, and that the list has every method of the cases: otherwise a
/// saved adapter cannot be read again. References to compare with ([`Family::Reference`]) need no case.
///
/// # Panics
///
/// If a method has no case, or a case's method is not in the list; the message names it.
pub fn every_method_has_a_case(methods: &[&MethodInfo], cases: &[Case]) {
    for info in methods {
        let has_case = cases
            .iter()
            .any(|case| case.method.info().name == info.name);
        assert!(
            has_case || info.family == Family::Reference,
            "the list of methods has `{}`, and no case has it: add a case",
            info.name
        );
    }
    for case in cases {
        let name = case.method.info().name;
        assert!(
            methods.iter().any(|info| info.name == name),
            "case `{}` is of the method `{name}`, which is not in the list of methods",
            case.name
        );
    }
}

/// The whole suite, for a crate's list of methods (`&[&MethodInfo]`) and an expression that gives `Vec<Case>`: one
/// `#[test]` for each conformance test. An example:
///
/// ```
/// # use peft_core::Result;
/// # use peft_core::method::{
/// #     Bias, Common, Layout, Method, MethodInfo, Plan, method_config, train_biases,
/// # };
/// # pub const METHODS: &[&MethodInfo] = &[&BIASES];
/// # #[method_config(
/// #     BIASES, peft_type = "BIASES", title = "Biases", family = Selective, identity_at_init, mergeable,
/// #     reference = "an example"
/// # )]
/// # pub struct BiasesConfig {
/// #     common: Common,
/// # }
/// # impl Method for BiasesConfig {
/// #     fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
/// #         train_biases(Bias::All, layout, &[], plan);
/// #         Ok(())
/// #     }
/// # }
///
/// peft_conformance::conformance_suite!(
///     METHODS,
///     vec![
///         Case::new("biases", BiasesConfig::default()),
///         Case::new("biases, with a head", BiasesConfig::default().with_modules_to_save(["classifier"])),
///     ]
/// );
/// # fn main() {
/// #     peft_conformance::every_method_has_a_case(METHODS, &cases());
/// # }
/// ```
#[macro_export]
macro_rules! conformance_suite {
    ($methods:expr, $cases:expr $(,)?) => {
        fn cases() -> Vec<$crate::Case> {
            use $crate::Case;
            $cases
        }

        #[test]
        fn every_method_has_a_case() {
            $crate::every_method_has_a_case($methods, &cases());
        }

        $crate::for_each_conformance_test!(peft_conformance::tests!());
    };
}

/// One `#[test]` for each conformance test, for cases given by a function `cases`.
#[doc(hidden)]
#[macro_export]
macro_rules! tests {
    ($($test:ident),*) => {
        $(
            #[test]
            fn $test() {
                $crate::run($crate::conformance_test(stringify!($test)), &cases());
            }
        )*
    };
}
