//! Several LoRA adapters made into one: weighted sums and what the literature on merging adds to them.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;
use peft_core::method::{Init, LayoutParam, TrainedBias};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result};

use crate::combine::merge_method::MergeMethod;
use crate::combine_error::CombineError;
use crate::lora::config::{LORA, LoraConfig};
use crate::lora::conv::LoraConv2d;
use crate::lora::fixed_factors::{Factors, Kind, LoraFromFactors, bias_of, factored, plain};
use crate::lora::state::{LoraBias, LoraEmbedding, LoraLinear};
use peft_core::method::Bias;

/// What a [`MergeMethod`] is applied to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum CombinationType {
    /// The factors side by side: exactly the weighted sum of the changes. The rank is the sum of the
    /// ranks. Upstream's `cat`.
    Cat,
    /// The factors A and the factors B, each combined by the rule. Cheap, of the same rank, and *not* the
    /// rule applied to the changes: the sum's product has cross terms. All ranks must be equal.
    /// Upstream's names without `_svd`.
    Factors(MergeMethod),
    /// The changes of the weights themselves, brought back to factors by their singular values: the best
    /// approximation of the given rank, by default of the largest rank that goes in. Upstream's `svd` and
    /// names that end so.
    Svd(MergeMethod, Option<usize>),
}

/// Everything that an adapter changes, by layer.
pub(crate) struct Adapter {
    name: String,
    weight: f64,
    pub(crate) config: LoraConfig,
    pub(crate) factors: BTreeMap<String, Factors>,
    /// β of `lora_bias`, times its scale.
    pub(crate) added: BTreeMap<String, Tensor<1>>,
    pub(crate) biases: BTreeMap<String, Tensor<1>>,
}

impl Adapter {
    pub(crate) fn of<M: PeftModule>(model: &M, name: &str, weight: f64) -> Result<Self> {
        let refuse = |reason: &str| CombineError::refuse(name, reason);
        let mut json = model.adapter_config(name)?;
        if json["peft_type"] != LORA.peft_type {
            return Err(refuse("it is none of LoRA's; only such adapters can be"));
        }
        if let Some(fields) = json.as_object_mut() {
            fields.remove("peft_type");
        }
        let config: LoraConfig = serde_json::from_value(json)
            .map_err(|error| refuse(&format!("its configuration is not LoRA's ({error})")))?;
        if !weight.is_finite() {
            return Err(refuse("its weight is not finite"));
        }
        check_plain(name, &config)?;
        let mut factors = BTreeMap::new();
        for (layer, state) in model.adapter_states::<LoraLinear>(name)? {
            let change = state.change();
            factors.insert(
                layer,
                Factors {
                    kind: Kind::Linear,
                    left: plain(change.down),
                    right: plain(change.up),
                    scale: change.scale,
                    more: state.removed.is_some(),
                },
            );
        }
        for (layer, state) in model.adapter_states::<LoraEmbedding>(name)? {
            factors.insert(
                layer,
                Factors {
                    kind: Kind::Embedding,
                    left: plain(state.lora_a.val()),
                    right: plain(state.lora_b.val()),
                    scale: state.scale,
                    more: false,
                },
            );
        }
        for (layer, state) in model.adapter_states::<LoraConv2d>(name)? {
            if state.groups() != 1 {
                let reason = "its convolution has groups, and what LoRA adds to that is no change of its kernel";
                return Err(CombineError::refuse(&layer, reason));
            }
            let [rank, channels, height, width] = state.lora_a.dims();
            let out = state.lora_b.dims()[0];
            factors.insert(
                layer,
                Factors {
                    kind: Kind::Conv2d([channels, height, width]),
                    left: plain(state.lora_b.val()).reshape([out, rank]),
                    right: plain(state.lora_a.val()).reshape([rank as isize, -1]),
                    scale: state.scale,
                    more: false,
                },
            );
        }
        let added = model.adapter_states::<LoraBias>(name)?.into_iter();
        let biases = model.adapter_states::<TrainedBias>(name)?.into_iter();
        Ok(Self {
            name: name.into(),
            weight,
            config,
            factors,
            added: added
                .map(|(layer, state)| (layer, plain(state.lora_b.val()) * state.scale))
                .collect(),
            biases: biases
                .map(|(layer, state)| (layer, plain(state.value())))
                .collect(),
        })
    }
}

/// Refuses an adapter whose factors are not all that it changes.
fn check_plain(name: &str, config: &LoraConfig) -> Result<()> {
    let refuse = |reason: &str| CombineError::refuse(name, reason);
    if config.use_dora {
        return Err(refuse(
            "DoRA scales the whole weight, so its changes do not add up; merge it into the base instead",
        ));
    }
    if let Some(field) = config.not_plain() {
        return Err(refuse(&format!(
            "it is another LoRA than the plain one (`{field}`); merge it into the base instead, if it can be"
        )));
    }
    let saves = config
        .common
        .modules_to_save
        .as_ref()
        .is_some_and(|modules| !modules.is_empty());
    let head = matches!(
        config.common.task_type.as_deref(),
        Some("SEQ_CLS" | "TOKEN_CLS" | "QUESTION_ANS")
    );
    if saves || head {
        return Err(refuse(
            "it has modules that were trained whole (`modules_to_save`, or its task's head), which do not add up",
        ));
    }
    if config.trainable_token_indices.is_some() {
        return Err(refuse(
            "it has rows of an embedding table, which do not add up",
        ));
    }
    if config.ensure_weight_tying {
        return Err(refuse(
            "it has `ensure_weight_tying`, and what is combined would not keep table and head equal",
        ));
    }
    Ok(())
}

/// Makes LoRA adapters that are on a model into a new one, called `name`, and attaches it.
///
/// Scales (alpha, rsLoRA, patterns) are part of what is combined; the new adapter's is 1. Biases that the
/// adapters train are combined by the weighted sum of their changes, whatever the rule. A layer that only
/// some adapters change is combined from those.
///
/// ```no_run
/// # use peft_reparameterization::{CombinationType, MergeMethod, add_weighted_adapter};
/// # fn f<M: peft_core::PeftModule>(model: &M) -> peft_core::Result<()> {
/// let both = add_weighted_adapter(model, "both", &[("de", 0.7), ("fr", 0.3)], CombinationType::Cat)?;
/// let at_rank_8 = CombinationType::Svd(MergeMethod::Sum, Some(8));
/// let without = add_weighted_adapter(model, "without", &[("chat", 1.0), ("toxic", -0.5)], at_rank_8)?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`CombineError`] in [`Error::Method`] where the operation has no meaning: adapters of other methods, DoRA, modules saved
/// whole, factors of unequal rank to be combined as such; [`Error::Config`] for a density that is not in
/// (0, 1] or a rank of 0; and what [`PeftModule::attach`] refuses.
pub fn add_weighted_adapter<M: PeftModule>(
    model: &M,
    name: &str,
    adapters: &[(&str, f64)],
    combination: CombinationType,
) -> Result<M> {
    let Some((first, _)) = adapters.first() else {
        let reason = "there is nothing to combine; name at least one adapter";
        return Err(CombineError::refuse(name, reason));
    };
    let rule = match combination {
        CombinationType::Cat => MergeMethod::Sum,
        CombinationType::Factors(rule) | CombinationType::Svd(rule, _) => rule,
    };
    let density = rule.density();
    if !(density > 0.0 && density <= 1.0) {
        return Err(Error::config(LORA.title, "density", density, "in (0, 1]"));
    }
    if let CombinationType::Svd(_, Some(0)) = combination {
        return Err(Error::config(LORA.title, "svd_rank", 0, "at least 1"));
    }
    let base = model.adapter_config(first)?["base_model_name_or_path"].clone();
    let adapters = adapters
        .iter()
        .map(|(name, weight)| Adapter::of(model, name, *weight))
        .collect::<Result<Vec<_>>>()?;
    let layout = model.layout();
    let device = layout.params.first().map(LayoutParam::device);
    let mut init = if rule.draws() {
        Init::from_device(&device.unwrap_or_default())
    } else {
        Init::new(0)
    };
    let mut factors = BTreeMap::new();
    for layer in layers(&adapters, |adapter| &adapter.factors) {
        let parts: Vec<(&Adapter, &Factors)> = adapters
            .iter()
            .filter_map(|adapter| Some((adapter, adapter.factors.get(&layer)?)))
            .collect();
        let combined = match combination {
            CombinationType::Cat => side_by_side(&parts),
            CombinationType::Factors(rule) => by_factors(&layer, &parts, rule, &mut init)?,
            CombinationType::Svd(rule, rank) => by_change(&layer, &parts, rule, rank, &mut init)?,
        };
        factors.insert(layer, combined);
    }
    let sum = |values: &mut dyn Iterator<Item = (f64, Tensor<1>)>| {
        let weighted = values.map(|(weight, value)| value * weight);
        weighted.reduce(|sum, value| sum + value)
    };
    let mut added = BTreeMap::new();
    for layer in layers(&adapters, |adapter| &adapter.added) {
        let mut values = adapters
            .iter()
            .filter_map(|adapter| Some((adapter.weight, adapter.added.get(&layer)?.clone())));
        added.extend(sum(&mut values).map(|value| (layer.clone(), value)));
    }
    let mut biases = BTreeMap::new();
    for layer in layers(&adapters, |adapter| &adapter.biases) {
        let base = plain(bias_of(&layout, &layer)?.value::<1>());
        let mut changes = adapters.iter().filter_map(|adapter| {
            let change = adapter.biases.get(&layer)?.clone() - base.clone();
            Some((adapter.weight, change))
        });
        let change = sum(&mut changes);
        biases.extend(change.map(|change| (layer.clone(), base.clone() + change)));
    }
    let all = adapters
        .iter()
        .any(|adapter| adapter.config.bias == Bias::All);
    let mut config = LoraFromFactors::config(&factors, &layout);
    config.bias = match (biases.is_empty(), all) {
        (true, _) => Bias::None,
        (_, true) => Bias::All,
        (_, false) => Bias::Adapted,
    };
    config.lora_bias = !added.is_empty();
    config.common.base_model_name_or_path = base.as_str().map(Into::into);
    let given = LoraFromFactors {
        config,
        factors,
        added,
        biases,
    };
    model.attach(name, &given)
}

/// The layers that some adapter has something for.
fn layers<T>(
    adapters: &[Adapter],
    of: impl Fn(&Adapter) -> &BTreeMap<String, T>,
) -> BTreeSet<String> {
    let names = adapters.iter().flat_map(|adapter| of(adapter).keys());
    names.cloned().collect()
}

fn side_by_side(parts: &[(&Adapter, &Factors)]) -> Factors {
    let scaled = |(adapter, factors): &(&Adapter, &Factors)| {
        factors.left.clone() * (adapter.weight * factors.scale)
    };
    Factors {
        kind: parts[0].1.kind,
        left: Tensor::cat(parts.iter().map(scaled).collect(), 1),
        right: Tensor::cat(
            parts
                .iter()
                .map(|(_, factors)| factors.right.clone())
                .collect(),
            0,
        ),
        scale: 1.0,
        more: false,
    }
}

fn by_factors(
    layer: &str,
    parts: &[(&Adapter, &Factors)],
    rule: MergeMethod,
    init: &mut Init,
) -> Result<Factors> {
    let (first, rest) = parts.split_first().expect("a layer of some adapter");
    for (adapter, factors) in parts {
        let reason = if factors.more {
            "its factors are not all of its change (PiSSA, OLoRA)".to_string()
        } else if factors.rank() != first.1.rank() {
            format!(
                "at `{layer}` its rank is {}, that of `{}` is {}",
                factors.rank(),
                first.0.name,
                first.1.rank()
            )
        } else {
            continue;
        };
        let reason =
            format!("{reason}; combine the changes (Svd), or put the factors side by side (Cat)");
        return Err(CombineError::refuse(&adapter.name, reason));
    }
    if rest.is_empty() {
        // One adapter is itself, whatever the rule would make of one half of it.
        if rule == MergeMethod::Sum {
            return Ok(side_by_side(parts));
        }
    }
    // The sign goes to one side only, or it would cancel.
    let product = |(adapter, factors): &(&Adapter, &Factors)| adapter.weight * factors.scale;
    let roots: Vec<f64> = parts
        .iter()
        .map(|part| product(part).abs().sqrt())
        .collect();
    let signed: Vec<f64> = parts
        .iter()
        .zip(&roots)
        .map(|(part, root)| root.copysign(product(part)))
        .collect();
    let lefts: Vec<Tensor<2>> = parts.iter().map(|part| part.1.left.clone()).collect();
    let rights: Vec<Tensor<2>> = parts.iter().map(|part| part.1.right.clone()).collect();
    Ok(Factors {
        kind: first.1.kind,
        left: rule.apply(&lefts, &signed, init),
        right: rule.apply(&rights, &roots, init),
        scale: 1.0,
        more: false,
    })
}

fn by_change(
    layer: &str,
    parts: &[(&Adapter, &Factors)],
    rule: MergeMethod,
    rank: Option<usize>,
    init: &mut Init,
) -> Result<Factors> {
    let changes: Vec<Tensor<2>> = parts.iter().map(|part| part.1.change()).collect();
    let weights: Vec<f64> = parts.iter().map(|part| part.0.weight).collect();
    let largest = parts.iter().map(|part| part.1.rank()).max().unwrap_or(1);
    let change = rule.apply(&changes, &weights, init);
    let factors = factored(parts[0].1.kind, change, rank.unwrap_or(largest));
    let refuse = || {
        let reason = format!("at `{layer}` the change has no singular values; is it finite?");
        CombineError::refuse(&parts[0].0.name, reason)
    };
    factors.map(|(factors, _)| factors).ok_or_else(refuse)
}
