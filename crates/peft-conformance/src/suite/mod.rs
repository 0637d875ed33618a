//! The conformance tests, one function each. The documentation of each says what it guarantees, and what is wrong if
//! it fails.

mod files;
mod numbers;
mod outputs;
mod quantized;
mod several;
mod training;

use burn::tensor::Device;
use peft_core::Error;
use peft_core::method::{Method, MethodInfo};

use self::files::{adapter_file, damaged_files, devices_agree, saved};
use self::numbers::{HALF_FORMATS, half_formats, low_precision, not_a_number};
use self::outputs::{disabled, identity_at_init, merged, unmerged_exactly};
use self::quantized::quantized_base;
use self::several::{detached, names, several};
use self::training::{counts, gradients, moved, records, training};
use crate::fixture::Fixture;

/// What a conformance test says: nothing, or what is wrong.
type Verdict = Result<(), String>;

/// One conformance test.
pub struct ConformanceTest {
    /// Its name.
    pub name: &'static str,
    /// Checks one configuration.
    pub check: fn(&Fixture, &dyn Method) -> Verdict,
}

impl ConformanceTest {
    /// What of the test has no meaning on a device, in words. The rest of the test runs there.
    pub fn left_out(&self, device: &Device) -> Option<String> {
        if self.name != "low_precision" {
            return None;
        }
        let there = half_formats(device);
        let missing = HALF_FORMATS.iter().filter(|format| !there.contains(format));
        let missing: Vec<_> = missing.map(|(dtype, _)| format!("{dtype:?}")).collect();
        (!missing.is_empty()).then(|| format!("the backend has no {}", missing.join(" and no ")))
    }
}

/// Calls a macro with the names of all conformance tests, so that they are listed once.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_conformance_test {
    ($($callback:ident)::+!()) => {
        $($callback)::+! {
            identity_at_init, gradients, training, disabled, merged, unmerged_exactly, saved,
            adapter_file, names, detached, several, damaged_files, counts, records, moved,
            devices_agree, low_precision, not_a_number, quantized_base
        }
    };
}

macro_rules! table {
    ($($test:ident),*) => {
        /// All conformance tests, in the order in which they are listed.
        pub const SUITE: &[ConformanceTest] =
            &[$(ConformanceTest { name: stringify!($test), check: $test }),*];
    };
}

for_each_conformance_test!(table!());

/// The conformance test called `name`.
///
/// # Panics
///
/// If there is none.
pub fn conformance_test(name: &str) -> &'static ConformanceTest {
    SUITE
        .iter()
        .find(|test| test.name == name)
        .unwrap_or_else(|| panic!("no conformance test is called `{name}`"))
}

/// The adapter's name in most tests.
const NAME: &str = "first";

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn text(error: Error) -> String {
    error.to_string()
}

/// The list of methods that a checkpoint of `method` is read with.
fn registered(method: &dyn Method) -> [&'static MethodInfo; 1] {
    [method.info()]
}
