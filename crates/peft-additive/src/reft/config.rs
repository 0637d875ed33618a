//! ReFT: configuration and plan.

use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device};
use peft_core::method::{
    Common, Family, HiddenState, Layout, LayoutSite, Method, MethodConfig as _, MethodInfo, Plan,
    SiteKind, adapterhub_json, architecture, config_from_json, method_config, read_adapterhub,
};
use peft_core::{Error, Result};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::orthogonal::OrthogonalProjection;
use super::state::{Reft, ReftUnit};
use crate::Activation;

/// Registration of LoReFT.
pub static LOREFT: MethodInfo = MethodInfo {
    name: "loreft",
    peft_type: "LOREFT",
    title: "LoReFT",
    family: Family::Additive,
    reference: "Wu et al. 2024, ReFT: Representation Finetuning for Language Models, section 3.2; AdapterHub's LoReftConfig",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, ReftConfig::loreft()),
    recognises: Some(|json| is_reft(json) && json["config"]["orthogonality"] == true),
};

/// Registration of NoReFT.
pub static NOREFT: MethodInfo = MethodInfo {
    name: "noreft",
    peft_type: "NOREFT",
    title: "NoReFT",
    family: Family::Additive,
    reference: "AdapterHub's NoReftConfig: Wu et al. 2024, section 3.2, without orthogonality",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, ReftConfig::noreft()),
    recognises: Some(|json| {
        is_reft(json) && json["config"]["orthogonality"] != true && subtracts(json)
    }),
};

/// Registration of DiReFT.
pub static DIREFT: MethodInfo = MethodInfo {
    name: "direft",
    peft_type: "DIREFT",
    title: "DiReFT",
    family: Family::Additive,
    reference: "Wu et al. 2024, ReFT: Representation Finetuning for Language Models, section 3.2; AdapterHub's DiReftConfig",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, ReftConfig::direft()),
    recognises: Some(|json| {
        is_reft(json) && json["config"]["orthogonality"] != true && !subtracts(json)
    }),
};

/// Reads AdapterHub's layout, and a flat one over a preset.
fn parse(json: &Value, preset: ReftConfig) -> Result<Box<dyn Method>> {
    let Some((mut config, mut common)) = read_adapterhub::<ReftConfig>(json)? else {
        let mut fields = serde_json::to_value(preset).expect("plain data");
        if let (Some(fields), Some(given)) = (fields.as_object_mut(), json.as_object()) {
            fields.extend(given.clone());
        }
        return config_from_json::<ReftConfig>(&fields);
    };
    config.subtract_projection = subtracts(json);
    common.unknown.remove(SUBTRACTS);
    // What is unknown inside of `config` goes back to there.
    common.unknown.extend(config.common.unknown);
    config.common = common;
    config.validate()?;
    Ok(Box::new(config))
}

/// The field that AdapterHub does not write.
const SUBTRACTS: &str = "subtract_projection";

/// Whether a configuration in AdapterHub's layout is of ReFT.
fn is_reft(json: &Value) -> bool {
    architecture(json) == Some(Some("reft"))
}

/// What it says of `subtract_projection`, which AdapterHub never writes and takes for true.
fn subtracts(json: &Value) -> bool {
    json[SUBTRACTS] != false && json["config"][SUBTRACTS] != false
}

/// ReFT's configuration: LoReFT, NoReFT, DiReFT, and what is between them. Fields are called as in AdapterHub's
/// `ReftConfig`.
#[method_config(info = ReftConfig::registration, to_json = ReftConfig::json)]
pub struct ReftConfig {
    /// Indices of the blocks behind which the stream is edited. Default: all; `"all"` in files.
    #[field(deserialize_with = "all_or_some")]
    pub layers: Option<Vec<usize>>,
    /// How many of a text's first tokens are edited. Default: 3. This or `suffix_positions` must be above 0.
    #[field(default = 3, any)]
    pub prefix_positions: usize,
    /// How many of its last. Default: 0.
    #[field(default = 0, any)]
    pub suffix_positions: usize,
    /// Rank: dimensions of the subspace. Default: 1. At least 1, and below the stream's width with `orthogonality`.
    #[field(default = 1, at_least = 1)]
    pub r: usize,
    /// Whether R's columns are orthonormal. Default: true (LoReFT), false (NoReFT, DiReFT).
    #[field(default = true)]
    pub orthogonality: bool,
    /// Whether first and last tokens have one edit; else two are trained. Default: false.
    pub tied_weights: bool,
    /// Whether what R takes from the hidden state is taken away. Default: true (LoReFT, NoReFT), false (DiReFT).
    #[field(default = true)]
    pub subtract_projection: bool,
    /// Dropout probability on the edited hidden states, in [0, 1). Default: 0.05.
    #[field(default = 0.05, probability)]
    pub dropout: f64,
    /// Non-linearity of W h + b. Default: none.
    pub non_linearity: Option<Activation>,
    /// Fields that every method has.
    pub common: Common,
}

/// A list, or the word `all`.
fn all_or_some<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<usize>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Layers {
        Word(String),
        Some(Option<Vec<usize>>),
    }
    match Layers::deserialize(value)? {
        Layers::Word(word) if word == "all" => Ok(None),
        Layers::Word(word) => Err(serde::de::Error::custom(format!(
            "`layers` is `{word}`, and must be `all` or a list of indices"
        ))),
        Layers::Some(layers) => Ok(layers),
    }
}

impl ReftConfig {
    /// LoReFT: an edit in a subspace with an orthonormal basis. AdapterHub's `LoReftConfig`.
    pub fn loreft() -> Self {
        Self::default()
    }

    /// NoReFT: the same without the orthonormal basis. AdapterHub's `NoReftConfig`.
    pub fn noreft() -> Self {
        Self {
            orthogonality: false,
            ..Self::default()
        }
    }

    /// DiReFT: a low-rank addition to the stream. AdapterHub's `DiReftConfig`.
    pub fn direft() -> Self {
        Self {
            subtract_projection: false,
            ..Self::noreft()
        }
    }

    fn registration(&self) -> &'static MethodInfo {
        match (self.orthogonality, self.subtract_projection) {
            (true, _) => &LOREFT,
            (false, true) => &NOREFT,
            (false, false) => &DIREFT,
        }
    }

    /// AdapterHub's layout.
    fn json(&self) -> Value {
        let layers = match &self.layers {
            None => json!("all"),
            Some(layers) => json!(layers),
        };
        let mut config = json!({
            "architecture": "reft",
            "dropout": self.dropout,
            "dtype": null,
            "init_weights_seed": null,
            "layers": layers,
            "non_linearity": self.non_linearity,
            "orthogonality": self.orthogonality,
            "output_reft": true,
            "prefix_positions": self.prefix_positions,
            "r": self.r,
            "suffix_positions": self.suffix_positions,
            "tied_weights": self.tied_weights,
        });
        let mut common = self.common.clone();
        for (field, value) in config.as_object_mut().into_iter().flatten() {
            if let Some(kept) = common.unknown.remove(field) {
                *value = kept;
            }
        }
        let mut json = adapterhub_json(&common, &config);
        if !self.subtract_projection {
            // Outside of `config`, where AdapterHub reads past it.
            json[SUBTRACTS] = false.into();
        }
        json
    }

    fn unit(&self, width: usize, plan: &mut Plan, like: (&Device, DType)) -> ReftUnit {
        let shape = [width, self.r];
        // Torch's default for linear layers.
        let init = plan.init();
        let learned_source = init.kaiming_uniform(shape, width, like);
        let learned_source_bias = init.kaiming_uniform([self.r], width, like);
        let (projection, orthogonal) = if self.orthogonality {
            (None, Some(OrthogonalProjection::new(shape, plan, like)))
        } else {
            (Some(plan.init().kaiming_uniform(shape, width, like)), None)
        };
        ReftUnit {
            learned_source,
            learned_source_bias,
            projection,
            orthogonal,
        }
    }

    fn adapter(&self, site: &LayoutSite, layout: &Layout, plan: &mut Plan) -> Result<Reft> {
        if self.orthogonality && self.r >= site.width {
            let expected = format!("below the stream's {} features", site.width);
            return Err(Error::config(self.info().title, "r", self.r, expected));
        }
        let (device, dtype) = layout.like();
        // Those of a quantized base have none of their own.
        let dtype = if dtype.is_float() { dtype } else { DType::F32 };
        let count = if self.tied_weights { 1 } else { 2 };
        Ok(Reft {
            units: (0..count)
                .map(|_| self.unit(site.width, plan, (&device, dtype)))
                .collect(),
            dropout: DropoutConfig::new(self.dropout).init(),
            prefix_positions: self.prefix_positions,
            suffix_positions: self.suffix_positions,
            subtract_projection: self.subtract_projection,
            non_linearity: self.non_linearity,
        })
    }
}

impl Method for ReftConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let title = self.info().title;
        if self.prefix_positions == 0 && self.suffix_positions == 0 {
            let expected = "this or suffix_positions above 0";
            return Err(Error::config(title, "prefix_positions", 0, expected));
        }
        match self.common.unknown.get("output_reft") {
            Some(value) if *value != true => {
                let expected = "true: the method has no other place";
                Err(Error::config(title, "output_reft", value, expected))
            }
            _ => Ok(()),
        }
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let state = HiddenState::BlockOutput;
        let sites: Vec<_> = layout.hidden_sites(state).collect();
        let title = self.info().title;
        if sites.is_empty() {
            return Err(layout.no_site(title, SiteKind::Hidden(state)));
        }
        let count = sites.len();
        if let Some(layers) = &self.layers
            && let Some(missing) = layers.iter().find(|layer| **layer >= count)
        {
            let expected = format!("indices below {count}: the model has so many blocks");
            return Err(Error::config(title, "layers", missing, expected));
        }
        for (index, site) in sites.into_iter().enumerate() {
            let layers = self.layers.as_ref();
            if layers.is_none_or(|layers| layers.contains(&index)) {
                plan.set_config_field("hidden_size", site.width);
                let adapter = self.adapter(&site, layout, plan)?;
                plan.adapt_hidden(site, adapter);
            }
        }
        if plan.is_empty() {
            let expected = "`all`, or one index at least";
            return Err(Error::config(title, "layers", &self.layers, expected));
        }
        Ok(())
    }
}
