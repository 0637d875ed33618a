//! Adapters whose start came from data, as files hold them: plain LoRA of twice the rank.

use burn::module::Param;
use burn::tensor::Tensor;
use peft_core::Result;
use peft_core::method::{States, Value};
use serde_json::{Map, json};

use crate::lora::config::LoraConfig;
use crate::lora::init::Start;
use crate::lora::state::LoraLinear;

/// Whether what a state begins as is known from data alone, and not from the base.
fn is_from_data(start: Start) -> bool {
    matches!(start, Start::Corda | Start::LoraGa)
}

/// Puts the change since the start, `A B − A₀ B₀`, in the place of the factors, and returns the fields that say so. What
/// the base is without cannot be computed from a file.
pub(crate) fn convert(config: &LoraConfig, states: &mut States) -> Result<Map<String, Value>> {
    let started = |states: &States| {
        let mut states = states.of::<LoraLinear>();
        states.any(|(_, state)| state.removed.is_some())
    };
    if !is_from_data(config.init_lora_weights.start()?) || !started(states) {
        return Ok(Map::new());
    }
    states.edit::<LoraLinear>(|_, state| {
        let Some(start) = state.removed.take() else {
            return;
        };
        state.lora_a = beside(&state.lora_a, start.a.val(), 1);
        state.lora_b = beside(&state.lora_b, -start.b.val(), 0);
    });
    // Twice the rank at the same scale.
    let alpha = |alpha: f64| {
        if config.use_rslora {
            alpha * std::f64::consts::SQRT_2
        } else {
            alpha * 2.0
        }
    };
    let mut written = config.clone();
    written.r = config.r * 2;
    written.lora_alpha = alpha(config.lora_alpha);
    written.init_lora_weights = true.into();
    let mut fields = Map::new();
    let json = written.json();
    for field in ["r", "lora_alpha", "init_lora_weights"] {
        fields.insert(field.into(), json[field].clone());
    }
    let mut patterns = json!({ "rank": json["rank_pattern"], "alpha": json["alpha_pattern"] });
    if let Some(ranks) = patterns["rank"].as_object_mut() {
        for rank in ranks.values_mut() {
            *rank = rank.as_u64().map_or(Value::Null, |rank| (rank * 2).into());
        }
    }
    if let Some(alphas) = patterns["alpha"].as_object_mut() {
        for value in alphas.values_mut() {
            *value = value
                .as_f64()
                .map_or(Value::Null, |value| alpha(value).into());
        }
    }
    fields.insert("rank_pattern".into(), patterns["rank"].take());
    fields.insert("alpha_pattern".into(), patterns["alpha"].take());
    Ok(fields)
}

fn beside(param: &Param<Tensor<2>>, more: Tensor<2>, dim: usize) -> Param<Tensor<2>> {
    let both = Tensor::cat(vec![param.val().detach(), more.detach()], dim);
    Param::from_tensor(both.detach())
}
