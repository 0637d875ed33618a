//! X-LoRA: LoRA experts that a classifier weighs, token by token and layer by layer.

use std::collections::HashMap;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};
use peft_core::method::LayoutParam;
use peft_core::nn::{ForwardContext, Routing};
use peft_core::state::AdapterState as _;
use peft_core::{Composition, Error, PeftModule, Result};

use crate::combine_error::CombineError;
use crate::lora::conv::LoraConv2d;
use crate::lora::state::{LoraEmbedding, LoraLinear};
use crate::mixture::classifier::{Scalings, XLoraClassifier};
use crate::mixture::xlora_config::{XLORA, XLoraConfig};

impl XLoraConfig {
    /// A fresh classifier over LoRA adapters that are on the model, for hidden states of width `hidden_size`. The experts
    /// are frozen, unless `use_trainable_adapters` says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], [`Error::UnknownAdapter`]; [`CombineError`] in [`Error::Method`] for an expert that is no LoRA, or is one with
    /// DoRA.
    pub fn init<M: PeftModule + ModuleDisplay>(
        &self,
        model: &M,
        experts: &[&str],
        hidden_size: usize,
    ) -> Result<XLora<M>> {
        self.validate()?;
        let width = self.hidden_size.unwrap_or(hidden_size);
        if width != hidden_size {
            let expected = format!("{hidden_size}, the width of the model's hidden states");
            return Err(Error::config(XLORA, "hidden_size", width, expected));
        }
        if experts.is_empty() {
            let expected = "at least one expert, an adapter of the model";
            return Err(Error::config(XLORA, "adapters", experts, expected));
        }
        let layers = expert_layers(model, experts)?;
        let names: Vec<String> = experts.iter().map(ToString::to_string).collect();
        let routed = model.set_composition(&Composition::Routed(names.clone()))?;
        let frozen = if self.use_trainable_adapters {
            Vec::new()
        } else {
            routed.adapters()
        };
        let routed = (frozen.iter()).try_fold(routed, |model, name| model.freeze_adapter(name))?;
        let device = device_of(&routed);
        let classifier = XLoraClassifier::new(self, width, [layers.len(), names.len()], &device);
        Ok(XLora {
            model: routed,
            classifier,
            experts: names,
            layers,
            config: Self {
                hidden_size: Some(width),
                ..self.clone()
            },
        })
    }
}

/// A model with LoRA experts, and the classifier that weighs them (Buehler and Buehler 2024, X-LoRA, section 2).
///
/// A forward pass is two: in the first the classifier sees the model's last hidden states, without gradients; in the
/// second the experts act with the weights that it gave.
///
/// ```no_run
/// # use burn::tensor::{Int, Tensor};
/// # use peft_core::{PeftModule, Result, nn::ForwardContext};
/// # use peft_reparameterization::{LORA, XLoraConfig};
/// # trait Llama: PeftModule + burn::module::ModuleDisplay {
/// #     fn hidden_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<3>;
/// #     fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<3>;
/// # }
/// # fn f<M: Llama>(base: &M, ids: Tensor<2, Int>) -> Result<()> {
/// let model = base.load_adapter("law", "law", &[&LORA])?.load_adapter("code", "code", &[&LORA])?;
/// let xlora = XLoraConfig::new().init(&model, &["law", "code"], 4096)?;
/// let logits = xlora.forward(
///     ForwardContext::new(),
///     |model, context| model.hidden_in(ids.clone(), context),
///     |model, context| model.forward_in(ids.clone(), context),
/// );
/// # Ok(()) }
/// ```
///
/// It is a Burn module: an optimizer trains the classifier, and the experts where they are trained.
#[derive(Module, Debug)]
pub struct XLora<M: Module> {
    /// The model, whose composition is [`Composition::Routed`].
    pub model: M,
    /// The classifier.
    pub classifier: XLoraClassifier,
    /// Names of the experts, in the order of the classifier's outputs.
    #[module(skip)]
    pub(crate) experts: Vec<String>,
    /// Names of the layers that the experts change, in the order of the model.
    #[module(skip)]
    pub(crate) layers: Vec<String>,
    #[module(skip)]
    pub(crate) config: XLoraConfig,
}

impl<M: PeftModule + ModuleDisplay> XLora<M> {
    /// The configuration.
    pub fn config(&self) -> &XLoraConfig {
        &self.config
    }

    /// Names of the experts, in the order of the classifier's outputs.
    pub fn experts(&self) -> &[String] {
        &self.experts
    }

    /// The output of the model with experts, for a batch with this context. `hidden` gives the model's last hidden
    /// states `[batch, seq, d]`, `output` what is wanted of it: logits, a loss.
    pub fn forward<O>(
        &self,
        context: ForwardContext,
        hidden: impl FnOnce(&M, ForwardContext) -> Tensor<3>,
        output: impl FnOnce(&M, ForwardContext) -> O,
    ) -> O {
        let first = context.clone().with_routing(self.first_pass());
        let hidden = hidden(&self.model, first).detach();
        output(&self.model, context.with_routing(self.routing(hidden)))
    }

    /// The routing of the first pass: the same weight for every expert.
    pub fn first_pass(&self) -> Routing {
        let weight = self.config.scaling_pass_value * self.config.global_scaling_weight;
        let device = self.classifier.layers[0].weight.lazy_device();
        let weights = Tensor::<2>::full([1, self.experts.len()], weight, &device);
        Routing::per_row(self.experts.iter().cloned(), weights)
    }

    /// The routing that the classifier gives for the hidden states `[batch, seq, d]` of a batch.
    pub fn routing(&self, hidden: Tensor<3>) -> Routing {
        let layers = self.layers.iter().cloned().zip(0..);
        let scalings = Scalings {
            weights: self.classifier.forward(hidden),
            layers: layers.collect::<HashMap<_, _>>(),
            top_k: self.config.top_k_lora,
            softmax: self.config.enable_softmax_topk,
            factor: self.config.global_scaling_weight,
        };
        Routing::computed(self.experts.iter().cloned(), scalings)
    }

    /// Sets how many experts a token has at a layer; none for all.
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn with_top_k_lora(mut self, top_k: Option<usize>) -> Result<Self> {
        self.config.top_k_lora = top_k;
        self.config.validate()?;
        Ok(self)
    }
}

/// Names of the layers that experts change, in the order of the model.
fn expert_layers<M: PeftModule>(model: &M, experts: &[&str]) -> Result<Vec<String>> {
    let mut changed: Vec<String> = Vec::new();
    for expert in experts {
        let refuse = |reason: &str| CombineError::refuse(*expert, reason);
        let linear = model.adapter_states::<LoraLinear>(expert)?;
        let tables = model.adapter_states::<LoraEmbedding>(expert)?;
        let kernels = model.adapter_states::<LoraConv2d>(expert)?;
        let dora = linear.iter().any(|(_, state)| state.magnitude.is_some())
            || tables.iter().any(|(_, state)| state.magnitude.is_some())
            || kernels.iter().any(|(_, state)| state.magnitude.is_some());
        if dora {
            return Err(refuse(
                "X-LoRA weighs what LoRA adds, and DoRA does more than to add",
            ));
        }
        let names = linear.into_iter().map(|(layer, _)| layer);
        let names = names.chain(tables.into_iter().map(|(layer, _)| layer));
        let names: Vec<String> = names
            .chain(kernels.into_iter().map(|(layer, _)| layer))
            .collect();
        if names.is_empty() {
            return Err(refuse(
                "it is none of LoRA's; only such adapters are experts",
            ));
        }
        changed.extend(names);
    }
    let layout = model.layout();
    let layers = layout.layers.iter().map(|layer| layer.name.clone());
    Ok(layers.filter(|layer| changed.contains(layer)).collect())
}

pub(crate) fn device_of<M: PeftModule>(model: &M) -> Device {
    let layout = model.layout();
    let device = layout.params.first().map(LayoutParam::device);
    device.unwrap_or_default()
}
