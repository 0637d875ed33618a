//! LoRA's configuration in the layouts of Hugging Face PEFT and AdapterHub.

use peft_core::method::{
    Method, Value, adapterhub_json, architecture, config_from_json, read_adapterhub, upstream_json,
};
use peft_core::{Error, Result};
use serde::Deserialize;
use serde_json::json;

use crate::lora::adapterhub::AdapterHubLora;
use crate::lora::config::{LORA, LoraConfig};
use crate::lora::init::Start;

/// AdapterHub's fields that are ours under other names, or the same.
#[derive(Deserialize)]
struct Fields {
    r: usize,
    alpha: f64,
    #[serde(default)]
    dropout: f64,
    #[serde(default)]
    use_gating: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(flatten)]
    rest: AdapterHubLora,
}

/// Whether a configuration in AdapterHub's layout is LoRA: (IA)³ and VeRA have its architecture, too. What is VeRA has numbers
/// with a point.
fn recognises(json: &Value) -> bool {
    let fields = &json["config"];
    architecture(json) == Some(Some("lora"))
        && fields["composition_mode"] == "add"
        && !fields["vera_d"].is_f64()
        && !fields["vera_b"].is_f64()
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let Some((fields, common)) = read_adapterhub::<Fields>(json)? else {
        return config_from_json::<LoraConfig>(json);
    };
    // Before version 1.1 AdapterHub's scale was 1, whatever its alpha said.
    let alpha = match json["version"].as_str().and_then(version) {
        Some(version) if version < (1, 1) => fields.r as f64,
        _ => fields.alpha,
    };
    let config = LoraConfig {
        r: fields.r,
        lora_alpha: alpha,
        lora_dropout: fields.dropout,
        use_gating: fields.use_gating,
        use_dora: fields.use_dora,
        adapterhub: Some(fields.rest),
        common,
        ..LoraConfig::default()
    };
    config.validate()?;
    Ok(Box::new(config))
}

/// The first two numbers of a version of `adapters`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("adapters.")?.split('.');
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// A whole number as Python writes it.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

impl LoraConfig {
    pub(crate) const RECOGNISES: fn(&Value) -> bool = recognises;
    pub(crate) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;

    /// The layout that the configuration is in.
    pub(crate) fn json(&self) -> Value {
        let Some(fields) = &self.adapterhub else {
            return self.upstream_json();
        };
        let mut fields = fields.clone();
        fields.rest.insert("r".into(), self.r.into());
        let numbers = [("alpha", self.lora_alpha), ("dropout", self.lora_dropout)];
        for (field, value) in numbers {
            fields.rest.insert(field.into(), number(value));
        }
        for (field, value) in [("use_dora", self.use_dora), ("use_gating", self.use_gating)] {
            fields.rest.insert(field.into(), value.into());
        }
        adapterhub_json(&self.common, &fields)
    }

    fn upstream_json(&self) -> Value {
        if !matches!(self.init_lora_weights.start(), Ok(Start::Loftq)) {
            return upstream_json(self);
        }
        // Without its numbers upstream refuses the file.
        let config = self.loftq_config.clone().unwrap_or_default();
        let spelled_out = Self {
            loftq_config: Some(config.spelled_out()),
            ..self.clone()
        };
        upstream_json(&spelled_out)
    }

    /// Checks what AdapterHub's layout can say, and what only it can.
    pub(crate) fn check_layout(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(LORA.title, field, value, expected))
        };
        let Some(fields) = &self.adapterhub else {
            if self.use_gating {
                let expected = "false without `adapterhub`: Hugging Face PEFT has no gates";
                return refuse("use_gating", &true, expected);
            }
            return Ok(());
        };
        let plain = Self {
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            use_gating: self.use_gating,
            use_dora: self.use_dora,
            freeze_a: self.freeze_a,
            riemannian: self.riemannian,
            adapterhub: self.adapterhub.clone(),
            common: self.common.clone(),
            ..Self::default()
        };
        if plain != *self {
            let expected = "none where other fields are set than r, lora_alpha, lora_dropout, use_dora, use_gating, \
                            freeze_a: AdapterHub's layout has no others";
            return refuse("adapterhub", fields, expected);
        }
        fields.check(&LORA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Value {
        json!({
            "config": {
                "alpha": 7, "architecture": "lora", "attn_matrices": ["q", "v"], "composition_mode": "add",
                "dropout": 0, "dtype": null, "init_weights": "bert", "init_weights_seed": 3,
                "intermediate_lora": true, "leave_out": [1], "output_lora": false, "r": 4, "selfattn_lora": true,
                "use_dora": false, "use_gating": true, "vera_b": null, "vera_d": null,
            },
            "hidden_size": 32, "model_class": "BertModel", "model_name": "", "model_type": "bert",
            "name": "a", "version": "adapters.1.3.0",
        })
    }

    #[test]
    fn what_is_read_is_written_back() {
        let config = parse(&file()).unwrap();
        let mut written = config.to_json();
        written["name"] = "a".into();
        for (field, value) in file().as_object().unwrap() {
            assert_eq!(&written[field], value, "{field}");
        }
    }

    #[test]
    fn the_scale_of_old_files_is_one() {
        for (version, alpha) in [("adapters.1.0.1", 4), ("adapters.1.1.0", 7), ("3.2.1", 7)] {
            let mut old = file();
            old["version"] = version.into();
            let read = parse(&old).unwrap().to_json();
            assert_eq!(read["config"]["alpha"], alpha, "{version}");
        }
    }

    #[test]
    fn other_methods_of_the_same_architecture_are_none() {
        assert!(recognises(&file()));
        for (field, value) in [("composition_mode", json!("scale")), ("vera_d", json!(0.1))] {
            let mut other = file();
            other["config"][field] = value;
            assert!(!recognises(&other), "{field}");
        }
    }

    #[test]
    fn what_the_layout_cannot_say_is_refused() {
        let hub = || LoraConfig::new(4).with_adapterhub(AdapterHubLora::default());
        let unknown = AdapterHubLora {
            attn_matrices: vec!["x".into()],
            ..AdapterHubLora::default()
        };
        assert!(hub().validate().is_ok());
        let wrong = [
            hub().with_use_rslora(true),
            hub().with_adapterhub(unknown),
            LoraConfig::new(4).with_use_gating(true),
        ];
        for config in wrong {
            let error = config.validate().unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error}");
        }
    }
}
