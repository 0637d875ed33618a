//! For authors of methods: the contracts that a method implements, and what it is given to plan with.

pub(crate) mod activation;
pub(crate) mod adapterhub;
pub(crate) mod bias;
pub(crate) mod by_layer;
pub(crate) mod contract;
pub(crate) mod hooks;
pub(crate) mod linear;
pub(crate) mod module_to_save;
pub(crate) mod plan;
pub mod prelude;
pub(crate) mod saved_modules;
pub(crate) mod sparse_delta;
pub(crate) mod targeting;
pub(crate) mod text_gate;
pub(crate) mod trainable_tokens;

pub use crate::adapter::attention_context::{AttentionContext, PrefixContext};
pub use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
pub use crate::adapter::checkpoint_key::CheckpointKey;
pub use crate::adapter::contract::{
    Adapter, AttentionAdapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter,
};
pub use crate::adapter::init::Init;
pub use crate::adapter::low_rank::LowRankAdapter;
pub use crate::adapter::matrix_view::{from_matrix, matrix_of};
pub use crate::adapter::shared::Shared;
pub use crate::adapter::site_context::{HiddenParts, SiteContext};
pub use crate::adapter::site_type::{HiddenState, SiteKind};
pub use crate::layout::model_layout::{
    Layer, LayerKind, Layout, LayoutParam, LayoutSite, TypedSite,
};
pub use crate::layout::targets::{OneOrMany, Selection, Targets};
pub use activation::Activation;
pub use adapterhub::{
    Projections, adapterhub_fields, adapterhub_json, architecture, listed, model_root,
    read_adapterhub,
};
pub use bias::Bias;
pub use by_layer::{ByLayer, LayerValue, read_by_layer};
pub use contract::{
    Common, Family, FileNames, Method, MethodConfig, MethodInfo, Promises, check_field,
    config_from_json, config_to_json, upstream_json,
};
pub use hooks::{MethodHooks, States};
pub use linear::{LinearMethod, TargetLayer, adapt_each, layer_targets, linear_targets};
pub use module_to_save::TrainedBias;
pub use peft_derive::method_config;
pub use plan::Plan;
pub use serde_json::Value;
pub use sparse_delta::SparseDelta;
pub use targeting::{LINEAR_AND_CONV, LINEAR_EMBEDDING_AND_CONV, refuse_unsupported, train_biases};
pub use text_gate::TextGate;
pub use trainable_tokens::TrainableTokens;

/// Lists the tensors of a state in its checkpoint: the derive of [`Adapter`](trait@Adapter).
pub use peft_derive::Adapter;

// What `method_config` writes names it.
#[doc(hidden)]
pub use serde;
