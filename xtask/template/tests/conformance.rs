//! What every method of peft holds to, on this one.

use column_scale::{COLUMN_SCALE, ColumnScaleConfig};

peft_conformance::conformance_suite!(
    &[&COLUMN_SCALE],
    vec![
        Case::new(
            "two layers of each block",
            ColumnScaleConfig::new().with_targets(["query", "dense"])
        ),
        Case::new(
            "with a head",
            ColumnScaleConfig::new().with_modules_to_save(["classifier"])
        ),
    ]
);
