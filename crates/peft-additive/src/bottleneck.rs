//! Bottleneck adapters: configuration and plan.

use burn::nn::DropoutConfig;
use peft_core::method::{
    Common, Family, Layout, LayoutSite, Method, MethodConfig as _, MethodInfo, Plan,
    config_from_json, method_config,
};
use peft_core::method::{HiddenState, SiteKind};
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

use crate::bottleneck_state::{Activation, Bottleneck};

/// Registration of adapters after both sublayers.
pub static HOULSBY: MethodInfo = MethodInfo {
    name: "houlsby",
    peft_type: "HOULSBY",
    title: "Houlsby",
    family: Family::Additive,
    reference: "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, section 2.1; AdapterHub's double_seq_bn",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, BottleneckConfig::houlsby()),
    recognises: Some(|json| is_bottleneck(json) && json["config"]["mh_adapter"] == true),
};

/// Registration of adapters after feed-forward only.
pub static PFEIFFER: MethodInfo = MethodInfo {
    name: "pfeiffer",
    peft_type: "PFEIFFER",
    title: "Pfeiffer",
    family: Family::Additive,
    reference: "Pfeiffer et al. 2020, AdapterFusion, section 2.3 and appendix; AdapterHub's seq_bn",
    identity_at_init: false,
    mergeable: false,
    parse: |json| parse(json, BottleneckConfig::pfeiffer()),
    recognises: Some(|json| is_bottleneck(json) && json["config"]["mh_adapter"] != true),
};

/// Whether a configuration in AdapterHub's layout is of a plain bottleneck.
fn is_bottleneck(json: &Value) -> bool {
    json["config"]["reduction_factor"].is_number() && json["config"]["architecture"].is_null()
}

/// Reads both AdapterHub's nested layout and a flat one, over a preset.
fn parse(json: &Value, preset: BottleneckConfig) -> Result<Box<dyn Method>> {
    let mut fields = match serde_json::to_value(preset) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let mut given = json.as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(config)) = given.remove("config") {
        fields.extend(config);
    }
    fields.extend(given);
    config_from_json::<BottleneckConfig>(&Value::Object(fields))
}

/// Configuration of bottleneck adapters. Fields are called as in AdapterHub's `BnConfig`.
#[method_config(info = BottleneckConfig::registration, to_json = BottleneckConfig::json)]
pub struct BottleneckConfig {
    /// The hidden size over the bottleneck's. Default: 16. Above 0.
    #[field(default = 16.0, positive)]
    pub reduction_factor: f64,
    /// Non-linearity. Default: swish (Houlsby), relu (Pfeiffer).
    #[field(default = Activation::Swish)]
    pub non_linearity: Activation,
    /// An adapter after attention. Default: yes (Houlsby), no (Pfeiffer).
    #[field(default = true)]
    pub mh_adapter: bool,
    /// An adapter after feed-forward. Default: yes.
    #[field(default = true)]
    pub output_adapter: bool,
    /// The adapter sees the state after the model's residual and norm. Default: no (Houlsby), yes
    /// (Pfeiffer).
    pub original_ln_before: bool,
    /// The adapter's residual is the state before that norm. Default: yes.
    #[field(default = true)]
    pub residual_before_ln: bool,
    /// Factor of the adapter's output. Default: 1.
    #[field(default = 1.0, finite)]
    pub scaling: f64,
    /// Dropout probability on the adapter's output, in [0, 1). Default: 0.
    #[field(probability)]
    pub dropout: f64,
    /// Indices of blocks without an adapter, as AdapterDrop leaves out the first ones. Default: none.
    pub leave_out: Vec<usize>,
    /// Fields that every method has.
    pub common: Common,
}

/// Variants of `BnConfig` that are not built yet: field, and the value that turns it off.
const UNSUPPORTED: &[(&str, bool)] = &[
    ("is_parallel", false),
    ("ln_before", false),
    ("ln_after", false),
    ("use_gating", false),
    ("phm_layer", false),
    ("original_ln_after", true),
];

impl BottleneckConfig {
    /// Adapters after attention and after feed-forward: AdapterHub's `double_seq_bn`.
    pub fn houlsby() -> Self {
        Self::default()
    }

    /// An adapter after feed-forward: AdapterHub's `seq_bn`.
    pub fn pfeiffer() -> Self {
        Self {
            non_linearity: Activation::Relu,
            mh_adapter: false,
            original_ln_before: true,
            ..Self::houlsby()
        }
    }

    fn registration(&self) -> &'static MethodInfo {
        if self.mh_adapter { &HOULSBY } else { &PFEIFFER }
    }

    /// AdapterHub's layout.
    fn json(&self) -> Value {
        let mut config = json!({
            "adapter_residual_before_ln": false,
            "cross_adapter": false,
            "dropout": self.dropout,
            "factorized_phm_W": true,
            "factorized_phm_rule": false,
            "hypercomplex_nonlinearity": "glorot-uniform",
            "init_weights": "bert",
            "init_weights_seed": null,
            "inv_adapter": null,
            "inv_adapter_reduction_factor": null,
            "is_parallel": false,
            "learn_phm": true,
            "leave_out": self.leave_out,
            "ln_after": false,
            "ln_before": false,
            "mh_adapter": self.mh_adapter,
            "non_linearity": self.non_linearity,
            "original_ln_after": true,
            "original_ln_before": self.original_ln_before,
            "output_adapter": self.output_adapter,
            "phm_bias": true,
            "phm_c_init": "normal",
            "phm_dim": 4,
            "phm_init_range": 0.0001,
            "phm_layer": false,
            "phm_rank": 1,
            "reduction_factor": self.reduction_factor,
            "residual_before_ln": self.residual_before_ln,
            "scaling": self.scaling,
            "shared_W_phm": false,
            "shared_phm_rule": true,
            "stochastic_depth": 0.0,
            "use_gating": false,
        });
        let mut json = serde_json::to_value(&self.common).expect("plain data");
        if let (Some(outer), Some(inner)) = (json.as_object_mut(), config.as_object_mut()) {
            // What was read from AdapterHub and is unknown here goes back to where it was.
            for (field, value) in inner.iter_mut() {
                if let Some(kept) = outer.remove(field) {
                    *value = kept;
                }
            }
            outer.entry("model_class").or_insert(Value::Null);
            outer.entry("model_name").or_insert(Value::Null);
            outer.entry("model_type").or_insert(Value::Null);
            outer.entry("version").or_insert("adapters.1.3.0".into());
            outer.insert("config".into(), config);
        }
        json
    }

    fn states(&self) -> Vec<HiddenState> {
        let mut states = Vec::new();
        if self.mh_adapter {
            states.push(HiddenState::AttentionOutput);
        }
        if self.output_adapter {
            states.push(HiddenState::FeedForwardOutput);
        }
        states
    }

    fn adapter(&self, site: &LayoutSite, layout: &Layout, plan: &mut Plan) -> Bottleneck {
        let width = site.width;
        let bottleneck = ((width as f64 / self.reduction_factor) as usize).max(1);
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        // AdapterHub's `init_weights = "bert"`.
        let std = 0.02;
        Bottleneck {
            down: plan.init().normal([width, bottleneck], std, like),
            down_bias: plan.init().zeros([bottleneck], like),
            up: plan.init().normal([bottleneck, width], std, like),
            up_bias: plan.init().zeros([width], like),
            dropout: DropoutConfig::new(self.dropout).init(),
            scaling: self.scaling,
            activation: self.non_linearity,
            norm_before: self.original_ln_before,
            residual_before_norm: self.residual_before_ln,
        }
    }
}

/// The first number among the segments of a name: the block's index.
fn block(name: &str) -> Option<usize> {
    name.split('.').find_map(|segment| segment.parse().ok())
}

impl Method for BottleneckConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let title = self.info().title;
        if self.states().is_empty() {
            return Err(Error::config(
                title,
                "output_adapter",
                false,
                "this or mh_adapter must be true",
            ));
        }
        for (field, off) in UNSUPPORTED {
            match self.common.unknown.get(*field) {
                None | Some(Value::Null) => {}
                Some(value) if value == off => {}
                Some(value) => {
                    let expected = format!("only {off} is supported yet");
                    return Err(Error::config(title, field, value, expected));
                }
            }
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for state in self.states() {
            let mut sites = layout.hidden_sites(state).peekable();
            if sites.peek().is_none() {
                return Err(layout.no_site(self.info().title, SiteKind::Hidden(state)));
            }
            for site in sites {
                if block(&site.name).is_some_and(|block| self.leave_out.contains(&block)) {
                    continue;
                }
                let adapter = self.adapter(&site, layout, plan);
                plan.set_config_field("hidden_size", site.width);
                plan.adapt_hidden(site, adapter);
            }
        }
        if plan.is_empty() {
            let expected = "some block must keep its adapter";
            return Err(Error::config(
                self.info().title,
                "leave_out",
                &self.leave_out,
                expected,
            ));
        }
        Ok(())
    }
}
