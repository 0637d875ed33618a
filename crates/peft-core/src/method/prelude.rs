//! What a method's file is written with: `use peft_core::method::prelude::*`.
//!
//! The contracts and what a plan is made with, Burn's own prelude, and the types that the contracts name.

pub use burn::module::Param;
pub use burn::prelude::*;
pub use burn::tensor::DType;
pub use peft_derive::{Adapter, method_config};
pub use peft_ops::LowRank;
pub use serde_json::Value;

pub use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
pub use crate::adapter::checkpoint_key::CheckpointKey;
pub use crate::adapter::contract::{
    Adapter, AttentionAdapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter,
};
pub use crate::adapter::init::Init;
pub use crate::adapter::low_rank::LowRankAdapter;
pub use crate::adapter::matrix_view::{from_matrix, matrix_of};
pub use crate::adapter::shared::Shared;
pub use crate::error::{Error, Result};
pub use crate::layout::model_layout::{LayerKind, Layout, LayoutParam};
pub use crate::layout::targets::{Selection, Targets};
pub use crate::method::bias::Bias;
pub use crate::method::by_layer::ByLayer;
pub use crate::method::contract::{
    Common, Method, MethodConfig, MethodInfo, Promises, upstream_json,
};
pub use crate::method::linear::{
    LinearMethod, TargetLayer, adapt_each, layer_targets, linear_targets,
};
pub use crate::method::plan::Plan;
