//! AdapterFusion's configuration, and where it goes.

use std::sync::Arc;

use burn::nn::DropoutConfig;
use burn::tensor::{DType, Device, Tensor};
use peft_core::method::{
    Common, Family, FileNames, HiddenState, Layout, LayoutSite, Method, MethodConfig as _,
    MethodHooks, MethodInfo, Plan, SiteKind, States, config_from_json, method_config,
};
use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::schedule::{FIRST_TEMPERATURE, FusionHooks};
use super::state::{AdapterFusion, DICT, FusionProjection};

/// Registration of AdapterFusion.
pub static ADAPTER_FUSION: MethodInfo = MethodInfo {
    name: "adapter-fusion",
    peft_type: "ADAPTER_FUSION",
    title: "AdapterFusion",
    family: Family::Additive,
    reference: "Pfeiffer et al. 2021, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, section 3",
    identity_at_init: false,
    mergeable: false,
    parse,
    recognises: Some(|json| {
        json["adapter_names"].is_array() && json["config"]["query"].is_boolean()
    }),
};

fn registration(_config: &AdapterFusionConfig) -> &'static MethodInfo {
    &ADAPTER_FUSION
}

/// AdapterHub's names of the files.
const FILES: FileNames = FileNames {
    config: "adapter_fusion_config.json",
    tensors: "model_adapter_fusion.safetensors",
};

/// The fields that AdapterHub has in the inner object.
const INNER: &[&str] = &[
    "key",
    "query",
    "value",
    "query_before_ln",
    "regularization",
    "residual_before",
    "temperature",
    "value_before_softmax",
    "value_initialized",
    "dropout_prob",
];

/// Reads AdapterHub's nested layout, and a flat one.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let mut fields = json.as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(inner)) = fields.remove("config") {
        fields.extend(inner);
    }
    // An older form of the list.
    if let Some(names) = fields.get("adapter_names").and_then(Value::as_str) {
        let names: Vec<&str> = names.split(',').collect();
        fields.insert("adapter_names".into(), names.into());
    }
    config_from_json::<AdapterFusionConfig>(&Value::Object(fields))
}

/// Configuration of AdapterFusion. Fields are called as in AdapterHub's `AdapterFusionConfig`.
///
/// The fused adapters have to be on the model before the fusion is. They stay as they are: only the fusion is trained.
#[method_config(
    info = registration, to_json = AdapterFusionConfig::json, new(adapter_names)
)]
pub struct AdapterFusionConfig {
    /// The adapters that are fused, each at sites of hidden states. No default: at least one.
    pub adapter_names: Vec<String>,
    /// Whether the keys are projections of what the adapters add. Default: true.
    #[field(default = true)]
    pub key: bool,
    /// Whether the query is a projection of the state. Default: true.
    #[field(default = true)]
    pub query: bool,
    /// Whether the values are projections of what the adapters add. Default: true (dynamic); false is the static
    /// fusion.
    #[field(default = true)]
    pub value: bool,
    /// Whether the query is the state before the model's residual and norm. Default: false: it is what the last
    /// adapter reads.
    pub query_before_ln: bool,
    /// Whether the projection of the values is drawn to the identity while it is trained: 0.01 times the squared
    /// distance is added to the loss. Default: true.
    #[field(default = true)]
    pub regularization: bool,
    /// Whether the adapters' residual goes through the attention, with what each adds, in place of around it.
    /// Default: false.
    pub residual_before: bool,
    /// Whether the softmax begins at temperature 50, which falls by 0.05 in each training step, to 1. Default: false. A
    /// second training goes on from where the first one has come to.
    pub temperature: bool,
    /// Whether the values are projected before the attention's sum, not after it. The projection is linear and has no
    /// bias, so both are the same. Default: true.
    #[field(default = true)]
    pub value_before_softmax: bool,
    /// Whether the projection of the values begins as the identity (plus 1e-6 beside the diagonal), else at random.
    /// Default: true.
    #[field(default = true)]
    pub value_initialized: bool,
    /// Dropout probability on the attention's scores, in [0, 1). Default: none. Where AdapterHub finds none, it takes
    /// that of the model's attention.
    #[field(probability)]
    pub dropout_prob: Option<f64>,
    /// The temperature that a training which was saved had come to. Default: 1. A fresh fusion begins at its own.
    #[field(default = 1.0, at_least = 1.0)]
    pub current_temperature: f64,
    /// Fields that every method has.
    pub common: Common,
}

impl AdapterFusionConfig {
    /// Attention whose values are projected, with the regularisation: AdapterHub's `dynamic`, its default.
    pub fn dynamic<S: Into<String>>(adapters: impl IntoIterator<Item = S>) -> Self {
        let names: Vec<String> = adapters.into_iter().map(Into::into).collect();
        Self::new(names)
    }

    /// Attention over the adapters' outputs as they are: AdapterHub's `static`.
    pub fn fixed<S: Into<String>>(adapters: impl IntoIterator<Item = S>) -> Self {
        Self {
            value: false,
            regularization: false,
            value_initialized: false,
            ..Self::dynamic(adapters)
        }
    }

    /// AdapterHub's layout.
    fn json(&self) -> Value {
        let mut json = serde_json::to_value(self).expect("plain data");
        let Some(outer) = json.as_object_mut() else {
            return json;
        };
        let inner: Map<String, Value> = INNER
            .iter()
            .filter_map(|field| Some((field.to_string(), outer.remove(*field)?)))
            .collect();
        outer.insert("config".into(), inner.into());
        // Said by `finalize` where it means something.
        outer.remove("current_temperature");
        for field in ["model_class", "model_name", "model_type"] {
            outer.entry(field).or_insert(Value::Null);
        }
        outer.entry("version").or_insert("adapters.1.3.0".into());
        json
    }

    /// The state at a site where these adapters are.
    fn state(
        &self,
        site: &LayoutSite,
        names: Vec<String>,
        layout: &Layout,
        plan: &mut Plan,
    ) -> AdapterFusion {
        let width = site.width;
        let (device, dtype) = layout.like();
        let like = (&device, dtype);
        // AdapterHub's `init_bert_weights`.
        let std = 0.02;
        let projection = |wanted: bool, plan: &mut Plan| {
            wanted.then(|| FusionProjection {
                weight: plan.init().normal([width, width], std, like),
                bias: plan.init().zeros([width], like),
            })
        };
        let query = projection(self.query, plan);
        let key = projection(self.key, plan);
        let value = self.value.then(|| {
            if !(self.value_initialized && plan.is_new()) {
                return plan.init().normal([width, width], std, like);
            }
            let zeros = plan.init().zeros([width, width], like);
            zeros.map(|zeros| {
                let identity = near_identity(width, &zeros.device(), zeros.dtype());
                identity.set_require_grad(zeros.is_require_grad())
            })
        });
        let temperature = if self.temperature && plan.is_new() {
            FIRST_TEMPERATURE
        } else {
            self.current_temperature
        };
        AdapterFusion {
            query,
            key,
            value,
            dropout: DropoutConfig::new(self.dropout_prob.unwrap_or(0.0)).init(),
            temperature,
            resumed: Arc::default(),
            names,
            query_before_norm: self.query_before_ln,
            residual_before: self.residual_before,
        }
    }
}

/// 1 on the diagonal and 1e-6 beside it, as AdapterHub begins.
fn near_identity(width: usize, device: &Device, dtype: DType) -> Tensor<2> {
    let beside = 1e-6;
    (Tensor::<2>::eye(width, device) * (1.0 - beside) + beside).cast(dtype)
}

impl Method for AdapterFusionConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        let refuse = |field, value: Value, expected: &str| {
            Err(Error::config(ADAPTER_FUSION.title, field, value, expected))
        };
        let names = &self.adapter_names;
        if names.is_empty() {
            let expected = "name the adapters to fuse; they have to be on the model";
            return refuse("adapter_names", json!(names), expected);
        }
        let twice = (1..names.len()).find(|at| names[..*at].contains(&names[*at]));
        if let Some(at) = twice {
            let expected = "each adapter is fused once";
            return refuse("adapter_names", json!(names[at]), expected);
        }
        if !(self.query || self.key || self.value) {
            let expected = "one of query, key and value must be true, or nothing is trained";
            return refuse("query", json!(false), expected);
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let states = [
            HiddenState::AttentionOutput,
            HiddenState::FeedForwardOutput,
            HiddenState::BlockOutput,
        ];
        let mut found: Vec<&String> = Vec::new();
        for state in states {
            for site in layout.hidden_sites(state) {
                let there = |name: &&String| plan.adapters_at(&site).contains(name);
                let names: Vec<&String> = self.adapter_names.iter().filter(there).collect();
                let stored = plan.is_stored(&format!("{}.{DICT}.", site.name));
                found.extend(&names);
                // AdapterHub has a fusion at blocks that the adapters leave out, too.
                if names.is_empty() && !stored {
                    continue;
                }
                let names = names.into_iter().cloned().collect();
                let state = self.state(&site, names, layout, plan);
                plan.set_config_field("hidden_size", site.width);
                plan.adapt_hidden(site, state);
            }
        }
        if layout
            .sites
            .iter()
            .all(|site| !matches!(site.kind, SiteKind::Hidden(_)))
        {
            let kind = SiteKind::Hidden(HiddenState::FeedForwardOutput);
            return Err(layout.no_site(ADAPTER_FUSION.title, kind));
        }
        match self.adapter_names.iter().find(|name| !found.contains(name)) {
            None => Ok(()),
            Some(name) => {
                let expected = "attach or load it first, as an adapter of hidden states: the fusion works on what it computes";
                let field = "adapter_names";
                Err(Error::config(ADAPTER_FUSION.title, field, name, expected))
            }
        }
    }

    fn file_names(&self) -> Option<FileNames> {
        Some(FILES)
    }

    fn schedule(&self, _steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let first = states.of::<AdapterFusion>().next();
        let first = first.map(|(_, state)| state.current_temperature());
        let hooks = FusionHooks {
            regularization: self.regularization && self.value,
            first: first.filter(|_| self.temperature),
            current: None,
            told: Vec::new(),
        };
        let needed = hooks.regularization || hooks.first.is_some();
        Ok(needed.then(|| Box::new(hooks) as Box<dyn MethodHooks>))
    }

    fn finalize(&self, states: &mut States) -> Result<Map<String, Value>> {
        let mut decided = Map::new();
        let first = states.of::<AdapterFusion>().next();
        let temperature = first.map_or(1.0, |(_, state)| state.current_temperature());
        if temperature > 1.0 {
            decided.insert("current_temperature".into(), temperature.into());
        }
        Ok(decided)
    }
}
