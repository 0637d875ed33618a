#![doc = include_str!("../README.md")]

mod groups;
mod presets;
mod schedule;
mod union;

use peft_core::method::MethodInfo;

pub use groups::{s4, spindle};
pub use presets::{gated, mam, unipelt};
pub use union::{UNION, UnionConfig};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&UNION];
