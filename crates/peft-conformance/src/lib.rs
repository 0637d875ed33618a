//! The laws that every method of peft obeys on every backend.
//!
//! A method crate calls the battery in one line, in `tests/conformance.rs`, with the
//! configurations it wants checked:
//!
//! ```text
//! peft_conformance::battery!(vec![
//!     Case::new("lora", LoraConfig::new(4).with_targets(["query", "value"])),
//! ]);
//! ```
//!
//! Each law is a test of its own, run for every case on every CPU device compiled in. What a
//! method promises ([`MethodInfo`](peft_core::method::MethodInfo)) decides which way a law goes: a method
//! that does not promise to be mergeable must refuse to merge.
//!
//! The model is a tiny BERT classifier in which every parameter matters.

mod fixture;
pub mod golden;
mod laws;
mod shared;

use std::sync::{Mutex, PoisonError};

use peft_core::method::Method;

pub use fixture::{Fixture, farthest, perturb};
pub use laws::{LAWS, Law, law};

/// One configuration to check.
#[derive(Debug)]
pub struct Case {
    /// Name, for messages.
    pub name: &'static str,
    /// The configured method.
    pub method: Box<dyn Method>,
}

impl Case {
    /// A configuration under a name.
    pub fn new(name: &'static str, method: impl Method + 'static) -> Self {
        Self {
            name,
            method: Box::new(method),
        }
    }
}

/// Held while a law draws.
static DRAWING: Mutex<()> = Mutex::new(());

/// Of every law and case.
const SEED: u64 = 1;

/// Runs one law for all cases on all devices.
///
/// # Panics
///
/// If it does not hold, naming law, case and device.
pub fn check(law: &Law, cases: &[Case]) {
    assert!(!cases.is_empty(), "a battery without cases proves nothing");
    for (device_name, device) in peft_core::device::cpu_devices() {
        for case in cases {
            let place = format!(
                "law `{}`, case `{}`, device {device_name}",
                law.name, case.name
            );
            if let Some(why) = law.left_out(&device) {
                peft_testing::does_not_apply(format!("law `{}` on {device_name}", law.name), why);
            }
            let verdict = {
                // A backend has one generator for all threads: with it to itself, a law draws the same noise in
                // every run.
                let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
                let fixture = Fixture::new(&device);
                device.seed(SEED);
                (law.check)(&fixture, case.method.as_ref())
            };
            if let Err(violation) = verdict {
                panic!("{place}: {violation}");
            }
        }
    }
}

/// The whole battery for an expression that gives `Vec<Case>`: one test for each law.
#[macro_export]
macro_rules! battery {
    ($cases:expr) => {
        fn cases() -> Vec<$crate::Case> {
            use $crate::Case;
            $cases
        }

        $crate::for_each_law!(peft_conformance::tests!());
    };
}

/// One test for each law, for cases given by a function `cases`.
#[doc(hidden)]
#[macro_export]
macro_rules! tests {
    ($($law:ident),*) => {
        $(
            #[test]
            fn $law() {
                $crate::check($crate::law(stringify!($law)), &cases());
            }
        )*
    };
}
