#![doc = include_str!("../README.md")]

mod bottleneck;
mod bottleneck_state;
mod ia3;
mod ladder;

use peft_core::method::MethodInfo;

pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};
pub use ia3::{IA3, Ia3, Ia3Config};
pub use ladder::{LST, LstConfig, LstInit, Rung, SideBlock, SideInput, SideOutput};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&HOULSBY, &PFEIFFER, &IA3, &LST];
