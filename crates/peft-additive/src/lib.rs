#![doc = include_str!("../README.md")]

mod adapterhub;
mod beft;
mod bottleneck;
mod bottleneck_state;
mod ia3;
mod ladder;
mod reft;
mod road;

use peft_core::method::MethodInfo;

pub use beft::{BEFT, Beft, BeftConfig, BeftOutput};
pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};
pub use ia3::{IA3, Ia3, Ia3Config};
pub use ladder::{LST, LstConfig, LstInit, Rung, SideBlock, SideInput, SideOutput};
pub use reft::{DIREFT, LOREFT, NOREFT, OrthogonalProjection, Reft, ReftConfig, ReftUnit};
pub use road::{ROAD, Road, RoadConfig, RoadVariant};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &HOULSBY, &PFEIFFER, &IA3, &ROAD, &BEFT, &LOREFT, &NOREFT, &DIREFT, &LST,
];
