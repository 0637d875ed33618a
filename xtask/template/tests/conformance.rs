//! What every method of peft holds to, on this one.

use my_method::{METHODS, MyMethodConfig};

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "two layers of each block",
            MyMethodConfig::new().with_targets(["query", "dense"])
        ),
        Case::new(
            "with a head",
            MyMethodConfig::new().with_modules_to_save(["classifier"])
        ),
    ]
);
