//! Several methods as one.

use std::collections::BTreeSet;

use peft_additive::BottleneckConfig;
use peft_core::calibration::CalibrationConfig;
use peft_core::checkpoint::CONFIG_FILE;
use peft_core::method::{
    Common, Family, Layout, Method, MethodConfig, MethodHooks, MethodInfo, Plan, Promises, States,
    Value, adapterhub_fields, adapterhub_json, architecture, read_adapterhub,
};
use peft_core::{Error, Result, Selection, Targets};
use peft_soft_prompt::AdapterHubPrefixConfig;
use serde_json::{Map, json};

use crate::schedule::Together;

/// Registration of unions.
pub static UNION: MethodInfo = MethodInfo {
    name: "union",
    peft_type: "UNION",
    title: "Union",
    family: Family::Hybrid,
    reference: "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, section 4.6; AdapterHub's ConfigUnion",
    identity_at_init: false,
    mergeable: false,
    parse,
    recognises: Some(|json| architecture(json) == Some(Some("union"))),
};

/// The methods that a union in a file may be of.
fn known() -> impl Iterator<Item = &'static MethodInfo> {
    let families = [
        peft_additive::METHODS,
        peft_reparameterization::METHODS,
        peft_selective::METHODS,
        peft_soft_prompt::METHODS,
    ];
    families.into_iter().flatten().copied()
}

/// Several methods as one: each puts its states where it would alone, and one file holds them all.
///
/// A file has AdapterHub's layout (`ConfigUnion`), and its Python library reads it if all of its methods are AdapterHub's.
#[derive(Debug)]
pub struct UnionConfig {
    /// The methods. At least one; no union among them, and no reference.
    pub configs: Vec<Box<dyn Method>>,
    /// Fields that every method has. Those of the methods themselves must be empty.
    pub common: Common,
}

impl Clone for UnionConfig {
    fn clone(&self) -> Self {
        Self {
            configs: self.configs.iter().map(|config| config.boxed()).collect(),
            common: self.common.clone(),
        }
    }
}

/// *Mix and match*: [`mam`](crate::mam).
impl Default for UnionConfig {
    fn default() -> Self {
        Self::new()
            .with(AdapterHubPrefixConfig::new().with_bottleneck_size(800))
            .with(BottleneckConfig::parallel())
    }
}

impl UnionConfig {
    /// A union of no method so far: [`with`](Self::with) adds one.
    pub fn new() -> Self {
        Self {
            configs: Vec::new(),
            common: Common::default(),
        }
    }

    /// Adds a method.
    #[must_use]
    pub fn with(mut self, method: impl Method + 'static) -> Self {
        self.configs.push(Box::new(method));
        self
    }

    /// Trains and saves these modules whole.
    #[must_use]
    pub fn with_modules_to_save<S: Into<String>>(
        mut self,
        modules: impl IntoIterator<Item = S>,
    ) -> Self {
        let modules = modules.into_iter().map(Into::into).collect();
        self.common.modules_to_save = Some(modules);
        self
    }

    /// Sets upstream's task type, as in `SEQ_CLS`.
    #[must_use]
    pub fn with_task_type(mut self, task_type: impl Into<String>) -> Self {
        self.common.task_type = Some(task_type.into());
        self
    }

    fn refuse<T>(value: impl std::fmt::Debug, expected: impl Into<String>) -> Result<T> {
        let expected = expected.into();
        Err(Error::config(UNION.title, "configs", value, expected))
    }
}

/// The layers of both; none where that cannot be said.
fn both(one: &Targets, other: &Targets) -> Option<Targets> {
    if one == other {
        return Some(one.clone());
    }
    let names = |targets: &Targets| match &targets.target_modules {
        Some(Selection::Names(names)) if *targets == Targets::new(&names[..]) => {
            Some(names.clone())
        }
        _ => None,
    };
    let all = [names(one)?, names(other)?].concat();
    Some(Targets::new(all))
}

/// The fields of a method, as AdapterHub's `configs` has them; whole where the method has another layout. What a method
/// writes beside AdapterHub's fields goes among them: in a union there is no other place of its own.
fn fields(method: &dyn Method) -> Value {
    let json = method.to_json();
    let Some(fields) = adapterhub_fields(&json) else {
        return json;
    };
    let mut fields = fields.clone();
    let plain = adapterhub_json(method.common(), &Map::new());
    let beside = json.as_object().into_iter().flatten();
    for (field, value) in beside.filter(|(field, _)| plain.get(field).is_none()) {
        fields.insert(field.clone(), value.clone());
    }
    Value::Object(fields)
}

/// Reads a method of a union that `version` of AdapterHub wrote.
fn method(fields: &Value, version: &Value) -> Result<Box<dyn Method>> {
    if let Some(peft_type) = fields["peft_type"].as_str() {
        let Some(info) = known().find(|info| info.peft_type == peft_type) else {
            return UnionConfig::refuse(peft_type, "types of methods that are known here");
        };
        return (info.parse)(fields);
    }
    let whole = json!({ "config": fields, "version": version });
    let fits = |info: &&MethodInfo| info.recognises.is_some_and(|recognises| recognises(&whole));
    match known().find(fits) {
        Some(info) => (info.parse)(&whole),
        None => UnionConfig::refuse(
            &fields["architecture"],
            "architectures that are known here, and no union in a union",
        ),
    }
}

/// Reads AdapterHub's layout, and a flat one.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let nested = read_adapterhub::<Map<String, Value>>(json)?;
    let (fields, common) = if let Some(found) = nested {
        found
    } else {
        let mut outer = json.as_object().cloned().unwrap_or_default();
        outer.remove("peft_type");
        let fields = outer
            .remove("configs")
            .map(|configs| ("configs".into(), configs));
        let common = serde_json::from_value(Value::Object(outer));
        let common = common.map_err(|error| Error::Checkpoint {
            path: CONFIG_FILE.into(),
            reason: error.to_string(),
        })?;
        (fields.into_iter().collect(), common)
    };
    let config = match fields.get("configs").and_then(Value::as_array) {
        Some(configs) => UnionConfig {
            configs: configs
                .iter()
                .map(|fields| method(fields, &json["version"]))
                .collect::<Result<_>>()?,
            common,
        },
        None => UnionConfig {
            common,
            ..UnionConfig::default()
        },
    };
    config.validate()?;
    Ok(Box::new(config))
}

impl MethodConfig for UnionConfig {
    fn info(&self) -> &'static MethodInfo {
        &UNION
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn check_fields(&self) -> Result<()> {
        if self.configs.is_empty() {
            return Self::refuse("[]", "at least one method");
        }
        for config in &self.configs {
            let info = config.info();
            if info.name == UNION.name || info.family == Family::Reference {
                return Self::refuse(info.title, "methods that add something of their own");
            }
            let common = config.common();
            if common.modules_to_save.is_some() || common.task_type.is_some() {
                let expected = "methods without modules_to_save and task_type: the union has them";
                return Self::refuse(info.title, expected);
            }
            config.validate()?;
        }
        let wanted = self.configs.iter().filter_map(|config| config.statistics());
        wanted
            .map(|wanted| wanted.targets)
            .try_fold(None, |all: Option<Targets>, other| match all {
                None => Ok(Some(other)),
                Some(all) => both(&all, &other).map(Some).ok_or(other),
            })
            .map(drop)
            .or_else(|targets| {
                let expected = "methods whose target_modules are lists of names and their only selection, \
                                where several look at data";
                Self::refuse(targets, expected)
            })
    }

    fn to_json(&self) -> Value {
        let configs: Vec<Value> = self
            .configs
            .iter()
            .map(|config| fields(config.as_ref()))
            .collect();
        let fields = json!({ "architecture": "union", "configs": configs });
        adapterhub_json(&self.common, &fields)
    }

    fn boxed(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

impl Method for UnionConfig {
    /// What all of its methods keep to.
    fn promises(&self) -> Promises {
        let mut all = Promises {
            identity_at_init: true,
            mergeable: true,
        };
        for own in self.configs.iter().map(|config| config.promises()) {
            all.identity_at_init &= own.identity_at_init;
            all.mergeable &= own.mergeable;
        }
        all
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for (part, config) in self.configs.iter().enumerate() {
            let title = config.info().title;
            plan.begin_part(part);
            let before = plan.places().count();
            config.plan(layout, plan)?;
            if plan.places().count() <= before {
                return Self::refuse(title, "methods that find something to adapt in the model");
            }
            let mut seen = BTreeSet::new();
            if let Some(place) = plan.places().find(|place| !seen.insert(*place)) {
                let expected = format!("methods at different places; two are at `{place}`");
                return Self::refuse(title, expected);
            }
        }
        Ok(())
    }

    /// All that one of the methods needs, of the layers of all of them.
    fn statistics(&self) -> Option<CalibrationConfig> {
        let wanted = self.configs.iter().filter_map(|config| config.statistics());
        wanted.reduce(|one, other| CalibrationConfig {
            targets: both(&one.targets, &other.targets).unwrap_or(one.targets),
            second_moments: one.second_moments || other.second_moments,
            means: one.means || other.means,
            samples: one.samples.max(other.samples),
            gradients: one.gradients || other.gradients,
            squared_gradients: one.squared_gradients || other.squared_gradients,
            unreached: one.unreached || other.unreached,
            key_values: one.key_values.max(other.key_values),
        })
    }

    fn ties_heads(&self) -> bool {
        self.configs.iter().any(|config| config.ties_heads())
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let mut all = Vec::new();
        for (place, config) in self.configs.iter().enumerate() {
            let hooks = config.schedule(steps, &states.of_part(place))?;
            all.extend(hooks.map(|hooks| (place, hooks)));
        }
        let all = (!all.is_empty()).then(|| Together(all));
        Ok(all.map(|all| Box::new(all) as Box<dyn MethodHooks>))
    }

    fn finalize(&self, states: &mut States) -> Result<Map<String, Value>> {
        let mut json = self.to_json();
        let mut decided = Map::new();
        for (place, config) in self.configs.iter().enumerate() {
            let fields = states.with_part(place, |states| config.finalize(states))?;
            if !fields.is_empty()
                && let Some(own) = json["config"]["configs"][place].as_object_mut()
            {
                own.extend(fields);
                decided.insert("config".into(), Value::Null);
            }
        }
        if let Some(config) = decided.get_mut("config") {
            *config = json["config"].take();
        }
        Ok(decided)
    }
}
