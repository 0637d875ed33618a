//! For models: the forward passes of Burn's layers with adapters, sites, tied heads.

pub(crate) mod attention_site;
pub(crate) mod base_layer;
pub(crate) mod consistency;
pub(crate) mod convolution;
pub(crate) mod cross_entropy;
pub(crate) mod layers;
pub(crate) mod linear;
pub(crate) mod mixture;
pub(crate) mod place;
pub(crate) mod seen;
pub(crate) mod site;
pub(crate) mod tied_head;
pub(crate) mod tree;
pub(crate) mod vector;

pub use crate::adapter::attention_context::{AttentionContext, PrefixContext};
pub use crate::adapter::forward_context::ForwardContext;
pub use crate::adapter::handed_on::{Lane, Memory};
pub use crate::adapter::low_rank::dropout_rate;
pub use crate::adapter::routing::{RoutedPlace, Router, Routing};
pub use crate::adapter::site_context::{HiddenParts, SiteContext};
pub use crate::adapter::site_type::{
    Attention, Hidden, HiddenState, KeyValue, Prompt, SiteKind, SiteType,
};
pub use crate::adapter::task_ids::TaskIds;
pub use crate::attached::stack::{ACTIVE_ADAPTER, INACTIVE_ADAPTER};
pub use consistency::consistency_loss;
pub use cross_entropy::adapted_cross_entropy;
pub use layers::{
    AdaptedForward, adapted_attention, adapted_gelu, adapted_layer_norm, adapted_norm,
    adapted_positions, adapted_swiglu, adapted_tokens,
};
pub use site::{AttentionSite, HiddenSite, KeyValueSite, PromptSite, Site};
pub use tied_head::TiedHead;
