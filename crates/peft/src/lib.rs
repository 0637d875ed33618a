#![doc = include_str!("../README.md")]

pub use peft_additive as additive;
pub use peft_core as core;
pub use peft_hybrid as hybrid;
pub use peft_quantization as quantization;
pub use peft_reparameterization as reparameterization;
pub use peft_selective as selective;
pub use peft_soft_prompt as soft_prompt;
pub use peft_train as train;

use peft_core::method::MethodInfo;

/// Every method there is, family by family. The crate of a new family is added to this list.
pub fn methods() -> Vec<&'static MethodInfo> {
    [
        peft_selective::METHODS,
        peft_additive::METHODS,
        peft_reparameterization::METHODS,
        peft_soft_prompt::METHODS,
        peft_hybrid::METHODS,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::methods;

    #[test]
    fn names_are_unique_and_every_method_has_a_default() {
        let methods = methods();
        for (index, info) in methods.iter().enumerate() {
            for other in &methods[..index] {
                assert_ne!(info.name, other.name);
                assert_ne!(info.peft_type, other.peft_type);
            }
            assert!(!info.reference.is_empty() && !info.title.is_empty());
        }
    }
}

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
