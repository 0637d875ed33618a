//! Bottleneck adapters: small networks beside the model's sublayers.

mod activation;
mod adapter_drop;
mod config;
mod experts;
mod fields;
mod hooks;
mod invertible;
mod json;
mod phm;
mod plan;
mod projection;
mod registration;
mod sparse;
mod state;

pub use activation::Activation;
pub use adapter_drop::{Skip, drop_adapters};
pub use config::BottleneckConfig;
pub use experts::{Expert, consistency_loss};
pub use fields::{
    BottleneckInit, ExpertSharing, HypercomplexInit, InvertibleKind, Pruning, ReductionFactor,
    ResidualBeforeLn, RuleInit, Scaling,
};
pub use invertible::{Coupling, Invertible};
pub use phm::{Factors, Phm};
pub use projection::{Dense, Projection};
pub use registration::{
    ADAMIX, ADAPTER_PLUS, COMPACTER, COMPACTER_PLUS_PLUS, HOULSBY, PARALLEL, PFEIFFER,
    SPARSE_ADAPTER,
};
pub use state::{Bottleneck, Norm, Placement, Residual, Seen};
