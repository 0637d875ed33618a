//! Frozen weights in few bits, for training adapters on them (QLoRA).
//!
//! | format | bits a weight | what it is | type |
//! |---|---|---|---|
//! | NF4 | 4.5; 4.13 with double quantization | quantiles of the normal distribution, scaled block by block | [`FourBit`] |
//! | FP4 | 4.5; 4.13 with double quantization | floats of 4 bits, scaled block by block | [`FourBit`] |
//! | int8 | 9 | Burn's `Q8S` in blocks of 32 | [`BurnRows`] |
//! | int4 | 5 | Burn's `Q4S` in blocks of 32 | [`BurnRows`] |
//! | bfloat16, float16 | 16 | rounded, for tables and heads | [`HalfRows`] |
//!
//! All of them are [`QuantizedMatrix`](peft_ops::quantized::QuantizedMatrix): decoded row by row when they are
//! needed, on any Burn model. A [`QuantizationConfig`] says which weights of a model are kept how, and a
//! [`QLoraConfig`] which LoRA trains on them besides:
//!
//! ```
//! use peft_quantization::{FourBit, FourBitKind, FourBitOptions, QuantizationConfig};
//!
//! let config = QuantizationConfig::nf4().with_double_quantization(true);
//! config.validate()?;
//!
//! let values: Vec<f32> = (0..128).map(|index| (index as f32).sin()).collect();
//! let weight = FourBit::quantize(&values, [2, 64], FourBitOptions::new(FourBitKind::Nf4))?;
//! assert_eq!(weight.codes().len(), 64);
//! # Ok::<(), peft_quantization::Error>(())
//! ```
//!
//! Sources: Dettmers et al. 2023, *QLoRA: Efficient Finetuning of Quantized LLMs*
//! ([arXiv:2305.14314](https://arxiv.org/abs/2305.14314)), section 3, for NF4 and double quantization;
//! bitsandbytes 0.50 for everything that its papers leave open. Codes, scales and codes of scales are
//! bit by bit what its `quantize_4bit` gives on a CPU, and checkpoints are read and written as it lays
//! them out ([`FourBit::from_parts`]): a loader reads a whole model that transformers saved in 4 bits with
//! [`QuantizationConfig::load`] as its quantizer. [`loftq()`] is Li et al. 2023
//! ([arXiv:2310.08659](https://arxiv.org/abs/2310.08659)), [`loftq_model()`] the same for a model.
//!
//! Where this crate and bitsandbytes can differ:
//!
//! - The CPU's kernel looks codes of *scales* up on a grid; CUDA's, by its source, searches the table
//!   itself, and finds the neighbour in one case of 700 or so. Files hold codes, so a file means the
//!   same everywhere.
//! - The mean of the scales is added up in the order of torch's kernel for vectors of 8, in one piece. A
//!   processor without AVX2 adds in another order, which can move its last bit.
//! - On CPUs with AVX-512, bitsandbytes 0.50 *decodes* matrices wrongly whose rows do not end with a
//!   block (and are a multiple of 16 long): rows get the scales of other blocks. CUDA's kernel and this
//!   crate do not.

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
