//! Bottleneck adapters: small networks beside the model's sublayers.

mod adapter_drop;
mod block;
mod check;
mod config;
mod experts;
mod fields;
mod hooks;
mod invertible;
mod json;
mod phm;
mod plan;
mod projection;
mod skip;
mod sparse;
mod state;
mod width;

pub use adapter_drop::drop_adapters;
pub use config::{
    ADAMIX, ADAPTER_PLUS, BottleneckConfig, COMPACTER, COMPACTER_PLUS_PLUS, HOULSBY, PARALLEL,
    PFEIFFER, SPARSE_ADAPTER,
};
pub use experts::Expert;
pub use fields::{
    BottleneckInit, ExpertSharing, HypercomplexInit, InvertibleKind, Pruning, ReductionFactor,
    ResidualBeforeLn, RuleInit, Scaling,
};
pub use invertible::{Coupling, Invertible};
pub use phm::{Factors, Phm};
pub use projection::{Dense, Projection};
pub use skip::Skip;
pub use state::{Bottleneck, Norm, Placement, Residual, Seen};
