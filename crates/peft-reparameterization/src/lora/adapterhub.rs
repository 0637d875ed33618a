//! What LoRA's configuration says in AdapterHub's layout only.

use peft_core::method::{MethodInfo, Projections, Value};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

/// What a configuration says in AdapterHub's layout (`LoRAConfig` of `adapters` 1.3) besides the fields that
/// [`LoraConfig`](crate::LoraConfig) has: which layers are adapted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterHubLora {
    /// Whether attention is adapted: the layers in `attn_matrices`. Default: yes.
    pub selfattn_lora: bool,
    /// Whether the first layer of feed-forward is adapted (in Llama and Mistral, AdapterHub means the last one by it). Default: no.
    pub intermediate_lora: bool,
    /// Whether the last layer of feed-forward is adapted (in Llama and Mistral, AdapterHub means the first one by it). Default: no.
    pub output_lora: bool,
    /// Which of attention's layers: `q`, `k`, `v`. Default: `q` and `v`.
    pub attn_matrices: Vec<String>,
    /// Indices of blocks without an adapter. Default: none.
    #[serde(default)]
    pub leave_out: Vec<usize>,
    /// Further fields, written back as they were.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for AdapterHubLora {
    fn default() -> Self {
        let rest = json!({
            "architecture": "lora",
            "composition_mode": "add",
            "dtype": null,
            "init_weights": "lora",
            "init_weights_seed": null,
            "vera_b": null,
            "vera_d": null,
        });
        Self {
            selfattn_lora: true,
            intermediate_lora: false,
            output_lora: false,
            attn_matrices: vec!["q".into(), "v".into()],
            leave_out: Vec::new(),
            rest: rest.as_object().cloned().unwrap_or_default(),
        }
    }
}

impl AdapterHubLora {
    /// The layers.
    pub(crate) fn projections(&self) -> Projections {
        let attention = self.attn_matrices.iter().filter(|_| self.selfattn_lora);
        Projections {
            attention: attention.cloned().collect(),
            intermediate: self.intermediate_lora,
            output: self.output_lora,
            leave_out: self.leave_out.clone(),
        }
    }

    pub(crate) fn check(&self, info: &'static MethodInfo, plan_is_new: bool) -> Result<()> {
        self.projections().check(info)?;
        let other = self.rest.get("init_weights").filter(|_| plan_is_new);
        if let Some(other) = other.filter(|value| *value != "lora") {
            let expected = "\"lora\" for a new adapter";
            return Err(Error::config(info.title, "init_weights", other, expected));
        }
        Ok(())
    }
}
