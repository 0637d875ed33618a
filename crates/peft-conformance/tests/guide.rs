//! The example of the guide "Adding a method": it is what the guide shows, and it passes the conformance suite.

use peft_core::method::MethodInfo;

#[path = "guide/column_scale.rs"]
pub mod column_scale;

use column_scale::{COLUMN_SCALE, ColumnScaleConfig};

const METHODS: &[&MethodInfo] = &[&COLUMN_SCALE];

peft_conformance::conformance_suite!(
    METHODS,
    vec![
        Case::new(
            "column scale",
            ColumnScaleConfig::new()
                .with_strength(2.0)
                .with_targets(["query", "dense"])
        ),
        Case::new(
            "with a head",
            ColumnScaleConfig::new().with_modules_to_save(["classifier"])
        ),
    ]
);

#[test]
fn the_guide_shows_this_example() {
    let guide = include_str!("../../../docs/adding-a-method.md");
    let example = include_str!("guide/column_scale.rs");
    assert!(guide.contains(&format!("```rust,ignore\n{example}```")));
}

#[test]
fn what_the_guide_says_of_refused_values_is_so() {
    use peft_core::method::Method as _;
    let refused = ColumnScaleConfig::new().with_strength(f64::NAN);
    let refused = refused.validate().unwrap_err().to_string();
    assert!(
        refused.contains("strength") && refused.contains("a finite number"),
        "{refused}"
    );
}
