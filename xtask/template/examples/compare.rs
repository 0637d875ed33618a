//! The comparison of peft's methods, with this one: `cargo run --release --example compare -- --suite smoke`.

use my_method::MY_METHOD;
use peft_compare::Registry;
use std::process::ExitCode;

/// Learning rates and fields that are not the defaults.
const ENTRIES: &str = r#"
[[method]]
name = "my-method"
method = "my-method"
learning_rates = [1e-3, 3e-3, 1e-2]
"#;

fn main() -> ExitCode {
    peft_compare::main(
        &Registry::library()
            .with(&MY_METHOD)
            .with_entries(ENTRIES),
    )
}
