//! AdapterFusion: attention over the adapters that are at a site already.

mod config;
mod schedule;
mod state;

pub use config::{ADAPTER_FUSION, AdapterFusionConfig};
pub use state::{AdapterFusion, FusionProjection};
