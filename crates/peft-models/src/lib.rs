#![doc = include_str!("../README.md")]

mod bert;
mod checkpoint;
mod error;
mod export;
mod generate;
pub mod gguf;
mod key_values;
mod llama;
mod llama_tokenizer;
mod panics;
mod tokenizer;
mod vocabulary;

pub use bert::{
    Bert, BertAttention, BertClassifier, BertConfig, BertEmbeddings, BertEncoder, BertIntermediate,
    BertLayer, BertOutput, BertPooler, BertResidual, BertSelfAttention, BertTokenClassifier,
    HiddenAct, Pooling,
};
pub use error::LoadError;
pub use export::{ExportConfig, ExportDtype};
pub use generate::{GenerateConfig, GenerateError, Generated, Generator, StoppedBy, TextRouting};
pub use llama::{
    KvCache, Llama, LlamaAttention, LlamaConfig, LlamaLayer, LlamaLoader, LlamaMlp, LlamaModel,
    LmBatch, Rope, RopeScaling,
};
pub use llama_tokenizer::{ChatTemplate, LlamaTokenizer, Message, Moment};
pub use tokenizer::{Batch, Tokenizer};
