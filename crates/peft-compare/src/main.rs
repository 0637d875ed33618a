//! `peft-compare`: which method buys what, at which cost. Started by `cargo xtask compare`.

use std::process::ExitCode;

use peft_compare::Registry;

fn main() -> ExitCode {
    peft_compare::main(&Registry::library())
}
