//! What VeRA's configuration says in AdapterHub's layout only.

use serde::{Deserialize, Serialize};

use crate::lora::adapterhub::AdapterHubLora;

/// What a configuration says in AdapterHub's layout (`VeraConfig` and `DvoRAConfig` of `adapters` 1.3) besides the fields
/// that [`VeraConfig`](crate::VeraConfig) has: which layers are adapted, and what else they compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterHubVera {
    /// Scaling numerator: the change is multiplied with alpha / r. Default: 8.
    pub alpha: f64,
    /// b on the diagonal of a new V. Default: 0.
    pub vera_b: f64,
    /// A gate for each text and layer, in place of the scale. Default: no.
    #[serde(default)]
    pub use_gating: bool,
    /// DoRA's magnitudes, as [`AdapterHubEnd`](crate::AdapterHubEnd) has them. Default: no.
    #[serde(default)]
    pub use_dora: bool,
    /// The layers, and further fields.
    #[serde(flatten)]
    pub layers: AdapterHubLora,
}

impl Default for AdapterHubVera {
    fn default() -> Self {
        let mut layers = AdapterHubLora::default();
        for field in ["vera_b", "vera_d"] {
            layers.rest.remove(field);
        }
        layers.rest.insert("init_weights".into(), "vera".into());
        Self {
            alpha: 8.0,
            vera_b: 0.0,
            use_gating: false,
            use_dora: false,
            layers,
        }
    }
}
