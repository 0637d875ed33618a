//! What LoRA's configuration says in AdapterHub's layout only.

use peft_core::method::{Init, MethodInfo, Plan, Projections, Value};
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

    /// The factors' initial values.
    pub(crate) fn begin(&self, info: &'static MethodInfo) -> Result<Begin> {
        let Some(name) = self.rest.get("init_weights").filter(|name| !name.is_null()) else {
            return Ok(Begin::Lora);
        };
        let found = match name.as_str() {
            Some("lora") => Begin::Lora,
            Some("bert") => Begin::Bert,
            Some("ia3") => Begin::Ia3,
            Some("vera") => Begin::Vera,
            _ => {
                let expected = "\"lora\", \"bert\", \"ia3\" or \"vera\"";
                return Err(Error::config(info.title, "init_weights", name, expected));
            }
        };
        Ok(found)
    }

    /// The seed that all layers of a new adapter begin with.
    pub(crate) fn seed(&self) -> Option<u64> {
        let seed = self.rest.get("init_weights_seed")?;
        seed.as_i64().map(i64::cast_unsigned)
    }

    /// The source of a layer's initial values, where all layers have the same.
    pub(crate) fn seeded(&self, plan: &Plan) -> Option<Init> {
        self.seed().filter(|_| plan.is_new()).map(Init::new)
    }

    /// Refuses layers and initial values that AdapterHub has no name for.
    pub(crate) fn check(&self, info: &'static MethodInfo) -> Result<()> {
        self.projections().check(info)?;
        self.begin(info)?;
        Ok(())
    }
}

/// What the factors begin as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// A as torch's linear layers, B zero.
    Lora,
    /// Both from N(0, 0.02²).
    Bert,
    /// Both 1.
    Ia3,
    /// Both by He's uniform distribution.
    Vera,
}

impl Begin {
    /// Whether a new adapter changes the output.
    pub(crate) fn changes(self) -> bool {
        self != Self::Lora
    }
}
