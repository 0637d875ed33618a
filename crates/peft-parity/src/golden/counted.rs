//! Cases whose `trainable` is upstream's count of something else than the file holds. Each rule says what it counted, and
//! follows from the tensors of the case alone.

use std::path::Path;

use peft_core::checkpoint;

use super::case::read;
use super::{Problem, Tensors};

/// What upstream counted as trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// LoRA's factors before they were converted to plain LoRA: the change since the start, `A B - A₀ B₀`, is of twice
    /// the rank, so the file holds twice as many numbers (CorDA, LoRA-GA, converted PiSSA).
    BeforeConversion,
    /// VB-LoRA's logits, of which the file holds the weights of the chosen ones only (`save_only_topk_weights`): what is
    /// loaded trains these and the bank.
    WithLogits,
    /// The matrices A of sums of Kronecker products whose `learn_phm` is false: `train_adapter` trains all parameters of an
    /// adapter, whatever they were made as.
    FrozenRule,
    /// What carries a shadow network's state on behind the last block, where nothing reads it: no gradient reaches it.
    UnreadState,
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeConversion => {
                "upstream counted the factors before they were converted to plain LoRA of twice the rank"
            }
            Self::WithLogits => {
                "upstream counted logits that the file does not hold: it has the chosen weights only"
            }
            Self::FrozenRule => {
                "upstream trains and counted the Kronecker rule, though learn_phm is false"
            }
            Self::UnreadState => {
                "upstream counted what carries the shadow state on behind the last block, where nothing reads it"
            }
        })
    }
}

/// How many elements an adapter with these tensors trains where upstream trained `counted`, and the rule that says so.
pub(super) fn trained(
    case: &Path,
    counted: usize,
    adapter: &Tensors,
) -> Result<(usize, Option<Counted>), Problem> {
    if let Some(half) = elements_before_conversion(case, adapter)? {
        return Ok((counted + half, Some(Counted::BeforeConversion)));
    }
    let config = checkpoint::read_config(case)?;
    if config["config"]["phm_layer"] == true && config["config"]["learn_phm"] == false {
        let rule = adapter.iter().filter(|(key, _)| key.contains("phm_rule"));
        let rule: usize = rule.map(|(_, data)| data.num_elements()).sum();
        return Ok((counted.saturating_sub(rule), Some(Counted::FrozenRule)));
    }
    let unread = elements_behind_last_block(adapter);
    if unread > 0 {
        return Ok((counted.saturating_sub(unread), Some(Counted::UnreadState)));
    }
    let vectors = config["num_vectors"].as_u64().unwrap_or_default() as usize;
    let (mut logits, mut weights) = (0, 0);
    for (key, data) in adapter {
        if key.ends_with("_topk_indices") {
            let shape = data.shape().to_vec();
            logits += shape[..shape.len() - 1].iter().product::<usize>() * vectors;
        } else if key.ends_with("_topk_weights") {
            weights += data.num_elements();
        }
    }
    let rule = (logits > 0).then_some(Counted::WithLogits);
    Ok(((counted + weights).saturating_sub(logits), rule))
}

/// Elements of what carries a shadow state on behind the last block that has it.
fn elements_behind_last_block(adapter: &Tensors) -> usize {
    let block = |key: &str| {
        let (block, _) = key.split_once(".shadow_update_")?;
        block.rsplit('.').next()?.parse::<usize>().ok()
    };
    let last = adapter.keys().filter_map(|key| block(key)).max();
    let unread = adapter
        .iter()
        .filter(|(key, _)| last.is_some() && block(key) == last);
    unread.map(|(_, data)| data.num_elements()).sum()
}

/// Elements of the factors that a case started from, if those it holds are all of exactly twice their rank.
fn elements_before_conversion(case: &Path, adapter: &Tensors) -> Result<Option<usize>, Problem> {
    let path = case.join("init.safetensors");
    if !path.exists() {
        return Ok(None);
    }
    let (start, _) = read(&path)?;
    let mut elements = 0;
    for (end, rank) in [(".lora_A.weight", 0), (".lora_B.weight", 1)] {
        for (key, data) in start.iter().filter(|(key, _)| key.ends_with(end)) {
            let mut twice = data.shape().to_vec();
            twice[rank] *= 2;
            let held = adapter.get(&format!("base_model.model.{key}"));
            if held.is_none_or(|held| held.shape().to_vec() != twice) {
                return Ok(None);
            }
            elements += data.num_elements();
        }
    }
    Ok((elements > 0).then_some(elements))
}
