#![doc = include_str!("../README.md")]

mod attend;
mod beft;
mod bottleneck;
mod fusion;
mod ia3;
mod ladder;
mod reft;
mod road;
mod shadow;

use peft_core::method::MethodInfo;

pub use beft::{BEFT, Beft, BeftConfig, BeftOutput};
pub use bottleneck::{
    ADAMIX, ADAPTER_PLUS, Bottleneck, BottleneckConfig, BottleneckInit, COMPACTER,
    COMPACTER_PLUS_PLUS, Coupling, Dense, Expert, ExpertSharing, Factors, HOULSBY,
    HypercomplexInit, Invertible, InvertibleKind, Norm, PARALLEL, PFEIFFER, Phm, Placement,
    Projection, Pruning, ReductionFactor, Residual, ResidualBeforeLn, RuleInit, SPARSE_ADAPTER,
    Scaling, Seen, Skip, drop_adapters,
};
pub use fusion::{ADAPTER_FUSION, AdapterFusion, AdapterFusionConfig, FusionProjection};
pub use ia3::{AdapterHubIa3, GatedIa3, IA3, Ia3, Ia3Config};
pub use ladder::{LST, LstConfig, LstInit, Rung, SideBlock, SideInput, SideOutput};
pub use peft_core::method::Activation;
pub use reft::{DIREFT, LOREFT, NOREFT, OrthogonalProjection, Reft, ReftConfig, ReftUnit};
pub use road::{ROAD, Road, RoadConfig, RoadVariant};
pub use shadow::{
    Affine, SHADOW, ShadowBackbone, ShadowBlock, ShadowConfig, ShadowInjection, ShadowStep,
    ShadowUpdate,
};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &HOULSBY,
    &PFEIFFER,
    &PARALLEL,
    &ADAPTER_PLUS,
    &COMPACTER,
    &COMPACTER_PLUS_PLUS,
    &SPARSE_ADAPTER,
    &ADAMIX,
    &IA3,
    &ROAD,
    &BEFT,
    &LOREFT,
    &NOREFT,
    &DIREFT,
    &LST,
    &SHADOW,
    &ADAPTER_FUSION,
];
