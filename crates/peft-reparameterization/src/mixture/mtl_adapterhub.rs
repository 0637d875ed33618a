//! What MTL-LoRA's configuration says in AdapterHub's layout only.

use serde::{Deserialize, Serialize};

use crate::lora::adapterhub::AdapterHubLora;

/// What a configuration says in AdapterHub's layout (`MTLLoRAConfig` of `adapters` 1.3) besides the fields that
/// [`MtlLoraConfig`](crate::MtlLoraConfig) has: which layers are adapted, and whether they have gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterHubMtl {
    /// A gate for each text and layer, in place of the scale. Default: no.
    #[serde(default)]
    pub use_gating: bool,
    /// The layers, and further fields.
    #[serde(flatten)]
    pub layers: AdapterHubLora,
}

impl Default for AdapterHubMtl {
    fn default() -> Self {
        let mut layers = AdapterHubLora::default();
        layers.rest.insert("architecture".into(), "mtl_lora".into());
        layers.rest.insert("use_dora".into(), false.into());
        Self {
            use_gating: false,
            layers,
        }
    }
}
