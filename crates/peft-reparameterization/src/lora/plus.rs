//! LoRA+: a higher learning rate for B than for A.

use burn::module::{ParamGroup, ParamId};
use peft_core::method::{Adapter, TrainedBias};
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, Result};

use crate::lora::alora::ALoraLinear;
use crate::lora::block_diagonal::BdLoraLinear;
use crate::lora::conv::LoraConv2d;
use crate::lora::kasa::KasaLinear;
use crate::lora::loftq::LoftqLinear;
use crate::lora::monteclora::MontecloraLinear;
use crate::lora::state::{LoraBias, LoraEmbedding, LoraLinear};
use crate::lora::velora::VeloraLinear;

/// Parameters of a LoRA adapter that learn at a rate of their own (Hayou et al. 2024, LoRA+: Efficient Low
/// Rank Adaptation of Large Models, section 4). All others learn at the base rate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoraPlus {
    /// B, and what has one axis: biases, DoRA's magnitudes, KaSA's singular values, MonteCLoRA's distributions. 16 times
    /// the base rate is the paper's starting point.
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
    let mut up = Vec::new();
    collect(model, name, &mut up, of_linear)?;
    collect(model, name, &mut up, |state: &ALoraLinear| {
        of_linear(&state.lora)
    })?;
    collect(model, name, &mut up, |state: &LoftqLinear| {
        of_linear(&state.lora)
    })?;
    collect(model, name, &mut up, |state: &VeloraLinear| {
        of_linear(&state.lora)
    })?;
    collect(model, name, &mut up, |state: &MontecloraLinear| {
        let priors = [state.std_prior.id, state.expert_weights_prior.id];
        [of_linear(&state.lora), priors.into()].concat()
    })?;
    collect(model, name, &mut up, |state: &BdLoraLinear| {
        vec![state.lora_b.id]
    })?;
    collect(model, name, &mut up, |state: &KasaLinear| {
        vec![state.lora_b.id, state.lora_diag.id]
    })?;
    collect(model, name, &mut up, |state: &LoraConv2d| {
        let length = state.magnitude.as_ref().map(|lengths| lengths.value.id);
        length.into_iter().chain([state.lora_b.id]).collect()
    })?;
    collect(model, name, &mut up, |state: &LoraBias| {
        vec![state.lora_b.id]
    })?;
    collect(model, name, &mut up, |state: &TrainedBias| vec![state.id()])?;
    collect(model, name, &mut up, |state: &LoraEmbedding| {
        let length = state.magnitude.as_ref().map(|lengths| lengths.value.id);
        length.into_iter().collect()
    })?;
    let mut embeddings = Vec::new();
    collect(model, name, &mut embeddings, |state: &LoraEmbedding| {
        vec![state.lora_a.id, state.lora_b.id]
    })?;
    Ok(LoraPlus {
        up: ParamGroup::from_ids(up),
        embeddings: ParamGroup::from_ids(embeddings),
    })
}

/// Adds the parameters that `of` finds in the adapter's states of one type.
fn collect<A: Adapter>(
    model: &impl PeftModule,
    name: &str,
    ids: &mut Vec<ParamId>,
    of: impl Fn(&A) -> Vec<ParamId>,
) -> Result<()> {
    let states = model.adapter_states::<A>(name)?;
    ids.extend(states.iter().flat_map(|(_, state)| of(state)));
    Ok(())
}

fn of_linear(state: &LoraLinear) -> Vec<ParamId> {
    let length = state.magnitude.as_ref().map(|lengths| lengths.value.id);
    let bias = state.added_bias.as_ref().map(|bias| bias.id);
    length
        .into_iter()
        .chain(bias)
        .chain([state.lora_b.id])
        .collect()
}
