//! The comparison of peft's methods, with this one: `cargo run --release --example compare -- --suite smoke`.

use column_scale::COLUMN_SCALE;
use peft_compare::Registry;
use std::process::ExitCode;

/// Learning rates and fields that are not the defaults.
const ENTRIES: &str = r#"
[[method]]
name = "column-scale"
method = "column-scale"
learning_rates = [1e-3, 3e-3, 1e-2]
"#;

fn main() -> ExitCode {
    peft_compare::main(
        &Registry::library()
            .with(&COLUMN_SCALE)
            .with_entries(ENTRIES),
    )
}
