//! The list of named adapters at one place.

use std::sync::{Arc, Weak};

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor, Reparameterization};
use burn::tensor::{Device, Tensor};
use peft_ops::LowRank;
use serde_json::{Map, Value};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::erased::{ErasedWeight, FromDyn};
use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::base_norms::BaseNorms;
use crate::attached::composition::{Composition, Mixture, Parts};
use crate::attached::kept_weight::KeptWeight;
use crate::method::contract::Method;
use crate::slot;
use crate::statistics::inputs::InputRecorder;

/// What visitors and mappers are told, in `enter_module` and `exit_module`, to be the container of an adapter that
/// takes part in the forward pass. The name is the adapter's.
pub const ACTIVE_ADAPTER: &str = "Adapter";

/// The same of an adapter that is attached and inactive: it gets no gradients.
pub const INACTIVE_ADAPTER: &str = "InactiveAdapter";

/// Whether a visitor enters an adapter.
pub(crate) fn is_adapter(container: &str) -> bool {
    container == ACTIVE_ADAPTER || container == INACTIVE_ADAPTER
}

/// A method as it was attached.
#[derive(Debug)]
pub(crate) struct AttachedMethod {
    pub(crate) method: Box<dyn Method>,
    /// What the model told, for the configuration file.
    pub(crate) notes: Map<String, Value>,
}

impl AttachedMethod {
    /// The content of `adapter_config.json`.
    pub(crate) fn to_json(&self) -> Value {
        let mut json = self.method.to_json();
        if let Some(fields) = json.as_object_mut() {
            for (field, value) in &self.notes {
                fields.insert(field.clone(), value.clone());
            }
            fields.insert("inference_mode".into(), true.into());
        }
        json
    }
}

/// One named adapter at one place.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) active: bool,
    /// Which part of its method planned it.
    pub(crate) part: usize,
    pub(crate) adapter: AnyAdapter,
    pub(crate) origin: Arc<AttachedMethod>,
}

/// The adapters at one place, the innermost first.
///
/// On a parameter it is what Burn attaches ([`Reparameterization`]); in the forward pass it is
/// held by a [`Site`](crate::nn::Site). Whether an adapter is active is plain data and not a
/// `Param<Flag>`: `valid()` and `freeze()` turn flags off, and must not turn adapters off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack {
    pub(crate) entries: Vec<Entry>,
    /// The effective value, computed once: set while the model is merged.
    pub(crate) merged: Option<AnyTensor>,
    /// The base, if it is quantized: the parameter's own tensor then only stands in for its shape.
    pub(crate) quantized: Option<QuantizedBase>,
    /// How adapters act together, where they do not lie one on the other; then none is active.
    pub(crate) mixture: Option<Mixture>,
    /// Of the base.
    pub(crate) norms: BaseNorms,
    /// Of the base with the adapters folded in.
    pub(crate) kept: KeptWeight,
    /// Of a table, as a head that is the table sees it.
    pub(crate) kept_by_head: KeptWeight,
    /// What the layer's inputs are recorded by, while a calibrator holds it.
    pub(crate) recorder: Weak<InputRecorder>,
}

impl Stack {
    /// Whether there is nothing at the place.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.merged.is_none()
            && self.quantized.is_none()
            && self.recorder.strong_count() == 0
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    pub(crate) fn active(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.active)
    }

    /// The composition, where the adapters do not lie one on the other, and one of them is here.
    pub(crate) fn mixed(&self) -> Option<&Mixture> {
        self.mixture.as_ref().filter(|mixture| mixture.is_used())
    }

    /// The adapters that take part in the forward pass, in whatever composition.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Entry> {
        let used = |(index, entry): (usize, _)| self.uses(index).then_some(entry);
        self.entries.iter().enumerate().filter_map(used)
    }

    fn uses(&self, index: usize) -> bool {
        let in_mixture = |mixture: &Mixture| mixture.uses(index);
        self.entries[index].active || self.mixture.as_ref().is_some_and(in_mixture)
    }

    /// Whether the weight differs between rows or tokens of a batch.
    pub(crate) fn varies(&self) -> bool {
        let parts = self.mixed().map(|mixture| &mixture.parts);
        match parts {
            Some(Parts::PerRow(_) | Parts::Routed(_)) => true,
            Some(Parts::Blend(blend)) => blend.rows.is_some(),
            Some(Parts::Weighted(_) | Parts::Tree(_)) | None => false,
        }
    }

    /// The composition as it is here, at the place called `place`.
    pub(crate) fn mixture_of(
        &self,
        composition: &Arc<Composition>,
        place: &str,
    ) -> Option<Mixture> {
        let names: Vec<&str> = self
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .collect();
        let first = self.entries.first();
        let is_hidden = first.is_some_and(|entry| entry.adapter.is_hidden());
        Mixture::new(composition, &names, place, is_hidden)
    }

    /// Composes the adapters otherwise; the place is called `place`.
    pub(crate) fn set_composition(&mut self, composition: &Arc<Composition>, place: &str) {
        let stacked = match composition.as_ref() {
            Composition::Stack(names) => names.as_slice(),
            _ => &[],
        };
        for entry in &mut self.entries {
            entry.active = stacked.contains(&entry.name);
        }
        self.mixture = self.mixture_of(composition, place);
    }

    /// The place with the adapter at this index alone, or with none.
    pub(crate) fn only(&self, index: Option<usize>) -> Self {
        self.with(index.as_slice())
    }

    /// The place with the adapters at these indices, one on the other.
    pub(crate) fn with(&self, indices: &[usize]) -> Self {
        let entries = indices.iter().map(|index| Entry {
            active: true,
            ..self.entries[*index].clone()
        });
        Self {
            entries: entries.collect(),
            merged: None,
            quantized: self.quantized.clone(),
            mixture: None,
            norms: self.norms.clone(),
            kept: KeptWeight::never(),
            kept_by_head: KeptWeight::never(),
            recorder: self.recorder.clone(),
        }
    }

    /// As it is put into a model: what was kept of another state of the place is gone.
    pub(crate) fn placed(self) -> Self {
        Self {
            kept: KeptWeight::default(),
            kept_by_head: KeptWeight::default(),
            ..self
        }
    }

    /// The place with the adapter of this name alone, if it is here.
    pub(crate) fn named(&self, name: Option<&str>) -> Self {
        let at = |name: &str| self.entries.iter().position(|entry| entry.name == name);
        self.only(name.and_then(at))
    }

    /// What the entry at this index reports to visitors.
    fn container(&self, index: usize) -> &'static str {
        if self.uses(index) {
            ACTIVE_ADAPTER
        } else {
            INACTIVE_ADAPTER
        }
    }

    pub(crate) fn active_weights(&self) -> Vec<&dyn ErasedWeight> {
        self.active()
            .map(|entry| entry.adapter.weight_adapter())
            .collect()
    }

    /// The base as a dense tensor. `base` is the parameter's own.
    pub(crate) fn dense(&self, base: &AnyTensor) -> AnyTensor {
        match &self.quantized {
            Some(quantized) => AnyTensor::new(quantized.dense(&base.get::<2>())),
            None => base.clone(),
        }
    }

    /// The base with the adapters folded in, whether merged or not. `base` is the parameter's own
    /// tensor.
    pub(crate) fn compose(&self, base: &AnyTensor) -> AnyTensor {
        self.compose_on(self.dense(base))
    }

    /// A dense weight with the adapters folded in.
    pub(crate) fn compose_on(&self, weight: AnyTensor) -> AnyTensor {
        let composed = |entries: &[usize]| {
            entries.iter().fold(weight.clone(), |weight, index| {
                self.entries[*index]
                    .adapter
                    .weight_adapter()
                    .compose(weight)
            })
        };
        let weighted: Vec<(f64, AnyTensor)> = match self.mixed().map(|mixture| &mixture.parts) {
            Some(Parts::Weighted(parts)) => parts
                .iter()
                .map(|(index, factor)| (*factor, composed(&[*index])))
                .collect(),
            Some(Parts::Blend(blend)) => {
                if let Some(entries) = blend.plain() {
                    return composed(entries);
                }
                let sum = blend.sums.iter().take(1).flatten();
                sum.map(|(factor, stack)| (*factor, composed(stack)))
                    .collect()
            }
            _ => {
                return self
                    .active_weights()
                    .into_iter()
                    .fold(weight, |weight, adapter| adapter.compose(weight));
            }
        };
        weighted
            .into_iter()
            .fold(weight.clone(), |sum, (factor, changed)| {
                sum.add_difference(&changed, &weight, factor)
            })
    }

    /// The effective weight, where it is kept between forward passes: nothing is trained, the adapters' activation side
    /// costs more than the weight does, and there is memory for it. `base` is the parameter's own tensor.
    pub(crate) fn kept<const D: usize>(&self, base: &Tensor<D>) -> Option<Tensor<D>> {
        // Who has a quantized base wants no dense copy of it.
        if D < 2 || base.is_autodiff() || self.quantized.is_some() {
            return None;
        }
        let elements = base.shape().num_elements();
        let bytes = elements * base.dtype().size();
        let compose = || self.compose(&AnyTensor::new(base.clone()));
        let wanted = || self.gains_from_weight(elements);
        let kept = self.kept.get(bytes, wanted, compose)?;
        Some(kept.get())
    }

    /// Bytes of all that is kept here.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept.bytes() + self.kept_by_head.bytes()
    }

    /// Whether forward passes take less time with the effective weight, of so many elements, than without.
    fn gains_from_weight(&self, elements: usize) -> bool {
        let adapters = || self.used().map(|entry| entry.adapter.weight_adapter());
        let gains = |adapter: &dyn ErasedWeight| {
            let elements_of = |factors: LowRank| {
                factors.down.shape().num_elements() + factors.up.shape().num_elements()
            };
            // Up to half as many products as the layer's own are no reason for a second weight.
            let costs = |factors| 2 * elements_of(factors) > elements;
            let costly = || adapter.computes_factors() || adapter.low_rank().is_none_or(costs);
            adapter.keeps_weight() && costly()
        };
        !self.varies() && adapters().all(ErasedWeight::is_mergeable) && adapters().any(gains)
    }
}

impl Reparameterization for Stack {
    const NAME: &'static str = slot::SEGMENT;

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        assert!(
            !self.varies(),
            "rows or tokens of the batch have adapters of their own, so this weight is no single one: call its \
             layer through `peft_core::nn::AdaptedForward`, or `activate` adapters for all rows"
        );
        assert!(
            self.used()
                .all(|entry| entry.adapter.weight_adapter().is_mergeable()),
            "an adapter adds to this layer's output what its weight cannot: call the layer through \
             `peft_core::nn::AdaptedForward`"
        );
        match &self.merged {
            Some(merged) => merged.get(),
            None if self.quantized.is_none() && self.used().next().is_none() => base,
            None => match self.kept(&base) {
                Some(kept) => kept,
                None => self.compose(&AnyTensor::new(base)).get(),
            },
        }
    }
}

impl Module for Stack {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if slot::report(|| self.clone()) {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let container = self.container(index);
            visitor.enter_module(&entry.name, container);
            entry.adapter.module().visit(&mut FromDyn(visitor));
            visitor.exit_module(&entry.name, container);
        }
    }

    fn map<M: ModuleMapper>(mut self, mapper: &mut M) -> Self {
        if slot::is_writing() {
            return slot::take().map_or(self, Self::placed);
        }
        self.kept = KeptWeight::default();
        self.kept_by_head = KeptWeight::default();
        // The mapper may have changed the base, but not a quantized one.
        if self.quantized.is_none() {
            self.norms = BaseNorms::default();
        }
        for index in 0..self.entries.len() {
            let container = self.container(index);
            let entry = &mut self.entries[index];
            mapper.enter_module(&entry.name, container);
            entry.adapter.module_mut().map(&mut FromDyn(mapper));
            mapper.exit_module(&entry.name, container);
        }
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.entries.iter().fold(devices, |devices, entry| {
            entry.adapter.module().collect_devices(devices)
        })
    }

    fn to_device(mut self, device: &Device) -> Self {
        for entry in &mut self.entries {
            entry.adapter.module_mut().to_device(device);
        }
        self.merged = self.merged.map(|merged| merged.to_device(device));
        self.norms = BaseNorms::default();
        self.placed()
    }

    fn fork(mut self, device: &Device) -> Self {
        for entry in &mut self.entries {
            entry.adapter.module_mut().fork(device);
        }
        self.merged = self.merged.map(|merged| merged.to_device(device));
        self.norms = BaseNorms::default();
        self.placed()
    }

    fn train(mut self) -> Self {
        for entry in &mut self.entries {
            entry.adapter.module_mut().train();
        }
        self.merged = self.merged.map(|merged| merged.with_autodiff(true));
        self.placed()
    }

    fn valid(&self) -> Self {
        let mut stack = self.clone();
        for entry in &mut stack.entries {
            entry.adapter.module_mut().valid();
        }
        stack.merged = stack.merged.map(|merged| merged.with_autodiff(false));
        // So that a model which is trained holds nothing that its evaluation kept.
        stack.placed()
    }

    fn materialize(self) -> Self {
        self
    }
}
