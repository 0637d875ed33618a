//! What AdapterFusion computes at one site.

use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use peft_core::method::{Adapter, CheckpointKey, HiddenAdapter, SiteContext};
use peft_core::nn::AdaptedForward;
use peft_core::ops::linear;

/// AdapterHub's dictionary of such states.
pub(super) const DICT: &str = "adapter_fusion_layer";

/// Attention of one site's state over what the fused adapters would add to it.
///
/// `h' = h + Σᵢ pᵢ V uᵢ` with `p = softmax(drop(Q z · K uᵢ) / T)`, where `uᵢ` is what adapter i adds to the state h, and
/// z what the last of them reads.
#[derive(Module, Debug)]
pub struct AdapterFusion {
    /// Q and its bias; without it z is the query.
    pub query: Option<FusionProjection>,
    /// K and its bias; without it `uᵢ` is the key.
    pub key: Option<FusionProjection>,
    /// V, `[d, d]`; without it `uᵢ` is the value.
    pub value: Option<Param<Tensor<2>>>,
    /// On the attention's scores.
    pub dropout: Dropout,
    /// T.
    pub temperature: f64,
    /// T of a training that is resumed, until its next step: of all copies of the model that it begins with.
    #[module(skip)]
    pub(super) resumed: Arc<Mutex<Option<f64>>>,
    /// The fused adapters that are at this site.
    #[module(skip)]
    pub names: Vec<String>,
    /// Whether the query is the state before the model's norm, h.
    pub query_before_norm: bool,
    /// Whether the adapters' own residual is a part of each `uᵢ`, and of the sum by them.
    pub residual_before: bool,
}

/// A projection with a bias.
#[derive(Module, Debug)]
pub struct FusionProjection {
    /// `[d, d]`.
    pub weight: Param<Tensor<2>>,
    /// `[d]`.
    pub bias: Param<Tensor<1>>,
}

impl Adapter for AdapterFusion {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = |field: &str, name: &str| {
            CheckpointKey::layer(field, &format!("{DICT}.{{adapter}}.{name}"))
        };
        vec![
            key("query.weight", "query.weight").transposed(),
            key("query.bias", "query.bias"),
            key("key.weight", "key.weight").transposed(),
            key("key.bias", "key.bias"),
            key("value", "value.weight").transposed(),
        ]
    }
}

impl AdapterFusion {
    /// T, as the next step has it.
    pub(super) fn current_temperature(&self) -> f64 {
        let resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        resumed.unwrap_or(self.temperature)
    }

    /// Sets T for a training that is resumed, or ends that.
    pub(super) fn resume(&self, temperature: Option<f64>) {
        *self.resumed.lock().unwrap_or_else(PoisonError::into_inner) = temperature;
    }
}

impl HiddenAdapter for AdapterFusion {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let parts = self.names.iter().map(|name| {
            let parts = context.parts_of(name, hidden.clone());
            parts.unwrap_or_else(|| {
                panic!(
                    "an AdapterFusion is of the adapter `{name}`, which was detached: detach the fusion, too"
                )
            })
        });
        let mut parts: Vec<_> = parts.collect();
        let Some(last) = parts.last() else {
            return hidden;
        };
        let [batch, seq, width] = hidden.dims();
        let tokens = batch * seq;
        let kept = last.kept.clone();
        let query = if self.query_before_norm {
            hidden
        } else {
            last.seen.clone()
        };
        let query = query.reshape([tokens, width]);
        let added = parts.drain(..).map(|part| {
            let added = if self.residual_before {
                part.added + kept.clone()
            } else {
                part.added
            };
            added.reshape([tokens, width])
        });
        let added = Tensor::stack::<3>(added.collect(), 1);
        let weights = softmax(
            self.scores(query, added.clone()) / self.current_temperature(),
            1,
        );
        let mixed = (weights * added).sum_dim(1).reshape([tokens, width]);
        // V is linear, so it is the same behind the sum as before it, and there it is computed once.
        let mixed = match &self.value {
            Some(value) => linear(mixed, value.val(), None, None),
            None => mixed,
        };
        let mixed = mixed.reshape([batch, seq, width]);
        if self.residual_before {
            mixed
        } else {
            kept + mixed
        }
    }
}

impl AdapterFusion {
    /// `Q z · K uᵢ`, `[tokens, adapters, 1]`, for z `[tokens, d]` and u `[tokens, adapters, d]`.
    ///
    /// K is applied to the query, once, in place of all `uᵢ`: `q · (uᵢ K + b) = (q Kᵀ) · uᵢ + q · b`.
    fn scores(&self, query: Tensor<2>, added: Tensor<3>) -> Tensor<3> {
        let query = match &self.query {
            Some(FusionProjection { weight, bias }) => {
                linear(query, weight.val(), Some(bias.val()), None)
            }
            None => query,
        };
        let scores = match &self.key {
            None => (added * query.unsqueeze_dim(1)).sum_dim(2),
            Some(FusionProjection { weight, bias }) => {
                let constant = (query.clone() * bias.val().unsqueeze()).sum_dim(1);
                let query = query.matmul(weight.val().transpose());
                (added * query.unsqueeze_dim(1)).sum_dim(2) + constant.unsqueeze_dim(1)
            }
        };
        self.dropout.adapted(scores)
    }
}
