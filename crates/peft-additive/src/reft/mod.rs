//! ReFT (Wu et al. 2024, ReFT: Representation Finetuning for Language Models): the residual stream is edited in a
//! subspace, behind blocks, at a text's first and last tokens.

mod config;
mod orthogonal;
mod places;
mod state;

pub use config::{DIREFT, LOREFT, NOREFT, ReftConfig};
pub use orthogonal::OrthogonalProjection;
pub use state::{Reft, ReftUnit};
