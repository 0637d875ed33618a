//! Arrow: LoRA adapters that exist, routed token by token without training. GenKnowSub takes out of them what all know.

use std::collections::HashMap;

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor};
use peft_core::nn::{RoutedPlace, Router, Routing};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, Error, PeftModule, Result};

use crate::combine_error::CombineError;
use crate::lora::fixed_factors::plain;
use crate::lora::state::LoraLinear;
use crate::math::linalg::{qr, svd};
use crate::mixture::top_k::largest;

/// How tokens choose their experts. Fields are called as in Hugging Face PEFT's `ArrowConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ArrowConfig {
    /// How many experts each token has at a layer. Default: 3. At least 1; more than there are is all of them.
    pub top_k: usize,
    /// Temperature of the softmax over their scores. Default: 1. Above 0.
    pub router_temperature: f64,
}

impl Default for ArrowConfig {
    fn default() -> Self {
        Self {
            top_k: 3,
            router_temperature: 1.0,
        }
    }
}

impl ArrowConfig {
    /// So many experts for a token, at temperature 1.
    pub fn new(top_k: usize) -> Self {
        Self {
            top_k,
            ..Self::default()
        }
    }

    /// Sets [`router_temperature`](Self::router_temperature).
    #[must_use]
    pub fn with_router_temperature(mut self, temperature: f64) -> Self {
        self.router_temperature = temperature;
        self
    }

    fn check(&self) -> Result<()> {
        if self.top_k == 0 {
            return Err(Error::config(ARROW, "top_k", self.top_k, "at least 1"));
        }
        let temperature = self.router_temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            let expected = "a finite number above 0";
            return Err(Error::config(
                ARROW,
                "router_temperature",
                temperature,
                expected,
            ));
        }
        Ok(())
    }
}

const ARROW: &str = "Arrow";

/// Routes LoRA adapters that are on a model by what they were trained on (Ostapenko et al. 2024, Towards Modular LLMs by
/// Building and Reusing a Library of LoRAs, section 4.2): at each layer, each token has the adapters whose change it would
/// be amplified by most. Nothing is trained.
///
/// The prototype of an adapter at a layer is the direction of inputs that its change answers to most, its first singular
/// vector. A token's score for it is the length of its projection on the prototype. The weights are the softmax over the
/// `top_k` largest scores.
///
/// Returns the model with [`Composition::Routed`], and the routing for its forward passes:
///
/// ```no_run
/// # use burn::tensor::{Int, Tensor};
/// # use peft_core::{PeftModule, Result, nn::ForwardContext};
/// # use peft_reparameterization::{ArrowConfig, arrow};
/// # fn f<M: PeftModule>(model: &M, forward: impl Fn(&M, ForwardContext)) -> Result<()> {
/// let (model, routing) = arrow(model, &["law", "medicine", "code"], ArrowConfig::new(2))?;
/// forward(&model, ForwardContext::new().with_routing(routing));
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`Error::UnknownAdapter`]; [`CombineError`] in [`Error::Method`] for an adapter that is more than LoRA on linear layers, or on other
/// layers than the others, or that holds NaN; [`Error::Config`].
pub fn arrow<M: PeftModule>(
    model: &M,
    experts: &[&str],
    config: ArrowConfig,
) -> Result<(M, Routing)> {
    config.check()?;
    let mut prototypes: HashMap<String, Vec<Tensor<1>>> = HashMap::new();
    for (index, expert) in experts.iter().enumerate() {
        let states = linear_states(model, expert)?;
        let found = states.len();
        for (layer, state) in states {
            let refuse = |reason: String| CombineError::refuse(*expert, reason);
            let prototype = prototype(&state);
            let prototype =
                prototype.ok_or_else(|| refuse(format!("at `{layer}` it is not finite")))?;
            let of_layer = prototypes.entry(layer.clone()).or_default();
            of_layer.push(prototype);
            if of_layer.len() != index + 1 {
                let reason = format!("it changes `{layer}`, and `{}` does not", experts[0]);
                return Err(refuse(reason));
            }
        }
        if found != prototypes.len() {
            let reason = format!("it changes other layers than `{}`", experts[0]);
            return Err(CombineError::refuse(*expert, reason));
        }
    }
    let names = experts.iter().map(ToString::to_string);
    let model = model.set_composition(&Composition::Routed(names.collect()))?;
    let prototypes = prototypes.into_iter();
    let router = ArrowRouter {
        prototypes: prototypes
            .map(|(layer, all)| (layer, Tensor::stack::<2>(all, 1)))
            .collect(),
        config,
    };
    Ok((model, Routing::computed(experts.iter().copied(), router)))
}

/// Takes general knowledge out of LoRA adapters (GenKnowSub, Bagherifard et al. 2025, section 3): the mean of the
/// general adapters' factors is subtracted from the factors of each task's adapter. The returned model's adapters are
/// changed, the given model's are not.
///
/// As upstream, it subtracts A from A and B from B, not one change from the other.
///
/// # Errors
///
/// [`Error::UnknownAdapter`], [`Error::Merged`]; [`CombineError`] in [`Error::Method`] for an adapter that is more than LoRA on linear
/// layers, or whose factors have other shapes than those of the first general one, for no general adapter, and for a task's
/// adapter that is named twice.
pub fn gen_know_sub<M: PeftModule>(model: &M, tasks: &[&str], general: &[&str]) -> Result<M> {
    for (at, task) in tasks.iter().enumerate() {
        let problem = if general.is_empty() {
            "there is no general adapter to take out of it; name at least one"
        } else if tasks[..at].contains(task) {
            "it is named twice; name each task's adapter once"
        } else {
            continue;
        };
        return Err(CombineError::refuse(*task, problem));
    }
    let mut mean: HashMap<String, (Tensor<2>, Tensor<2>)> = HashMap::new();
    for adapter in general {
        for (layer, state) in linear_states(model, adapter)? {
            let share = 1.0 / general.len() as f64;
            let (a, b) = (
                plain(state.lora_a.val()) * share,
                plain(state.lora_b.val()) * share,
            );
            let sum = match mean.remove(&layer) {
                Some((sum_a, sum_b)) => {
                    same_shapes(adapter, &layer, [sum_a.dims(), sum_b.dims()], &state)?;
                    (sum_a + a, sum_b + b)
                }
                None => (a, b),
            };
            mean.insert(layer, sum);
        }
    }
    for task in tasks {
        for (layer, state) in linear_states(model, task)? {
            if let Some((a, b)) = mean.get(&layer) {
                same_shapes(task, &layer, [a.dims(), b.dims()], &state)?;
            }
        }
    }
    tasks.iter().try_fold(model.clone(), |model, task| {
        model.edit_adapter::<LoraLinear>(task, |layer, state| {
            let Some((a, b)) = mean.get(layer) else {
                return;
            };
            let less = |value: Tensor<2>, general: &Tensor<2>| {
                let (trained, autodiff) = (value.is_require_grad(), value.is_autodiff());
                let dtype = value.dtype();
                let less = (plain(value) - general.clone()).cast(dtype);
                let less = if autodiff {
                    Tensor::from_inner(less)
                } else {
                    less
                };
                less.set_require_grad(trained)
            };
            state.lora_a = state.lora_a.clone().map(|value| less(value, a));
            state.lora_b = state.lora_b.clone().map(|value| less(value, b));
        })
    })
}

/// Refuses factors of other shapes than these.
fn same_shapes(
    adapter: &str,
    layer: &str,
    [a, b]: [[usize; 2]; 2],
    state: &LoraLinear,
) -> Result<()> {
    let found = [state.lora_a.dims(), state.lora_b.dims()];
    if found == [a, b] {
        return Ok(());
    }
    let reason = format!(
        "at `{layer}` its factors have shapes {found:?}, those of the general adapters {:?}",
        [a, b]
    );
    Err(CombineError::refuse(adapter, reason))
}

/// The states of an adapter that is LoRA on linear layers and nothing else.
fn linear_states<M: PeftModule>(model: &M, adapter: &str) -> Result<Vec<(String, LoraLinear)>> {
    let tensors = model.adapter_tensors(adapter)?.len();
    let states = model.adapter_states::<LoraLinear>(adapter)?;
    let plain = |(_, state): &(String, LoraLinear)| {
        state.magnitude.is_none() && state.added_bias.is_none() && state.removed.is_none()
    };
    if tensors == 2 * states.len() && states.iter().all(plain) {
        return Ok(states);
    }
    Err(CombineError::refuse(
        adapter,
        "only LoRA on linear layers is routed by its factors: no other method or layer, no DoRA, biases or \
                 saved modules, no initial values that were taken out of the base",
    ))
}

/// The direction of inputs, `[in]`, that the change `A B` answers to most: its first left singular vector, as the change
/// is `[in, out]`. `None` if it is not finite.
fn prototype(state: &LoraLinear) -> Option<Tensor<1>> {
    // A = Q R, so that the vector is Q times that of R B, and R B = (Q' R')ᵀ in the same way.
    let (q, r) = qr(plain(state.lora_a.val()));
    let (_, other) = qr(plain(state.lora_b.val()).transpose());
    let small = svd(r.matmul(other.transpose()))?;
    let first = small.u.narrow(1, 0, 1);
    Some(q.matmul(first).squeeze_dim::<1>(1))
}

#[derive(Debug)]
struct ArrowRouter {
    /// By layer, `[in, experts]`.
    prototypes: HashMap<String, Tensor<2>>,
    config: ArrowConfig,
}

impl Router for ArrowRouter {
    fn weights(&self, place: &RoutedPlace<'_>) -> Tensor<3> {
        let (Some(prototypes), Some(input)) = (self.prototypes.get(place.name), &place.input)
        else {
            panic!(
                "Arrow has no prototypes for `{}`: its experts were others when the routing was made",
                place.name
            )
        };
        let dtype = input.dtype();
        let input = input.clone().cast(DType::F32);
        let mut prototypes = prototypes.clone().to_device(&input.device());
        if input.is_autodiff() && !prototypes.is_autodiff() {
            prototypes = Tensor::from_inner(prototypes);
        }
        let scores = input.matmul(prototypes.unsqueeze()).abs();
        let experts = scores.dims()[2];
        let kept = largest(&scores, self.config.top_k.min(experts));
        let scores =
            (scores / self.config.router_temperature).mask_fill(kept.bool_not(), f32::NEG_INFINITY);
        softmax(scores, 2).cast(dtype)
    }
}
