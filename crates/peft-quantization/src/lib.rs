#![doc = include_str!("../README.md")]

mod burn_rows;
mod config;
mod dynamic;
mod error;
mod four_bit;
mod half_rows;
mod loftq;
mod loftq_model;
mod parts;
mod qlora;
mod report;
mod requantize;
mod saved_model;
mod scales;
mod tables;

pub use burn_rows::{BurnRows, BurnScheme};
pub use config::{QuantizationConfig, Tables};
pub use error::{Error, Result};
pub use four_bit::{BLOCK_SIZES, FourBit, FourBitOptions};
pub use half_rows::{FloatFormat, HalfRows};
pub use loftq::{LoftQ, loftq};
pub use loftq_model::{LoftQLayer, LoftQQuantizer, loftq_model};
pub use peft_core::quantize::RawTensor as Part;
pub use qlora::{AdapterDtype, QLoraConfig, QLoraQuantizer};
pub use report::{QuantCase, report};
pub use requantize::{Requantized, requantize};
pub use scales::{NESTED_BLOCK, Scales};
pub use tables::FourBitKind;
