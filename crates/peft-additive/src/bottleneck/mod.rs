//! Bottleneck adapters: small networks beside the model's sublayers.

mod activation;
mod config;
mod fields;
mod invertible;
mod json;
mod phm;
mod plan;
mod projection;
mod registration;
mod state;

pub use activation::Activation;
pub use config::BottleneckConfig;
pub use fields::{
    BottleneckInit, HypercomplexInit, InvertibleKind, ReductionFactor, ResidualBeforeLn, RuleInit,
    Scaling,
};
pub use invertible::{Coupling, Invertible};
pub use phm::{Factors, Phm};
pub use projection::{Dense, Projection};
pub use registration::{ADAPTER_PLUS, COMPACTER, COMPACTER_PLUS_PLUS, HOULSBY, PARALLEL, PFEIFFER};
pub use state::{Bottleneck, Norm, Placement, Residual, Seen};
