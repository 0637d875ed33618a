#![doc = include_str!("../README.md")]

mod bottleneck;
mod bottleneck_state;
mod fusion;
mod ia3;

use peft_core::method::MethodInfo;

pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};
pub use fusion::{ADAPTER_FUSION, AdapterFusion, AdapterFusionConfig, Projection};
pub use ia3::{IA3, Ia3, Ia3Config};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&HOULSBY, &PFEIFFER, &IA3, &ADAPTER_FUSION];
