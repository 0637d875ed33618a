//! For models: the forward passes of Burn's layers with adapters, sites, tied heads.

pub(crate) mod base_layer;
pub(crate) mod layers;
pub(crate) mod mixed_batch;
pub(crate) mod place;
pub(crate) mod site;
pub(crate) mod tied_head;

pub use crate::adapter::contract::SiteContext;
pub use crate::attached::stack::{ACTIVE_ADAPTER, INACTIVE_ADAPTER};
pub use crate::layout::site_kind::SiteKind;
pub use layers::{
    AdaptedForward, adapted_attention, adapted_cross_entropy, adapted_gelu, adapted_norm,
    adapted_swiglu, dropout_rate,
};
pub use site::Site;
pub use tied_head::TiedHead;
