//! Methods that add layers to a model.
//!
//! | method | definition | paper | configuration |
//! |---|---|---|---|
//! | Houlsby | h + Up(σ(Down h)), after attention and after feed-forward | [Houlsby et al. 2019](https://arxiv.org/abs/1902.00751) | [`BottleneckConfig::houlsby`] |
//! | Pfeiffer | h + Up(σ(Down LN(h + x))), after feed-forward | [Pfeiffer et al. 2020](https://arxiv.org/abs/2005.00247) | [`BottleneckConfig::pfeiffer`] |
//! | IA³ | l ∘ (x W + b), and (l ∘ x) W + b in feed-forward blocks | [Liu et al. 2022](https://arxiv.org/abs/2205.05638) | [`Ia3Config`] |
//!
//! Houlsby's and Pfeiffer's act on hidden states, so the model must have [`Site`](peft_core::Site)s; those of
//! `peft-models` do. Their checkpoints are AdapterHub's, IA³'s are Hugging Face PEFT's, read and written.

mod bottleneck;
mod bottleneck_state;
mod ia3;

use peft_core::method::MethodInfo;

pub use bottleneck::{BottleneckConfig, HOULSBY, PFEIFFER};
pub use bottleneck_state::{Activation, Bottleneck};
pub use ia3::{IA3, Ia3, Ia3Config};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&HOULSBY, &PFEIFFER, &IA3];
