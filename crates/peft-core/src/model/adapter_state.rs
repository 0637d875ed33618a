//! What an adapter on a model consists of: its configuration, states and tensors.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::TensorData;
use serde_json::Value;

use crate::adapter::contract::Adapter;
use crate::attached::traversal;
use crate::error::Result;
use crate::model::{average, states};

/// The configuration, states and tensors of the adapters on a model: for analysis, for starting from computed values,
/// for exchange between processes. Every Burn module has it, beside [`PeftModule`](crate::PeftModule).
pub trait AdapterState: Module {
    /// The configuration of an adapter, as its `adapter_config.json` says it.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter).
    fn adapter_config(&self, name: &str) -> Result<Value> {
        Ok(traversal::gather(self).origin(name)?.to_json())
    }

    /// The states of type `A` of an adapter, with the upstream names of their places.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter).
    fn adapter_states<A: Adapter>(&self, name: &str) -> Result<Vec<(String, A)>> {
        states::adapter_states(self, name)
    }

    /// Changes the states of type `A` of an adapter.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged).
    fn edit_adapter<A: Adapter>(
        &self,
        name: &str,
        change: impl FnMut(&str, &mut A),
    ) -> Result<Self> {
        states::edit_adapter(self, name, change)
    }

    /// Trains an adapter no more: its parameters are constants from now on. It acts as before.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged).
    fn freeze_adapter(&self, name: &str) -> Result<Self> {
        states::freeze_adapter(self, name)
    }

    /// Of how many tasks the active adapters have parameters, each number once; empty where none tells rows apart by task.
    /// A forward pass has to say the tasks of its rows ([`ForwardContext::with_tasks`](crate::nn::ForwardContext::with_tasks)),
    /// with ids below the smallest number, unless all numbers are 1.
    fn num_tasks(&self) -> BTreeSet<usize> {
        traversal::gather(self).num_tasks()
    }

    /// The tensors of an adapter under the keys of its checkpoint, as they are trained: its state dict. A file has
    /// others where the method stores something else than it trains: what a prompt's encoder computes, say.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter).
    #[doc(alias = "get_peft_model_state_dict")]
    fn adapter_tensors(&self, name: &str) -> Result<BTreeMap<String, TensorData>> {
        states::adapter_tensors(self, name)
    }

    /// Puts tensors into an adapter, all of those that [`adapter_tensors`](Self::adapter_tensors) gives: from another
    /// process, or averaged over several.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged); [`Error::Tensors`](crate::Error::Tensors) where one is missing, of the wrong
    /// shape, not finite or without a place.
    #[doc(alias = "set_peft_model_state_dict")]
    fn with_adapter_tensors(
        &self,
        name: &str,
        tensors: BTreeMap<String, TensorData>,
    ) -> Result<Self> {
        states::with_adapter_tensors(self, name, tensors)
    }

    /// Makes the weighted mean of adapters that are on the model into a new one, called `name`, and attaches it: of every
    /// tensor of their files. Weights are divided by their sum.
    ///
    /// The adapters must be of one method, with configurations that say the same about their tensors: rank and scale, for
    /// example, not dropout. It is a mean of parameters, not of what the adapters compute. The mean of two factors is not
    /// the mean of their products: `peft_reparameterization::add_weighted_adapter` combines the changes of LoRA adapters.
    ///
    /// ```no_run
    /// # use peft_core::{PeftModule, state::AdapterState};
    /// # fn f<M: PeftModule>(model: &M) -> peft_core::Result<M> {
    /// model.average_adapters("soup", &[("seed-1", 1.0), ("seed-2", 1.0), ("seed-3", 2.0)])
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`](crate::Error::UnknownAdapter), [`Error::Merged`](crate::Error::Merged);
    /// [`Error::Tensors`](crate::Error::Tensors) for adapters that have no mean, with the field or tensor in which they
    /// differ; and what [`PeftModule::attach`](crate::PeftModule::attach) refuses.
    #[doc(alias = "average_adapter")]
    fn average_adapters(&self, name: &str, weights: &[(&str, f64)]) -> Result<Self> {
        average::average(self, name, weights)
    }
}

impl<M: Module> AdapterState for M {}
