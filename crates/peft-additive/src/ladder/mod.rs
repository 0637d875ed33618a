//! Ladder side-tuning: a small network beside the model, which reads its hidden states.

mod config;
mod pruning;
mod side;
mod sizes;

pub use config::{LST, LstConfig, LstInit};
pub use side::{Rung, SideBlock, SideInput, SideOutput};
pub(crate) use sizes::{Block, Sizes, blocks};
