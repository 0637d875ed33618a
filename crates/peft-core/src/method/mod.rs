//! For authors of methods: the contracts that a method implements, and what it is given to plan with.

pub(crate) mod contract;
pub(crate) mod hooks;
pub(crate) mod module_to_save;
pub(crate) mod plan;
pub(crate) mod saved_modules;
pub(crate) mod targeting;
pub(crate) mod trainable_tokens;

pub use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
pub use crate::adapter::checkpoint_key::CheckpointKey;
pub use crate::adapter::contract::{
    Adapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, Role, WeightAdapter,
};
pub use crate::adapter::init::Init;
pub use crate::adapter::shared::Shared;
pub use crate::adapter::site_context::SiteContext;
pub use crate::adapter::site_type::{HiddenState, SiteKind};
pub use crate::layout::model_layout::{
    Layer, LayerKind, Layout, LayoutParam, LayoutSite, TypedSite,
};
pub use crate::layout::patterns::Patterns;
pub use crate::layout::targets::{ALL_LINEAR, OneOrMany, Selection, Targets};
pub use contract::{
    Common, ConfigExt, Family, Method, MethodInfo, by_peft_type, config_from_json, config_to_json,
};
pub use hooks::{MethodHooks, States};
pub use module_to_save::TrainedBias;
pub use plan::Plan;
pub use targeting::{
    Bias, LINEAR, LINEAR_AND_CONV2D, Target, at_least_one, bias_to_json, patterns, read_patterns,
    refuse_unsupported, refuse_unused, select, train_biases,
};
pub use trainable_tokens::TrainableTokens;
