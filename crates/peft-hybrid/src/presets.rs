//! Unions that papers propose.

use peft_additive::BottleneckConfig;
use peft_reparameterization::{AdapterHubLora, LoraConfig};
use peft_soft_prompt::AdapterHubPrefixConfig;

use crate::union::UnionConfig;

/// He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, section 4.6, *mix and match*: a prefix of
/// 30 virtual tokens with a network 800 wide, and a parallel bottleneck beside feed-forward with a reduction by 2 and a
/// factor of 4. AdapterHub's `MAMConfig`.
pub fn mam() -> UnionConfig {
    UnionConfig::default()
}

/// Mao et al. 2022, UniPELT, section 3: a prefix of 10 virtual tokens, a bottleneck behind feed-forward with a reduction by
/// 16, and LoRA of rank 8 on queries and values, each with gates. AdapterHub's `UniPELTConfig`.
pub fn unipelt() -> UnionConfig {
    let lora = LoraConfig::new(8).with_alpha(2.0);
    gated(
        AdapterHubPrefixConfig::new().with_prefix_length(10),
        BottleneckConfig::pfeiffer(),
        lora.with_adapterhub(AdapterHubLora::default()),
    )
}

/// UniPELT of these three: they get gates. LoRA must be in AdapterHub's layout.
pub fn gated(
    prefix: AdapterHubPrefixConfig,
    bottleneck: BottleneckConfig,
    lora: LoraConfig,
) -> UnionConfig {
    UnionConfig::new()
        .with(prefix.with_use_gating(true))
        .with(bottleneck.with_use_gating(true))
        .with(lora.with_use_gating(true))
}
