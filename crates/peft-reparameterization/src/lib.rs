#![doc = include_str!("../README.md")]

mod adalora;
mod adalora_schedule;
mod adalora_state;
mod boft;
mod c3a;
mod combine;
mod dora;
mod eva;
mod extract;
mod fourierft;
mod given;
mod hira;
mod hra;
mod linalg;
mod loha;
mod lokr;
mod lora;
mod lora_config;
mod lora_init;
mod lora_plus;
mod lora_state;
mod lora_tied;
mod miss;
mod oft;
mod randlora;
mod rotation;
mod said;
mod start;
mod torch_random;
mod vblora;
mod vera;

use peft_core::method::MethodInfo;

pub use adalora::{ADALORA, AdaLoraConfig};
pub use adalora_state::AdaLora;
pub use boft::{BOFT, BoftConfig, BoftLinear};
pub use c3a::{C3A, C3aConfig, C3aLinear, InitC3a};
pub use combine::{CombinationType, MergeMethod, TiesElectSign, add_weighted_adapter};
pub use dora::Magnitude;
pub use eva::eva;
pub use extract::{Extracted, extract_lora};
pub use fourierft::{FOURIERFT, FourierFtConfig, FourierFtLinear};
pub use hira::{HIRA, HiraConfig, HiraConv2d, HiraEmbedding, HiraLinear};
pub use hra::{HRA, HraConfig, HraLinear};
pub use loha::{ChangeDropout, LOHA, LohaConfig, LohaLinear};
pub use lokr::{InitLokr, KroneckerFactor, LOKR, LokrConfig, LokrLinear};
pub use lora::LORA;
pub use lora_config::{InitLora, LoraConfig, TrainableTokenIndices};
pub use lora_plus::{LoraPlus, lora_plus};
pub use lora_state::{Follower, InitialFactors, LoraBias, LoraConv2d, LoraEmbedding, LoraLinear};
pub use miss::{InitMiss, MISS, MissBat, MissConfig, MissLinear};
pub use oft::{OFT, OftConfig, OftLinear};
pub use peft_core::method::Bias;
pub use randlora::{RANDLORA, RandLoraConfig, RandLoraLinear};
pub use said::{SAID, Said, SaidConfig};
pub use start::{cast_factors, init_from_factors};
pub use vblora::{VBLORA, VbLoraConfig, VbLoraLinear};
pub use vera::{VERA, VeraConfig, VeraLinear};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &LORA, &ADALORA, &LOHA, &LOKR, &VERA, &RANDLORA, &VBLORA, &HIRA, &MISS, &OFT, &BOFT, &HRA,
    &C3A, &FOURIERFT, &SAID,
];
