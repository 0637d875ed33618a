//! Methods that rotate or reflect a weight.

pub(crate) mod boft;
pub(crate) mod hra;
pub(crate) mod oft;
pub(crate) mod psoft;
pub(crate) mod rotation;

use peft_core::Result;
use peft_core::method::MethodInfo;

/// Refuses sizes of which not exactly one is given, with 0 for the other; `fields` are their names.
pub(crate) fn one_of_two(info: &MethodInfo, fields: &'static str, sizes: [usize; 2]) -> Result<()> {
    if sizes.iter().filter(|size| **size == 0).count() == 1 {
        return Ok(());
    }
    let [first, second] = sizes;
    Err(info.refusal(fields, (first, second), "one of them, and 0 for the other"))
}
