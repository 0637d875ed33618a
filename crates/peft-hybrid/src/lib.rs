#![doc = include_str!("../README.md")]

mod groups;
mod schedule;
mod union;

use peft_core::method::MethodInfo;

pub use groups::spindle;
pub use union::{UNION, UnionConfig};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&UNION];
