#![doc = include_str!("../README.md")]

mod bottleneck;
mod ia3;

use peft_core::method::MethodInfo;

pub use bottleneck::{
    ADAPTER_PLUS, Activation, Bottleneck, BottleneckConfig, BottleneckInit, COMPACTER,
    COMPACTER_PLUS_PLUS, Coupling, Dense, Factors, HOULSBY, HypercomplexInit, Invertible,
    InvertibleKind, Norm, PARALLEL, PFEIFFER, Phm, Placement, Projection, ReductionFactor,
    Residual, ResidualBeforeLn, RuleInit, Scaling, Seen,
};
pub use ia3::{IA3, Ia3, Ia3Config};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &HOULSBY,
    &PFEIFFER,
    &PARALLEL,
    &ADAPTER_PLUS,
    &COMPACTER,
    &COMPACTER_PLUS_PLUS,
    &IA3,
];
