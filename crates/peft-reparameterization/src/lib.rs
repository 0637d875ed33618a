#![doc = include_str!("../README.md")]

mod adalora;
mod combine;
mod combine_error;
mod init_name;
mod lora;
mod lycoris;
mod math;
mod mixture;
mod orthogonal;
mod shared_projection;
mod spectral;
mod structured;
mod weight_aware;

use peft_core::method::MethodInfo;

pub use adalora::config::{ADALORA, AdaLoraConfig};
pub use adalora::state::AdaLora;
pub use combine::extract::{Extracted, extract_lora};
pub use combine::intruders::{IntruderReduction, Intruders, reduce_intruders};
pub use combine::merge_method::{MergeMethod, TiesElectSign};
pub use combine::weighted::{CombinationType, add_weighted_adapter};
pub use combine_error::CombineError;
pub use init_name::InitWeights;
pub use lora::adapterhub::AdapterHubLora;
pub use lora::adapterhub_state::{AdapterHubEnd, AdapterHubLoraLinear};
pub use lora::alora::{ALoraLinear, Invocation};
pub use lora::block_diagonal::{BdLoraConfig, BdLoraLinear};
pub use lora::config::{InitLora, LORA, LoraConfig, TrainableTokenIndices};
pub use lora::conv::LoraConv2d;
pub use lora::corda::{CordaConfig, CordaMethod};
pub use lora::dora::Magnitude;
pub use lora::eva::eva;
pub use lora::gradient_start::{LoraGaConfig, LoraGaDirection, LoraGaScale};
pub use lora::initial_factors::{cast_factors, init_from_factors};
pub use lora::kasa::{KasaConfig, KasaLinear};
pub use lora::loftq::{LoftqConfig, LoftqLinear};
pub use lora::monteclora::{MontecloraConfig, MontecloraLinear};
pub use lora::plus::{LoraPlus, lora_plus};
pub use lora::state::{Follower, InitialFactors, LoraBias, LoraEmbedding, LoraLinear};
pub use lora::velora::{VeloraConfig, VeloraInit, VeloraLinear};
pub use lycoris::change_dropout::ChangeDropout;
pub use lycoris::krona_block::{KRONA_B, KronaBlock, KronaBlockConfig};
pub use lycoris::loha::{LOHA, LohaConfig, LohaLinear};
pub use lycoris::loha_conv::LohaConv;
pub use lycoris::lokr::{KroneckerFactor, LOKR, LokrConfig, LokrLinear};
pub use math::nf4::NF4_VALUES;
pub use mixture::arrow::{ArrowConfig, arrow, gen_know_sub};
pub use mixture::classifier::XLoraClassifier;
pub use mixture::lily::{LILY, LilyConfig, LilyLinear};
pub use mixture::mtl_adapterhub::AdapterHubMtl;
pub use mixture::mtl_layouts::AdapterHubMtlLinear;
pub use mixture::mtl_lora::{MTL_LORA, MtlLoraConfig, MtlLoraLinear, TaskSpecificMatrix};
pub use mixture::poly::{POLY, PolyConfig, PolyLinear};
pub use mixture::xlora::XLora;
pub use mixture::xlora_config::XLoraConfig;
pub use orthogonal::boft::{BOFT, BoftConfig, BoftLinear};
pub use orthogonal::hra::{HRA, HraConfig, HraLinear};
pub use orthogonal::oft::{OFT, OftConfig, OftEmbedding, OftLinear};
pub use orthogonal::psoft::{PSOFT, PsoftConfig, PsoftFactors, PsoftLinear, PsoftSvd};
pub use peft_core::method::Bias;
pub use shared_projection::pvera::{PVERA, PveraConfig, PveraLinear};
pub use shared_projection::randlora::{RANDLORA, RandLoraConfig, RandLoraLinear};
pub use shared_projection::tinylora::{InitTinyLora, TINYLORA, TinyLora, TinyLoraConfig};
pub use shared_projection::unilora::{UNILORA, UniLoraConfig, UniLoraLinear};
pub use shared_projection::vblora::{VBLORA, VbLoraConfig, VbLoraLinear};
pub use shared_projection::vera::{VERA, VeraConfig, VeraLinear};
pub use shared_projection::vera_adapterhub::AdapterHubVera;
pub use shared_projection::vera_layouts::AdapterHubVeraLinear;
pub use spectral::adamss::config::{ADAMSS, AdamssConfig};
pub use spectral::adamss::state::{AdamssBias, AdamssLinear, AdamssSubspaces};
pub use spectral::frod::{FROD, FrodConfig, FrodLinear};
pub use spectral::osf::{OSF, OsfConfig, OsfLinear, OsfRank};
pub use structured::c3a::{C3A, C3aConfig, C3aLinear};
pub use structured::delora::{DELORA, DeLoraConfig, DeLoraLinear};
pub use structured::fourierft::{FOURIERFT, FourierFtConfig, FourierFtLinear};
pub use structured::glora::{GLORA, GloraBias, GloraConfig, GloraForm, GloraLinear, GloraPart};
pub use structured::gralora::{GRALORA, GraLoraConfig, GraLoraGeneral, GraLoraLinear};
pub use structured::hira::{HIRA, HiraConfig, HiraConv2d, HiraEmbedding, HiraLinear};
pub use structured::miss::{MISS, MissBat, MissConfig, MissLinear};
pub use structured::said::{SAID, Said, SaidConfig};
pub use structured::waveft::{WAVEFT, WaveFtConfig, WaveFtLinear};
pub use weight_aware::deft::{DEFT, DeftConfig};
pub use weight_aware::deft_state::{DeftDecomposition, DeftLinear};
pub use weight_aware::peanut::{PEANUT, PeanutConfig, PeanutLinear};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &LORA, &ADALORA, &LOHA, &LOKR, &VERA, &RANDLORA, &VBLORA, &HIRA, &MISS, &OFT, &BOFT, &HRA,
    &C3A, &FOURIERFT, &SAID, &LILY, &POLY, &MTL_LORA, &UNILORA, &TINYLORA, &PVERA, &GRALORA,
    &DELORA, &DEFT, &PEANUT, &WAVEFT, &GLORA, &PSOFT, &OSF, &FROD, &ADAMSS, &KRONA_B,
];
