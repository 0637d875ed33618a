//! Reference models with adapter sites, loading published Hugging Face weights.
//!
//! | model | loads | sites |
//! |---|---|---|
//! | [`Bert`] | `BertModel` checkpoints (`config.json`, `model.safetensors`), sharded or 4-bit quantized ones too | [`Embeddings`](peft_core::SiteKind::Embeddings), [`AttentionOutput`](peft_core::SiteKind::AttentionOutput), [`FeedForwardOutput`](peft_core::SiteKind::FeedForwardOutput), [`KeyValue`](peft_core::SiteKind::KeyValue) |
//! | [`BertClassifier`] | `BertForSequenceClassification` checkpoints, or a fresh head on a [`Bert`] | those of [`Bert`] |
//! | [`Llama`] | `LlamaForCausalLM`, `MistralForCausalLM` and `Qwen2ForCausalLM` checkpoints, sharded ones too, and GGUF files | [`Embeddings`](peft_core::SiteKind::Embeddings), [`AttentionOutput`](peft_core::SiteKind::AttentionOutput), [`FeedForwardOutput`](peft_core::SiteKind::FeedForwardOutput), [`KeyValue`](peft_core::SiteKind::KeyValue) |
//!
//! The models are plain Burn modules: their layers are `burn::nn`'s, called through
//! [`AdaptedForward`](peft_core::nn::AdaptedForward), so adapters of every place (weight, hidden state,
//! input) attach to them. Layers are known by the names that Hugging Face gives them
//! (`encoder.layer.0.attention.self.query`).
//!
//! ```no_run
//! use burn::tensor::Device;
//! use peft_models::{Bert, BertClassifier, Pooling, Tokenizer};
//!
//! # fn main() -> Result<(), peft_models::LoadError> {
//! let device = Device::default();
//! let tokenizer = Tokenizer::load("all-MiniLM-L6-v2")?;
//! let bert = Bert::load("all-MiniLM-L6-v2", &device)?;
//! let model = BertClassifier::new_head(bert, 2, Pooling::Mean, 0.1, &device)?;
//!
//! let batch = tokenizer.encode_batch(&["A gripping film.", "A mess."], 128)?;
//! let (ids, padding) = batch.to_device(&device);
//! let logits = model.forward(ids, padding); // [2, 2]
//! # Ok(())
//! # }
//! ```
//!
//! Gradient checkpointing is a property of the device, not of the model: build the model on
//! `device.autodiff().gradient_checkpointing()` and nothing here changes.

mod bert;
mod checkpoint;
mod error;
mod export;
mod generate;
pub mod gguf;
mod llama;
mod llama_tokenizer;
mod panics;
mod tokenizer;

pub use bert::{
    Bert, BertAttention, BertClassifier, BertConfig, BertEmbeddings, BertEncoder, BertIntermediate,
    BertLayer, BertOutput, BertPooler, BertResidual, BertSelfAttention, HiddenAct, Pooling,
};
pub use error::LoadError;
pub use export::{ExportConfig, ExportDtype};
pub use generate::{GenerateConfig, GenerateError, Generated, StoppedBy};
pub use llama::{
    KvCache, Llama, LlamaAttention, LlamaConfig, LlamaLayer, LlamaLoader, LlamaMlp, LlamaModel,
    LmBatch, Rope, RopeScaling,
};
pub use llama_tokenizer::{ChatTemplate, LlamaTokenizer, Message, Moment};
pub use tokenizer::{Batch, Tokenizer};
