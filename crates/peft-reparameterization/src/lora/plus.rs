//! LoRA+: a higher learning rate for B than for A.

use burn::module::ParamGroup;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, Result};

use crate::lora::conv::LoraConv2d;
use crate::lora::state::{LoraBias, LoraEmbedding, LoraLinear};

/// Parameters of a LoRA adapter that learn at a rate of their own (Hayou et al. 2024, LoRA+: Efficient Low
/// Rank Adaptation of Large Models, section 4). All others learn at the base rate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoraPlus {
    /// B, its biases and DoRA's magnitudes: 16 times the base rate is the paper's starting point.
    pub up: ParamGroup,
    /// Both factors of embedding tables; upstream's default is 1e-6.
    pub embeddings: ParamGroup,
}

/// The groups of the adapter `name`.
///
/// ```
/// # use burn::lr_scheduler::{constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler};
/// # use peft_reparameterization::lora_plus;
/// # fn f<M: peft_core::PeftModule>(model: &M) -> peft_core::Result<()> {
/// let groups = lora_plus(model, "mine")?;
/// let mut rates = ModuleLrScheduler::new(ConstantLr::from(2e-4))
///     .with_group(groups.up, ConstantLr::from(16.0 * 2e-4))
///     .with_group(groups.embeddings, ConstantLr::from(1e-6));
/// // In the loop: optimizer.step(rates.step(), model, gradients)
/// # let _ = rates.step();
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`UnknownAdapter`](peft_core::Error::UnknownAdapter).
pub fn lora_plus<M: PeftModule>(model: &M, name: &str) -> Result<LoraPlus> {
    let linear = model.adapter_states::<LoraLinear>(name)?.into_iter();
    let convolutions = model.adapter_states::<LoraConv2d>(name)?.into_iter();
    let biases = model.adapter_states::<LoraBias>(name)?.into_iter();
    let tables = model.adapter_states::<LoraEmbedding>(name)?.into_iter();
    let lengths = model
        .adapter_states::<LoraLinear>(name)?
        .into_iter()
        .filter_map(|(_, state)| Some(state.magnitude?.value.id));
    let added = model
        .adapter_states::<LoraLinear>(name)?
        .into_iter()
        .filter_map(|(_, state)| Some(state.added_bias?.id));
    let up = linear
        .map(|(_, state)| state.lora_b.id)
        .chain(lengths)
        .chain(added)
        .chain(convolutions.map(|(_, state)| state.lora_b.id))
        .chain(biases.map(|(_, state)| state.lora_b.id))
        .collect();
    let embeddings = tables
        .flat_map(|(_, state)| [state.lora_a.id, state.lora_b.id])
        .collect();
    Ok(LoraPlus {
        up: ParamGroup::from_ids(up),
        embeddings: ParamGroup::from_ids(embeddings),
    })
}
