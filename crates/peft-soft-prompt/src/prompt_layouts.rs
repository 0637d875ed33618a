//! Prompt tuning's configuration in the layouts of Hugging Face PEFT and AdapterHub.

use peft_core::method::{
    Layout, Method, Value, adapterhub_json, architecture, config_from_json, config_to_json,
    read_adapterhub,
};
use peft_core::{Error, Result};
use serde::Deserialize;

use crate::prompt_adapterhub::AdapterHubPrompt;
use crate::prompt_init::PromptInit;
use crate::prompt_tuning::{PROMPT_TUNING, PromptTuningConfig};

/// AdapterHub's name of the place behind a text's first token.
const AFTER_BOS: &str = "prefix_after_bos";

/// Kinds of models, by their `model_type`, in which each token sees all of its text.
const SEES_ALL: &[&str] = &["bert", "roberta", "distilbert", "modernbert"];

/// AdapterHub's fields.
#[derive(Deserialize)]
struct Fields {
    prompt_length: usize,
    #[serde(flatten)]
    rest: AdapterHubPrompt,
}

fn recognises(json: &Value) -> bool {
    architecture(json) == Some(Some("prompt_tuning"))
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let Some((fields, common)) = read_adapterhub::<Fields>(json)? else {
        return config_from_json::<PromptTuningConfig>(json);
    };
    let config = PromptTuningConfig {
        num_virtual_tokens: fields.prompt_length,
        adapterhub: Some(fields.rest),
        common,
        ..PromptTuningConfig::default()
    };
    config.validate()?;
    Ok(Box::new(config))
}

impl PromptTuningConfig {
    pub(crate) const RECOGNISES: fn(&Value) -> bool = recognises;
    pub(crate) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;

    /// The layout that the configuration is in.
    pub(crate) fn json(&self) -> Value {
        let Some(fields) = &self.adapterhub else {
            // Upstream wants the tokenizer beside a text; trained values need neither.
            let stored = self.clone().with_prompt_tuning_init(PromptInit::Random);
            return config_to_json(&stored, &PROMPT_TUNING);
        };
        let mut fields = fields.clone();
        let length = self.num_virtual_tokens.into();
        fields.rest.insert("prompt_length".into(), length);
        adapterhub_json(&self.common, &fields)
    }

    /// Whether the virtual tokens stand behind the text's first token, of a model in which that is the same as in front.
    pub(crate) fn is_behind_first_token(&self, layout: &Layout) -> Result<bool> {
        let Some(fields) = self
            .adapterhub
            .as_ref()
            .filter(|fields| fields.combine == AFTER_BOS)
        else {
            return Ok(false);
        };
        let model = layout.model_type.as_deref();
        if model.is_some_and(|model| SEES_ALL.contains(&model)) {
            return Ok(true);
        }
        let expected = format!(
            "\"prefix\" on a model that is none of {}: where a token sees no later ones, its first one would have to be in \
             front of the virtual tokens, and here these are computed in front. (AdapterHub has no prompt tuning for its \
             Llama and Mistral.)",
            SEES_ALL.join(", ")
        );
        let title = PROMPT_TUNING.title;
        Err(Error::config(title, "combine", &fields.combine, expected))
    }

    /// Refuses places that AdapterHub has no name for, and virtual tokens that begin as a vocabulary's, which have no
    /// positions.
    pub(crate) fn check_layout(&self) -> Result<()> {
        match &self.adapterhub {
            Some(_) if self.prompt_tuning_init != PromptInit::Random => {
                let expected = "RANDOM in AdapterHub's layout";
                let (title, value) = (PROMPT_TUNING.title, self.prompt_tuning_init);
                Err(Error::config(title, "prompt_tuning_init", value, expected))
            }
            Some(fields) if !["prefix", AFTER_BOS].contains(&fields.combine.as_str()) => {
                let expected = "\"prefix\" or \"prefix_after_bos\"";
                let title = PROMPT_TUNING.title;
                Err(Error::config(title, "combine", &fields.combine, expected))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peft_core::method::MethodConfig as _;
    use serde_json::json;

    #[test]
    fn what_is_read_is_written_back() {
        let file = json!({
            "config": {
                "architecture": "prompt_tuning", "combine": "prefix", "init_weights_seed": 4,
                "prompt_init": "from_string", "prompt_init_text": "a text", "prompt_length": 5,
            },
            "hidden_size": 32, "model_class": "BertModel", "version": "adapters.1.3.0",
        });
        assert!(recognises(&file));
        let written = parse(&file).unwrap().to_json();
        for (field, value) in file.as_object().unwrap() {
            assert_eq!(&written[field], value, "{field}");
        }
        let mut behind = file;
        behind["config"]["combine"] = "prefix_after_bos".into();
        assert_eq!(
            parse(&behind).unwrap().to_json()["config"],
            behind["config"]
        );
        behind["config"]["combine"] = "suffix".into();
        assert!(matches!(parse(&behind), Err(Error::Config { .. })));
    }

    #[test]
    fn a_new_one_has_all_fields() {
        let config = PromptTuningConfig::new(7).with_adapterhub(AdapterHubPrompt::default());
        let json = config.to_json();
        assert_eq!(json["config"]["prompt_length"], 7);
        assert_eq!(json["version"], "adapters.1.3.0");
        assert_eq!(parse(&json).unwrap().to_json(), json);
    }
}
