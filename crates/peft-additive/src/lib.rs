//! Methods that add layers to a model.
//!
//! | method | definition | paper | configuration |
//! |---|---|---|---|
//! | Houlsby | h + Up(σ(Down h)), after attention and after feed-forward | [Houlsby et al. 2019](https://arxiv.org/abs/1902.00751) | [`BottleneckConfig::houlsby`] |
//! | Pfeiffer | h + Up(σ(Down LN(h + x))), after feed-forward | [Pfeiffer et al. 2020](https://arxiv.org/abs/2005.00247) | [`BottleneckConfig::pfeiffer`] |
//!
//! Both act on hidden states, so the model must have [`Site`](peft_core::Site)s; those of
//! `peft-models` do. Checkpoints are AdapterHub's, read and written.

mod bottleneck;
mod bottleneck_state;

use peft_core::method::MethodInfo;

pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&HOULSBY, &PFEIFFER];
