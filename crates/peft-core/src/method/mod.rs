//! For authors of methods: the contracts that a method implements, and what it is given to plan with.

pub(crate) mod bias;
pub(crate) mod by_layer;
pub(crate) mod contract;
pub(crate) mod hooks;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod module_to_save;
pub(crate) mod targeting;
pub(crate) mod trainable_tokens;

pub use crate::adapter::checkpoint_key::CheckpointKey;
pub use crate::adapter::contract::{
    Adapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, SiteContext, WeightAdapter,
};
pub use crate::adapter::init::Init;
pub use crate::adapter::shared::Shared;
pub use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam, LayoutSite};
pub use crate::layout::patterns::Patterns;
pub use crate::layout::targets::{ALL_LINEAR, OneOrMany, Selection, Targets};
pub use crate::nn::base_layer::{BaseConv2d, BaseEmbedding, BaseLinear};
pub use bias::Bias;
pub use by_layer::{ByLayer, LayerValue, read_by_layer};
pub use contract::{
    Common, ConfigExt, Family, Method, MethodConfig, MethodInfo, Plan, by_peft_type, check_field,
    config_from_json, config_to_json, upstream_json,
};
pub use hooks::{MethodHooks, States};
pub use linear::{LinearMethod, TargetLayer, adapt_each, layer_targets, linear_targets};
pub use low_rank::LowRankAdapter;
pub use module_to_save::TrainedBias;
/// Lists the tensors of a state in its checkpoint: the derive of [`Adapter`](trait@Adapter).
pub use peft_derive::Adapter;
pub use peft_derive::method_config;
pub use serde_json::Value;
pub use targeting::{
    LINEAR, LINEAR_AND_CONV2D, LINEAR_EMBEDDING_AND_CONV2D, Target, at_least_one, patterns,
    read_patterns, refuse_unsupported, refuse_unused, select, train_biases,
};
pub use trainable_tokens::TrainableTokens;

// What `method_config` writes names it.
#[doc(hidden)]
pub use serde;
