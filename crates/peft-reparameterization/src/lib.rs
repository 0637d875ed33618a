//! Methods that give the change of a weight a low-dimensional form.
//!
//! | method | W' | paper | configuration |
//! |---|---|---|---|
//! | LoRA | W + s·A·B, s = alpha / r | [Hu et al. 2021](https://arxiv.org/abs/2106.09685) | [`LoraConfig`] |
//! | AdaLoRA | W + s·A·diag(E)·B, ranks by importance | [Zhang et al. 2023](https://arxiv.org/abs/2303.10512) | [`AdaLoraConfig`] |
//! | LoHa | W + s·(A₁B₁) ∘ (A₂B₂) | [Hyeon-Woo et al. 2021](https://arxiv.org/abs/2108.06098) | [`LohaConfig`] |
//! | LoKr, KronA | W + s·(K₁ ⊗ K₂) | [Yeh et al. 2023](https://arxiv.org/abs/2309.14859), [Edalati et al. 2022](https://arxiv.org/abs/2212.10650) | [`LokrConfig`] |
//! | VeRA | W + A·diag(d)·B·diag(b) | [Kopiczko et al. 2023](https://arxiv.org/abs/2310.11454) | [`VeraConfig`] |
//! | RandLoRA | W + s·Σ BₙΛₙAΓₙ | [Albert et al. 2025](https://arxiv.org/abs/2502.00987) | [`RandLoraConfig`] |
//! | VB-LoRA | W + A·B, pieces from one bank | [Li et al. 2024](https://arxiv.org/abs/2405.15179) | [`VbLoraConfig`] |
//! | HiRA | W ∘ (1 + s·A·B) | [Huang et al. 2025](https://openreview.net/pdf?id=TwJrTz9cRS) | [`HiraConfig`] |
//! | MiSS | W + E·D, rows share D's | [Kang & Yin 2024](https://arxiv.org/abs/2409.15371) | [`MissConfig`] |
//! | OFT | diag(R₁, R₂, …)·W | [Qiu et al. 2023](https://arxiv.org/abs/2306.07280) | [`OftConfig`] |
//! | BOFT | B…B₀·W·diag(s), butterflies | [Liu et al. 2023](https://arxiv.org/abs/2311.06243) | [`BoftConfig`] |
//! | HRA | H₁…Hᵣ·W, reflections | [Yuan et al. 2024](https://arxiv.org/abs/2405.17484) | [`HraConfig`] |
//! | C3A | W + C, of circulant blocks | [Chen et al. 2024](https://arxiv.org/abs/2407.19342) | [`C3aConfig`] |
//! | FourierFT | W + s·Re(ifft2(S)), S sparse | [Gao et al. 2024](https://arxiv.org/abs/2405.03003) | [`FourierFtConfig`] |
//! | Intrinsic SAID | W + λ·P z, z shared by all weights | [Aghajanyan et al. 2020](https://arxiv.org/abs/2012.13255) | [`SaidConfig`] |
//!
//! Around LoRA: [`add_weighted_adapter`] makes several adapters into one, [`extract_lora`] makes one of a
//! fine-tuned model, [`eva`] begins one at a layer's inputs, [`lora_plus`] gives B its own learning rate.
//!
//! ```
//! use burn::nn::LinearConfig;
//! use burn::prelude::*;
//! use peft_core::PeftModule;
//! use peft_reparameterization::{LoraConfig, METHODS};
//!
//! #[derive(Module, Debug)]
//! struct Net {
//!     query: burn::nn::Linear,
//!     value: burn::nn::Linear,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = peft_core::device::device(peft_core::device::available()[0])?.autodiff();
//! let net = Net {
//!     query: LinearConfig::new(64, 64).init(&device),
//!     value: LinearConfig::new(64, 64).init(&device),
//! };
//!
//! let model = net.attach("mine", &LoraConfig::new(8).with_alpha(16.0).with_targets(["query"]))?;
//! assert_eq!(model.counts().trainable, 8 * (64 + 64));
//!
//! let dir = std::env::temp_dir().join("peft-doc-lora");
//! model.save_adapter("mine", &dir)?;
//! let model = net.load_adapter("mine", &dir, METHODS)?;
//! let plain = model.merge_and_unload()?;
//! # let _ = plain;
//! # Ok(())
//! # }
//! ```

mod adalora;
mod combine;
mod lora;
mod lycoris;
mod math;
mod orthogonal;
mod shared_projection;
mod structured;

use peft_core::method::MethodInfo;

pub use adalora::config::{ADALORA, AdaLoraConfig};
pub use adalora::state::AdaLora;
pub use combine::extract::{Extracted, extract_lora};
pub use combine::weighted::{CombinationType, MergeMethod, TiesElectSign, add_weighted_adapter};
pub use lora::config::{InitLora, LORA, LoraConfig, TrainableTokenIndices};
pub use lora::dora::Magnitude;
pub use lora::eva::eva;
pub use lora::initial_factors::{cast_factors, init_from_factors};
pub use lora::plus::{LoraPlus, lora_plus};
pub use lora::state::{Follower, InitialFactors, LoraBias, LoraConv2d, LoraEmbedding, LoraLinear};
pub use lycoris::change_dropout::ChangeDropout;
pub use lycoris::loha::{LOHA, LohaConfig, LohaLinear};
pub use lycoris::lokr::{InitLokr, KroneckerFactor, LOKR, LokrConfig, LokrLinear};
pub use orthogonal::boft::{BOFT, BoftConfig, BoftLinear};
pub use orthogonal::hra::{HRA, HraConfig, HraLinear};
pub use orthogonal::oft::{OFT, OftConfig, OftLinear};
pub use peft_core::method::Bias;
pub use shared_projection::randlora::{RANDLORA, RandLoraConfig, RandLoraLinear};
pub use shared_projection::vblora::{VBLORA, VbLoraConfig, VbLoraLinear};
pub use shared_projection::vera::{VERA, VeraConfig, VeraLinear};
pub use structured::c3a::{C3A, C3aConfig, C3aLinear, InitC3a};
pub use structured::fourierft::{FOURIERFT, FourierFtConfig, FourierFtLinear};
pub use structured::hira::{HIRA, HiraConfig, HiraConv2d, HiraEmbedding, HiraLinear};
pub use structured::miss::{InitMiss, MISS, MissBat, MissConfig, MissLinear};
pub use structured::said::{SAID, Said, SaidConfig};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[
    &LORA, &ADALORA, &LOHA, &LOKR, &VERA, &RANDLORA, &VBLORA, &HIRA, &MISS, &OFT, &BOFT, &HRA,
    &C3A, &FOURIERFT, &SAID,
];
