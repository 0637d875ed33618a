#![doc = include_str!("../README.md")]

mod bitfit;
mod reference;

use peft_core::method::MethodInfo;

pub use bitfit::{BITFIT, BiasDelta, BitFitConfig};
pub use reference::{FULL, FullConfig, HEAD_ONLY, HeadOnlyConfig};

/// The methods of this crate, references included.
pub const METHODS: &[&MethodInfo] = &[&BITFIT, &HEAD_ONLY, &FULL];
