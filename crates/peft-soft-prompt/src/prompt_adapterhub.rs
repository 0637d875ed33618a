//! What prompt tuning's configuration says in AdapterHub's layout only.

use peft_core::method::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

/// What a configuration says in AdapterHub's layout (`PromptTuningConfig` of `adapters` 1.3) besides the fields that
/// [`PromptTuningConfig`](crate::PromptTuningConfig) has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterHubPrompt {
    /// Where the virtual tokens are: `prefix`, in front of the text, or `prefix_after_bos`, behind its first token, which then
    /// stands for the text where the first token does. The second is for models in which each token sees all.
    pub combine: String,
    /// Further fields, written back as they were.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for AdapterHubPrompt {
    fn default() -> Self {
        let rest = json!({
            "architecture": "prompt_tuning",
            "init_weights_seed": null,
            "prompt_init": "random_uniform",
            "prompt_init_text": null,
        });
        Self {
            combine: "prefix".into(),
            rest: rest.as_object().cloned().unwrap_or_default(),
        }
    }
}
