//! Parameter-efficient fine-tuning for Burn: every method crate under one roof.
//!
//! For those who want all methods at once: the comparison suite, tools that load whatever
//! adapter a folder holds. A model that needs one family depends on `peft-core` and that crate.
//!
//! | module | holds |
//! |---|---|
//! | [`core`](mod@core) | the contract, and everything that is the same for all methods |
//! | [`additive`], [`reparameterization`], [`selective`], [`soft_prompt`] | the methods, family by family |
//! | [`quantization`] | bases in 4, 8 or 16 bits, for training adapters on them (QLoRA) |
//! | [`train`] | a training loop for causal language models |
//!
//! The reference models, BERT and Llama, are a crate of their own: `peft-models`.
//!
//! A new method crate is added here, in `Cargo.toml` and in [`methods`], and is thereby in the
//! comparison suite and in the conformance suite.

pub use peft_additive as additive;
pub use peft_core as core;
pub use peft_quantization as quantization;
pub use peft_reparameterization as reparameterization;
pub use peft_selective as selective;
pub use peft_soft_prompt as soft_prompt;
pub use peft_train as train;

use peft_core::method::MethodInfo;

/// Every method there is, family by family.
pub fn methods() -> Vec<&'static MethodInfo> {
    [
        peft_selective::METHODS,
        peft_additive::METHODS,
        peft_reparameterization::METHODS,
        peft_soft_prompt::METHODS,
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
