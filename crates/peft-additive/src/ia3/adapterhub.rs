//! IA³'s configuration in AdapterHub's layout, where it is a kind of LoRA.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Init, Method, MethodConfig as _, MethodInfo, Plan, Projections, Value, adapterhub_json,
    architecture, config_from_json, read_adapterhub, upstream_json,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::{IA3, Ia3Config};

/// What AdapterHub's `IA3Config` (`adapters` 1.3) says: which layers are adapted. All of them are scaled at their outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterHubIa3 {
    /// Whether attention is adapted: the layers in `attn_matrices`. Default: yes.
    pub selfattn_lora: bool,
    /// Whether the first layer of feed-forward is adapted (in Llama and Mistral, AdapterHub means the last one by it).
    /// Default: yes.
    pub intermediate_lora: bool,
    /// Whether the last layer of feed-forward is adapted (in Llama and Mistral, AdapterHub means the first one by it).
    /// Default: no.
    pub output_lora: bool,
    /// Which of attention's layers: `q`, `k`, `v`. Default: `k` and `v`.
    pub attn_matrices: Vec<String>,
    /// Indices of blocks without an adapter. Default: none.
    #[serde(default)]
    pub leave_out: Vec<usize>,
    /// Further fields, written back as they were.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for AdapterHubIa3 {
    fn default() -> Self {
        let rest = json!({
            "alpha": 1,
            "architecture": "lora",
            "composition_mode": "scale",
            "dropout": 0.0,
            "dtype": null,
            "init_weights": "ia3",
            "init_weights_seed": null,
            "r": 1,
            "use_dora": false,
            "use_gating": false,
            "vera_b": null,
            "vera_d": null,
        });
        Self {
            selfattn_lora: true,
            intermediate_lora: true,
            output_lora: false,
            attn_matrices: vec!["k".into(), "v".into()],
            leave_out: Vec::new(),
            rest: rest.as_object().cloned().unwrap_or_default(),
        }
    }
}

impl AdapterHubIa3 {
    /// The layers.
    pub(super) fn projections(&self) -> Projections {
        let attention = self.attn_matrices.iter().filter(|_| self.selfattn_lora);
        Projections {
            attention: attention.cloned().collect(),
            intermediate: self.intermediate_lora,
            output: self.output_lora,
            leave_out: self.leave_out.clone(),
        }
    }

    fn number(&self, field: &str) -> Option<f64> {
        self.rest.get(field)?.as_f64()
    }

    /// What the outputs are multiplied with besides l.
    pub(super) fn alpha(&self) -> f64 {
        self.number("alpha").unwrap_or(1.0)
    }

    /// Whether there is a gate for each text, in the place of alpha.
    pub(super) fn use_gating(&self) -> bool {
        self.rest.get("use_gating") == Some(&Value::Bool(true))
    }

    /// A new l of `d_out` outputs.
    pub(super) fn l(
        &self,
        d_out: usize,
        plan: &mut Plan,
        like: (&Device, DType),
    ) -> Param<Tensor<2>> {
        let is_new = plan.is_new();
        let seed = self.rest.get("init_weights_seed").and_then(Value::as_u64);
        let mut own = seed.filter(|_| is_new).map(Init::new);
        let init = match &mut own {
            Some(own) => own,
            None => plan.init(),
        };
        match self.rest.get("init_weights").and_then(Value::as_str) {
            Some("lora") => init.zeros([d_out, 1], like),
            Some("bert") => init.normal([d_out, 1], 0.02, like),
            _ => init.ones([d_out, 1], like),
        }
    }

    /// Whether a new adapter changes nothing.
    pub(super) fn begins_as_nothing(&self) -> bool {
        let ones = self
            .rest
            .get("init_weights")
            .is_none_or(|name| *name == "ia3");
        ones && !self.use_gating() && (self.alpha() - 1.0).abs() < f64::EPSILON
    }

    /// Refuses what AdapterHub's library refuses.
    pub(super) fn check(&self, info: &'static MethodInfo) -> Result<()> {
        self.projections().check(info)?;
        let refuse = |field, expected: &str| {
            let value = self.rest.get(field).unwrap_or(&Value::Null);
            Err(Error::config(info.title, field, value, expected))
        };
        let inits = ["ia3", "bert", "lora"].map(Value::from);
        let init = self.rest.get("init_weights");
        if init.is_some_and(|name| !name.is_null() && !inits.contains(name)) {
            return refuse("init_weights", "\"ia3\", \"bert\" or \"lora\"");
        }
        if self
            .number("r")
            .is_some_and(|rank| (rank - 1.0).abs() > f64::EPSILON)
        {
            return refuse(
                "r",
                "1, as AdapterHub has it with composition_mode \"scale\"",
            );
        }
        if self.number("dropout").is_some_and(|rate| rate != 0.0) {
            return refuse("dropout", "0: AdapterHub's IA3 has none");
        }
        if self.rest.get("use_dora") == Some(&Value::Bool(true)) {
            return refuse("use_dora", "false: AdapterHub's IA3 has no magnitudes");
        }
        for field in ["vera_d", "vera_b"] {
            if self.rest.get(field).is_some_and(Value::is_f64) {
                return refuse(field, "null: AdapterHub fails to make an IA3 with it");
            }
        }
        if !self.alpha().is_finite() {
            return refuse("alpha", "a finite number");
        }
        Ok(())
    }
}

/// Whether a configuration in AdapterHub's layout is of IA³: LoRA and VeRA have its architecture, too.
fn recognises(json: &Value) -> bool {
    architecture(json) == Some(Some("lora")) && json["config"]["composition_mode"] == "scale"
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let Some((fields, common)) = read_adapterhub::<AdapterHubIa3>(json)? else {
        return config_from_json::<Ia3Config>(json);
    };
    let config = Ia3Config {
        adapterhub: Some(fields),
        common,
        ..Ia3Config::default()
    };
    config.validate()?;
    Ok(Box::new(config))
}

impl Ia3Config {
    pub(super) const RECOGNISES: fn(&Value) -> bool = recognises;
    pub(super) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;

    /// The layout that the configuration is in.
    pub(super) fn json(&self) -> Value {
        if let Some(fields) = &self.adapterhub {
            return adapterhub_json(&self.common, fields);
        }
        let mut json = upstream_json(self);
        if let Some(fields) = json.as_object_mut() {
            // Upstream's other target fields, which its `IA3Config` does not have.
            let other = |field: &str| field == "layers_to_transform" || field == "layers_pattern";
            fields.retain(|field, value| !(other(field) && value.is_null()));
        }
        json
    }

    /// Checks what AdapterHub's layout can say.
    pub(super) fn check_layout(&self) -> Result<()> {
        let Some(fields) = &self.adapterhub else {
            return Ok(());
        };
        let plain = Self {
            init_ia3_weights: self.init_ia3_weights,
            adapterhub: self.adapterhub.clone(),
            common: self.common.clone(),
            ..Self::default()
        };
        if plain != *self {
            let expected = "none where targets or feedforward_modules are set: AdapterHub's layout has other fields for \
                            which layers are adapted";
            return Err(Error::config(
                self.info().title,
                "adapterhub",
                fields,
                expected,
            ));
        }
        fields.check(&IA3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Value {
        let mut json = Ia3Config::new()
            .with_adapterhub(AdapterHubIa3::default())
            .to_json();
        json["name"] = "a".into();
        json
    }

    #[test]
    fn what_is_read_is_written_back() {
        let mut file = file();
        assert!(recognises(&file));
        file["config"]["leave_out"] = json!([1]);
        file["config"]["init_weights"] = json!("bert");
        file["model_type"] = "bert".into();
        let mut written = parse(&file).unwrap().to_json();
        written["name"] = "a".into();
        for (field, value) in file.as_object().unwrap() {
            assert_eq!(&written[field], value, "{field}");
        }
    }

    #[test]
    fn what_the_layout_cannot_say_is_refused() {
        for (field, value) in [
            ("r", json!(2)),
            ("dropout", json!(0.1)),
            ("use_dora", json!(true)),
            ("vera_d", json!(0.1)),
            ("init_weights", json!("vera")),
            ("attn_matrices", json!(["x"])),
        ] {
            let mut file = file();
            file["config"][field] = value;
            let refused = parse(&file).unwrap_err().to_string();
            assert!(refused.contains(field), "{refused}");
        }
        let both = Ia3Config::new()
            .with_adapterhub(AdapterHubIa3::default())
            .with_targets(["key"]);
        assert!(both.validate().is_err());
    }

    #[test]
    fn other_methods_of_the_same_architecture_are_none() {
        let mut file = file();
        file["config"]["composition_mode"] = "add".into();
        assert!(!recognises(&file));
    }
}
