//! MTL-LoRA in AdapterHub's layout, where each task is an adapter of its own.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Layout, Method, MethodConfig as _, Plan, Promises, Value,
    WeightAdapter, adapterhub_json, architecture, config_from_json, read_adapterhub, upstream_json,
};
use peft_core::nn::{AdaptedForward as _, dropout_rate};
use peft_core::ops::{LowRank, linear};
use peft_core::{Error, Result};
use serde::Deserialize;

use crate::lora::adapterhub::Begin;
use crate::lora::adapterhub_state::AdapterHubEnd;
use crate::lora::layouts::number;
use crate::mixture::mtl_adapterhub::AdapterHubMtl;
use crate::mixture::mtl_lora::{MTL_LORA, MtlLoraConfig, TaskSpecificMatrix};

/// The fields that are ours, too.
#[derive(Deserialize)]
struct Fields {
    r: usize,
    alpha: f64,
    #[serde(default)]
    dropout: f64,
    n_up_projection: usize,
    task_specific_matrix_type: TaskSpecificMatrix,
    weights_sharpness: f64,
    #[serde(flatten)]
    rest: AdapterHubMtl,
}

fn recognises(json: &Value) -> bool {
    architecture(json) == Some(Some("mtl_lora"))
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    let Some((fields, common)) = read_adapterhub::<Fields>(json)? else {
        return config_from_json::<MtlLoraConfig>(json);
    };
    let config = MtlLoraConfig {
        r: fields.r,
        alpha: fields.alpha,
        n_up_projection: fields.n_up_projection,
        task_specific_matrix_type: fields.task_specific_matrix_type,
        weights_sharpness: fields.weights_sharpness,
        dropout: fields.dropout,
        adapterhub: Some(fields.rest),
        common,
        ..MtlLoraConfig::default()
    };
    config.validate()?;
    Ok(Box::new(config))
}

impl MtlLoraConfig {
    pub(super) const RECOGNISES: fn(&Value) -> bool = recognises;
    pub(super) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;

    /// What adapters keep to: of one task, without a gate, a weight says all, and AdapterHub's initial values may be a B that is
    /// not zero.
    pub(super) fn kept(&self) -> Promises {
        let fields = self.adapterhub.as_ref();
        let begins =
            |fields: &AdapterHubMtl| fields.layers.begin(&MTL_LORA).ok() == Some(Begin::Bert);
        Promises {
            identity_at_init: !fields.is_some_and(begins),
            mergeable: fields.is_some_and(|fields| !fields.use_gating),
        }
    }

    /// The layout that the configuration is in.
    pub(super) fn json(&self) -> Value {
        let Some(fields) = &self.adapterhub else {
            return upstream_json(self);
        };
        let mut fields = fields.clone();
        let rest = &mut fields.layers.rest;
        let counts = [("r", self.r), ("n_up_projection", self.n_up_projection)];
        for (field, count) in counts {
            rest.insert(field.into(), count.into());
        }
        let numbers = [
            ("alpha", self.alpha),
            ("dropout", self.dropout),
            ("weights_sharpness", self.weights_sharpness),
        ];
        for (field, value) in numbers {
            rest.insert(field.into(), number(value));
        }
        let matrix = serde_json::to_value(self.task_specific_matrix_type);
        let matrix = matrix.expect("plain data");
        rest.insert("task_specific_matrix_type".into(), matrix);
        adapterhub_json(&self.common, &fields)
    }

    /// Checks what AdapterHub's layout can say, and what its library can compute.
    pub(super) fn check_layout(&self) -> Result<()> {
        let Some(fields) = &self.adapterhub else {
            return Ok(());
        };
        let plain = Self {
            r: self.r,
            alpha: self.alpha,
            n_up_projection: self.n_up_projection,
            task_specific_matrix_type: self.task_specific_matrix_type,
            weights_sharpness: self.weights_sharpness,
            dropout: self.dropout,
            adapterhub: self.adapterhub.clone(),
            common: self.common.clone(),
            ..Self::default()
        };
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(MTL_LORA.title, field, value, expected))
        };
        if plain != *self {
            let expected = "none where n_tasks, bias or targets are set: in AdapterHub's layout each task is an adapter of its own";
            return refuse("adapterhub", fields, expected);
        }
        if self.task_specific_matrix_type != TaskSpecificMatrix::SingularValues {
            let expected =
                "singular_values in AdapterHub's layout: its library fails to make a matrix";
            let value = self.task_specific_matrix_type;
            return refuse("task_specific_matrix_type", &value, expected);
        }
        let rest = &fields.layers.rest;
        if let Some(mode) = rest.get("composition_mode").filter(|mode| *mode != "add") {
            let expected = "add: with another AdapterHub's library makes an IA3 of it";
            return refuse("composition_mode", mode, expected);
        }
        if rest.get("use_dora") == Some(&Value::Bool(true)) {
            let expected = "false: AdapterHub's library fails to make MTL-LoRA with magnitudes";
            return refuse("use_dora", &true, expected);
        }
        for field in ["vera_d", "vera_b"] {
            if let Some(value) = rest.get(field).filter(|value| !value.is_null()) {
                let expected =
                    "null: AdapterHub's library draws matrices of VeRA for it that nothing uses";
                return refuse(field, value, expected);
            }
        }
        fields.layers.check(&MTL_LORA)
    }

    pub(super) fn plan_adapterhub(
        &self,
        fields: &AdapterHubMtl,
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<()> {
        let (rank, ups) = (self.r, self.n_up_projection);
        let begin = fields.layers.begin(&MTL_LORA)?;
        let projections = fields.layers.projections();
        for target in projections.select(layout, plan, (self.info(), "loras"))? {
            let like = target.like();
            let mut seeded = fields.layers.seeded(plan);
            let init = seeded.as_mut().unwrap_or_else(|| plan.init());
            let [lora_a, _] = begin.factors(&target, rank, init);
            let shape = [ups, target.d_out, rank];
            let lora_b = match begin {
                Begin::Bert => init.normal(shape, 0.02, like),
                _ => init.zeros(shape, like),
            };
            let state = AdapterHubMtlLinear {
                lora_a,
                lora_b,
                task_specific: init.ones([rank], like),
                weights: init.ones([ups], like),
                sharpness: self.weights_sharpness,
                end: AdapterHubEnd::of_layer(
                    &target,
                    [fields.use_gating, false],
                    self.alpha / rank as f64,
                    plan,
                ),
                dropout: DropoutConfig::new(self.dropout).init(),
            };
            plan.adapt_weight(target.weight, state);
        }
        Ok(())
    }
}

/// MTL-LoRA of one task: `y = x W + b + s·Σᵢ softmax(w / τ)ᵢ (drop(x) A Λ) Bᵢ`, with a gate in the place of s if there is one.
#[derive(Module, Debug)]
pub struct AdapterHubMtlLinear {
    /// A, `[in, r]`.
    pub lora_a: Param<Tensor<2>>,
    /// The Bᵢ, each transposed, `[n, out, r]`.
    pub lora_b: Param<Tensor<3>>,
    /// Λ's diagonal, `[r]`.
    pub task_specific: Param<Tensor<1>>,
    /// w, `[n]`.
    pub weights: Param<Tensor<1>>,
    /// τ.
    pub sharpness: f64,
    /// Gate and scale.
    pub end: AdapterHubEnd,
    /// On the input of A.
    pub dropout: Dropout,
}

impl Adapter for AdapterHubMtlLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, here: &str, there: &str| {
            let there = CheckpointKey::layer(field, &format!("loras.{{adapter}}.{there}"));
            (CheckpointKey::layer(field, here), there)
        };
        let (here, there) = key("lora_a", "mtl_lora_A.weight", "lora_A");
        let mut keys = vec![here.transposed().in_adapterhub(there.transposed())];
        for (field, here, there) in [
            ("lora_b", "mtl_lora_B", "lora_B"),
            (
                "task_specific",
                "mtl_lora_task_specific",
                "task_specific.values",
            ),
            ("weights", "mtl_lora_weights", "weights"),
        ] {
            let (here, there) = key(field, here, there);
            keys.push(here.in_adapterhub(there));
        }
        let end = self.end.tensors().into_iter();
        keys.extend(end.map(|key| key.within("end")));
        keys
    }
}

impl AdapterHubMtlLinear {
    /// The change of scale 1.
    fn change(&self) -> LowRank {
        let [ups, d_out, rank] = self.lora_b.dims();
        let shares = softmax(self.weights.val() / self.sharpness, 0).reshape([1, ups]);
        let all = self.lora_b.val().reshape([ups, d_out * rank]);
        let up = shares.matmul(all).reshape([d_out, rank]).transpose();
        let up = up * self.task_specific.val().reshape([rank, 1]);
        LowRank::new(self.lora_a.val(), up, 1.0)
    }
}

impl WeightAdapter for AdapterHubMtlLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.end.compose(weight, &self.change())
    }

    fn low_rank(&self) -> Option<LowRank> {
        self.end.low_rank(|| LowRank {
            dropout: dropout_rate(&self.dropout),
            ..self.change()
        })
    }

    fn is_mergeable(&self) -> bool {
        self.end.is_mergeable()
    }

    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let change = self.change();
        let input_of_change = self.dropout.adapted(input.clone());
        let down = linear(input_of_change, change.down.clone(), None, None);
        let added = linear(down, change.up.clone(), None, None);
        self.end.linear(input, added, base, || change)
    }
}
