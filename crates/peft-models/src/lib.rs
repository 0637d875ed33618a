#![doc = include_str!("../README.md")]

mod bert;
mod checkpoint;
mod error;
mod generate;
pub mod gguf;
mod llama;
mod llama_tokenizer;
mod tokenizer;

pub use bert::{
    Bert, BertAttention, BertClassifier, BertConfig, BertEmbeddings, BertEncoder, BertIntermediate,
    BertLayer, BertOutput, BertPooler, BertResidual, BertSelfAttention, HiddenAct, Pooling,
};
pub use error::LoadError;
pub use generate::{GenerateConfig, GenerateError, Generated, StoppedBy};
pub use llama::{
    ExportConfig, ExportDtype, KvCache, Llama, LlamaAttention, LlamaConfig, LlamaLayer,
    LlamaLoader, LlamaMlp, LlamaModel, LmBatch, Rope, RopeScaling,
};
pub use llama_tokenizer::{ChatTemplate, LlamaTokenizer, Message, Moment};
pub use tokenizer::{Batch, Tokenizer};
