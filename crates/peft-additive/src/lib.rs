#![doc = include_str!("../README.md")]

mod bottleneck;
mod bottleneck_state;

use peft_core::method::MethodInfo;

pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&HOULSBY, &PFEIFFER];
