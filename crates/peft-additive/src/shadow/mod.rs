//! ShadowPEFT: a small network of the model's kind beside it, whose state is compared with the model's before every block.

mod backbone;
mod config;
mod step;

pub use backbone::{Affine, ShadowBackbone, ShadowBlock};
pub use config::{SHADOW, ShadowConfig};
pub use step::{ShadowInjection, ShadowStep, ShadowUpdate};
