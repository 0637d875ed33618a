//! Adapters for any Burn model: the contract that every method of parameter-efficient fine-tuning
//! implements, and everything that is the same for all of them.
//!
//! This crate knows no method. A method crate (`peft-reparameterization` for LoRA, say) gives a
//! configuration that implements [`Method`]; [`PeftModule`] puts it on a model:
//!
//! ```text
//! let model = model.attach("sst2", &LoraConfig::new(8))?;
//! println!("{}", model.summary());
//! // train with any Burn optimizer or Learner
//! model.save_adapter("sst2", dir)?;
//! let model = base.load_adapter("sst2", dir, METHODS)?;
//! let model = model.merge_and_unload()?;
//! ```
//!
//! | where a method acts | contract | needs of the model |
//! |---|---|---|
//! | a weight | [`WeightAdapter`] | nothing; faster where it calls [`AdaptedForward`] |
//! | a hidden state | [`HiddenAdapter`] | a [`Site`] field at the place |
//! | the input | [`PromptAdapter`] | a [`Site`] field after the embeddings |
//! | attention's keys and values | [`KeyValueAdapter`] | a [`Site`] field in every attention layer |
//!
//! `docs/architecture.md` has the invariants.

pub mod accounting;
mod adapter;
mod attached;
mod chain;
pub mod checkpoint;
pub mod device;
mod erased;
mod error;
pub mod files;
mod init;
mod keys;
mod layout;
mod mechanism;
mod method;
mod model;
mod names;
mod nn;
mod packing;
mod patterns;
mod rows;
mod saved;
mod schedule;
mod shared;
mod site;
mod stack;
mod targets;
mod tensor_spec;
mod tied;
mod tokens;
mod training;
mod transpose;
mod written;

pub use adapter::{
    Adapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, Surroundings, WeightAdapter,
};
pub use chain::{InnerConv2d, InnerEmbedding, InnerLinear};
pub use error::{Error, Result};
pub use init::Init;
pub use layout::{Layer, LayerKind, Layout, LayoutParam, LayoutSite};
pub use method::{
    Common, ConfigExt, Family, Method, MethodInfo, Plan, by_peft_type, config_from_json,
    config_to_json,
};
pub use model::PeftModule;
pub use names::Names;
pub use nn::{
    AdaptedForward, adapted_attention, adapted_cross_entropy, adapted_gelu, adapted_norm,
    adapted_swiglu, dropout_rate,
};
pub use packing::{PackedLayer, Packer, StoredPart};
pub use patterns::Patterns;
pub use peft_ops as ops;
pub use peft_ops::gelu;
pub use saved::TrainedBias;
pub use schedule::{Schedule, States};
pub use shared::Shared;
pub use site::{Site, SiteKind};
pub use stack::{ACTIVE_ADAPTER, INACTIVE_ADAPTER};
pub use targets::{ALL_LINEAR, OneOrMany, Selection, Targets};
pub use tensor_spec::TensorSpec;
pub use tied::TiedHead;
pub use tokens::TrainedRows;
pub use training::Training;
pub use transpose::transposed;
pub use written::{Written, stage_file, write_file, write_tensors};
