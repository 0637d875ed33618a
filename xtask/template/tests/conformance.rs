//! What every method of peft holds to, on this one.

use my_method::{MY_METHOD, MyMethodConfig};
use peft_core::method::ConfigExt as _;

peft_conformance::conformance_suite!(
    &[&MY_METHOD],
    vec![
        Case::new(
            "two layers of each block",
            MyMethodConfig::new().with_targets(["query", "dense"])
        ),
        Case::new(
            "with a head",
            MyMethodConfig::new().with_modules_to_save(["classifier"])
        ),
    ],
);
