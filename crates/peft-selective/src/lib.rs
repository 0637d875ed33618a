//! Methods that train a part of a model's own parameters, and the two references that every
//! comparison needs.
//!
//! | method | what trains | paper | configuration |
//! |---|---|---|---|
//! | BitFit | every bias | [Ben Zaken et al. 2021](https://arxiv.org/abs/2106.10199) | [`BitFitConfig`] |
//! | head only | the output head | – | [`HeadOnlyConfig`] |
//! | full fine-tuning | everything, in place | – | [`FullConfig`] |
//!
//! What a selective method trains is stored as its difference from the base: the base keeps its
//! values, so several selections can sit on one model, be switched and merged like any adapter.

mod bitfit;
mod reference;

use peft_core::method::MethodInfo;

pub use bitfit::{BITFIT, BiasDelta, BitFitConfig};
pub use reference::{FULL, FullConfig, HEAD_ONLY, HeadOnlyConfig};

/// The methods of this crate, references included.
pub const METHODS: &[&MethodInfo] = &[&BITFIT, &HEAD_ONLY, &FULL];
