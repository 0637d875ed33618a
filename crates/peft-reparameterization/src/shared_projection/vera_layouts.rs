//! VeRA in AdapterHub's layout: matrices in the place of the vectors, with a scale, a gate, a magnitude.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{DType, Device, Tensor};
use peft_core::checkpoint::transposed;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Layout, Method, Plan, Promises, Shared, TargetLayer, Value,
    WeightAdapter, adapterhub_json, architecture, config_from_json, listed, model_root,
    read_adapterhub, upstream_json,
};
use peft_core::nn::{AdaptedForward as _, dropout_rate};
use peft_core::ops::{LowRank, linear};
use peft_core::{Error, Result};
use serde::Deserialize;
use serde_json::json;

use crate::lora::adapterhub::{AdapterHubLora, Begin};
use crate::lora::adapterhub_state::AdapterHubEnd;
use crate::lora::layouts::number;
use crate::math::torch_random::TorchGenerator;
use crate::shared_projection::projections::{drawn, first_like, fits, lazy};
use crate::shared_projection::vera::{VERA, VeraConfig};
use crate::shared_projection::vera_adapterhub::AdapterHubVera;
/// AdapterHub's dictionary of what layers share.
const SHARED: &str = "shared_parameters";

/// The fields that are ours under other names.
#[derive(Deserialize)]
struct Fields {
    r: usize,
    vera_d: f64,
    #[serde(default)]
    dropout: f64,
    #[serde(flatten)]
    rest: AdapterHubVera,
}

/// Whether a configuration in AdapterHub's layout is VeRA: what has a number with a point for `vera_d` or `vera_b`.
fn recognises(json: &Value) -> bool {
    let fields = &json["config"];
    architecture(json) == Some(Some("lora"))
        && fields["composition_mode"] == "add"
        && (fields["vera_d"].is_f64() || fields["vera_b"].is_f64())
}

/// Reads both layouts.
fn parse(json: &Value) -> Result<Box<dyn Method>> {
    for field in ["vera_d", "vera_b"] {
        let value = &json["config"][field];
        if json["config"].is_object() && !value.is_number() {
            let expected = "a number, as the other of vera_d and vera_b is";
            return Err(Error::config(VERA.title, field, value, expected));
        }
    }
    let Some((fields, common)) = read_adapterhub::<Fields>(json)? else {
        return config_from_json::<VeraConfig>(json);
    };
    let config = VeraConfig {
        r: fields.r,
        d_initial: fields.vera_d,
        vera_dropout: fields.dropout,
        adapterhub: Some(fields.rest),
        common,
        ..VeraConfig::default()
    };
    config.validate()?;
    Ok(Box::new(config))
}

impl VeraConfig {
    pub(super) const RECOGNISES: fn(&Value) -> bool = recognises;
    pub(super) const PARSE: fn(&Value) -> Result<Box<dyn Method>> = parse;

    /// What adapters keep to: a gate or a magnitude is no change of a weight, and a b that is not zero changes outputs at once,
    /// but where the shared B is zero, as it is with LoRA's initial values.
    pub(super) fn kept(&self) -> Promises {
        let fields = self.adapterhub.as_ref();
        let begins = |fields: &AdapterHubVera| {
            fields.vera_b != 0.0 && fields.layers.begin(&VERA).is_ok_and(Begin::changes)
        };
        Promises {
            identity_at_init: !fields.is_some_and(begins),
            mergeable: !fields.is_some_and(|fields| fields.use_gating || fields.use_dora),
        }
    }

    /// The layout that the configuration is in.
    pub(super) fn json(&self) -> Value {
        let Some(fields) = &self.adapterhub else {
            return upstream_json(self);
        };
        let mut fields = fields.clone();
        let rest = &mut fields.layers.rest;
        rest.insert("r".into(), self.r.into());
        rest.insert("dropout".into(), json!(self.vera_dropout));
        // With a point: without one AdapterHub takes it for no VeRA.
        rest.insert("vera_d".into(), json!(self.d_initial));
        let mut json = adapterhub_json(&self.common, &fields);
        json["config"]["alpha"] = number(fields.alpha);
        json
    }

    /// Checks what AdapterHub's layout can say.
    pub(super) fn check_layout(&self) -> Result<()> {
        let Some(fields) = &self.adapterhub else {
            return Ok(());
        };
        let plain = Self {
            r: self.r,
            d_initial: self.d_initial,
            vera_dropout: self.vera_dropout,
            adapterhub: self.adapterhub.clone(),
            common: self.common.clone(),
            ..Self::default()
        };
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(VERA.title, field, value, expected))
        };
        if plain != *self {
            let expected = "none where other fields are set than r, d_initial, vera_dropout: AdapterHub's layout has no others";
            return refuse("adapterhub", fields, expected);
        }
        for (field, value) in [("alpha", fields.alpha), ("vera_b", fields.vera_b)] {
            if !value.is_finite() {
                return refuse(field, &value, "a finite number");
            }
        }
        fields.layers.check(&VERA)
    }

    pub(super) fn plan_adapterhub(
        &self,
        fields: &AdapterHubVera,
        layout: &Layout,
        plan: &mut Plan,
    ) -> Result<()> {
        let projections = fields.layers.projections();
        let targets = projections.select(layout, plan, (&VERA, "loras"))?;
        let (device, dtype) = first_like(&targets, layout);
        let widths = targets
            .first()
            .map_or([0, 0], |first| [first.d_in, first.d_out]);
        if let Some(other) = targets
            .iter()
            .find(|layer| [layer.d_in, layer.d_out] != widths)
        {
            let [d_in, d_out] = widths;
            let expected = format!(
                "layers of one shape, as all have the same A and B: `{}` is [{}, {}], and the first one [{d_in}, {d_out}]",
                other.layer.name, other.d_in, other.d_out
            );
            return Err(Error::config(
                VERA.title,
                "attn_matrices",
                &projections,
                expected,
            ));
        }
        if !fits(&[self.r, self.r.max(widths[0]).max(widths[1])]) {
            let expected = "a rank whose matrices fit into memory";
            return Err(Error::config(VERA.title, "r", self.r, expected));
        }
        let root = model_root(layout);
        let shared = Shares::new(
            self.r,
            widths,
            &fields.layers,
            (&root, plan, (&device, dtype)),
        )?;
        let mut a = Shared::new(shared.a, targets.len());
        let mut b = Shared::new(shared.b, targets.len());
        for target in &targets {
            let (rank, d_out) = (self.r, target.d_out);
            let scale = fields.alpha / rank as f64;
            let switches = [fields.use_gating, fields.use_dora];
            let state = AdapterHubVeraLinear {
                lora_a: a.next().expect("a handle for each target"),
                lora_b: b.next().expect("a handle for each target"),
                vera_d: diagonal(self.d_initial, rank, target, plan),
                vera_b: diagonal(fields.vera_b, d_out, target, plan),
                end: AdapterHubEnd::of_layer(target, switches, scale, plan),
                dropout: DropoutConfig::new(self.vera_dropout).init(),
                root: root.clone(),
                saves_shared: shared.saved,
            };
            plan.adapt_weight(target.weight, state);
        }
        Ok(())
    }
}

/// A matrix with one value on its diagonal.
fn diagonal(
    value: f64,
    width: usize,
    target: &TargetLayer<'_>,
    plan: &mut Plan,
) -> Param<Tensor<2>> {
    let zeros = plan.init().zeros([width, width], target.like());
    if !plan.is_new() {
        return zeros;
    }
    zeros.map(|zeros| {
        let one = Tensor::<2>::eye(width, &zeros.device()).cast(zeros.dtype());
        (one * value).set_require_grad(zeros.is_require_grad())
    })
}

/// The matrices that all layers share, `[in, r]` and `[r, out]`, frozen.
struct Shares {
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
    /// Whether they are in the file.
    saved: bool,
}

impl Shares {
    fn new(
        rank: usize,
        [d_in, d_out]: [usize; 2],
        fields: &AdapterHubLora,
        (root, plan, like): (&str, &mut Plan, (&Device, DType)),
    ) -> Result<Self> {
        let begin = fields.begin(&VERA)?;
        // Torch's generator is set to a seed that is not 0. Ones are not drawn.
        let seed = fields
            .seed()
            .filter(|seed| *seed != 0 && begin != Begin::Ia3);
        let list = if root.is_empty() {
            SHARED.to_string()
        } else {
            format!("{root}.{SHARED}")
        };
        let known = seed.is_some() || matches!(begin, Begin::Lora | Begin::Ia3);
        // What a file of AdapterHub's lacks for a model without a head, its configuration may say.
        let is_new = plan.is_new();
        let from_file = !is_new && (plan.is_stored(&list) || !known);
        let ([a, b], init) = ([[d_in, rank], [rank, d_out]], plan.init());
        let frozen = |param: Param<Tensor<2>>| param.set_require_grad(false);
        if from_file {
            let [a, b] = [a, b].map(|shape| frozen(init.zeros(shape, like)));
            return Ok(Self { a, b, saved: true });
        }
        if let Some(seed) = seed {
            let upright = [[rank, d_in], [d_out, rank]];
            let of_seed = |which: usize, shape: [usize; 2]| {
                lazy(shape, like, false, move || {
                    transposed(&seeded(begin, seed, upright)[which], upright[which])
                })
            };
            let b = if begin == Begin::Lora {
                lazy(b, like, false, move || vec![0.0; b[0] * b[1]])
            } else {
                of_seed(1, b)
            };
            let (a, saved) = (of_seed(0, a), is_new);
            return Ok(Self { a, b, saved });
        }
        if !is_new {
            // Without a seed: ones, or a B of zeros, with which A does not matter.
            let value = f32::from(u8::from(begin == Begin::Ia3));
            let filled = |[rows, columns]: [usize; 2]| {
                lazy([rows, columns], like, false, move || {
                    vec![value; rows * columns]
                })
            };
            let (a, b, saved) = (filled(a), filled(b), false);
            return Ok(Self { a, b, saved });
        }
        let bound = |fan_in: usize| (6.0 / fan_in as f64).sqrt();
        let [a, b] = match begin {
            Begin::Lora => [init.kaiming_uniform(a, d_in, like), init.zeros(b, like)],
            Begin::Ia3 => [a, b].map(|shape| init.ones(shape, like)),
            Begin::Bert => [a, b].map(|shape| init.normal(shape, 0.02, like)),
            Begin::Vera => [
                init.uniform(a, bound(d_in), like),
                init.uniform(b, bound(rank), like),
            ],
        };
        Ok(Self {
            a: frozen(a),
            b: frozen(b),
            saved: true,
        })
    }
}

/// Both matrices as torch draws them after `manual_seed`, `[rows, fan_in]` each.
fn seeded(begin: Begin, seed: u64, shapes: [[usize; 2]; 2]) -> [Vec<f32>; 2] {
    if begin == Begin::Vera {
        return drawn(seed.cast_signed(), shapes);
    }
    let mut generator = TorchGenerator::new(seed);
    shapes.map(|[rows, fan_in]| {
        if begin == Begin::Bert {
            return generator.normal(rows * fan_in, 0.02);
        }
        let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
        generator.uniform(rows * fan_in, -bound, bound)
    })
}

/// `y = f ∘ (x W + b + s·(drop(x) A) D B V)`: A and B are the same for all layers and frozen, D and V trained matrices. f, s
/// and a gate in its place are as [`AdapterHubEnd`] says.
#[derive(Module, Debug)]
pub struct AdapterHubVeraLinear {
    /// A, `[in, r]`, frozen.
    pub lora_a: Shared<2>,
    /// B, `[r, out]`, frozen.
    pub lora_b: Shared<2>,
    /// D, `[r, r]`.
    pub vera_d: Param<Tensor<2>>,
    /// V, `[out, out]`.
    pub vera_b: Param<Tensor<2>>,
    /// Gate, scale and magnitude.
    pub end: AdapterHubEnd,
    /// On the input of A.
    pub dropout: Dropout,
    /// The name of the model without its head.
    #[module(skip)]
    root: String,
    saves_shared: bool,
}

impl Adapter for AdapterHubVeraLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let shared = |field: &str, key: &str| {
            if self.saves_shared {
                listed(field, (&self.root, SHARED), key, true)
            } else {
                CheckpointKey::unsaved(field)
            }
        };
        let own = |field: &str, key: &str| {
            let in_file = CheckpointKey::layer(field, &format!("loras.{{adapter}}.{key}"));
            let key = CheckpointKey::layer(field, key).transposed();
            key.in_adapterhub(in_file.transposed())
        };
        let mut keys = vec![
            shared("lora_a", "lora_A"),
            shared("lora_b", "lora_B"),
            own("vera_d", "vera_D"),
            own("vera_b", "vera_B"),
        ];
        let end = self.end.tensors().into_iter();
        keys.extend(end.map(|key| key.within("end")));
        keys
    }
}

impl AdapterHubVeraLinear {
    /// The change of scale 1. What is trained is all in the second factor.
    fn change(&self) -> LowRank {
        let up = self.lora_b.val().matmul(self.vera_b.val());
        LowRank::new(self.lora_a.val(), self.vera_d.val().matmul(up), 1.0)
    }
}

impl WeightAdapter for AdapterHubVeraLinear {
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
