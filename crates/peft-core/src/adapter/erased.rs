//! Erasure of typed adapters, so that one list can hold those of every method.
//!
//! A method's state is a plain `#[derive(Module)]` struct. Burn's visitors and mappers have
//! methods generic over the tensor's rank, which no trait object can have, so this module carries
//! parameters across as `(rank, dyn Any)` and restores the rank on the other side, as Burn does for
//! its own reparameterizations. Nothing outside this file sees the erased form.

use std::any::Any;

use burn::module::{Devices, Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_ops::LowRank;

use crate::adapter::any_tensor::{AnyTensor, with_rank};
use crate::adapter::attention_context::{AttentionContext, PrefixContext};
use crate::adapter::base::{BaseConv2d, BaseEmbedding, BaseLinear};
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::{
    Adapter, AttentionAdapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter,
};
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::role::Role;
use crate::adapter::site_context::{HiddenParts, SiteContext};

/// A parameter on its way through the erased boundary.
pub(crate) struct AnyParam {
    rank: usize,
    value: Box<dyn Any>,
}

impl AnyParam {
    fn new<T: Any>(rank: usize, value: T) -> Self {
        Self {
            rank,
            value: Box::new(value),
        }
    }

    fn take<T: Any>(self) -> T {
        *self
            .value
            .downcast()
            .expect("rank and kind travel with the parameter")
    }
}

/// A borrowed parameter on its way through the erased boundary.
pub(crate) struct AnyParamRef<'a> {
    rank: usize,
    value: &'a dyn Any,
}

pub(crate) trait DynVisitor {
    fn float(&mut self, param: AnyParamRef<'_>);
    fn int(&mut self, param: AnyParamRef<'_>);
    fn bool(&mut self, param: AnyParamRef<'_>);
    fn flag(&mut self, param: &Param<Flag>);
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

pub(crate) trait DynMapper {
    fn float(&mut self, param: AnyParam) -> AnyParam;
    fn int(&mut self, param: AnyParam) -> AnyParam;
    fn bool(&mut self, param: AnyParam) -> AnyParam;
    fn flag(&mut self, param: Param<Flag>) -> Param<Flag>;
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
}

/// Typed visitor calls in, erased calls out.
struct ToDyn<'a, T: ?Sized>(&'a mut T);

impl ModuleVisitor for ToDyn<'_, dyn DynVisitor + '_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.float(AnyParamRef {
            rank: D,
            value: param,
        });
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.int(AnyParamRef {
            rank: D,
            value: param,
        });
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.0.bool(AnyParamRef {
            rank: D,
            value: param,
        });
    }
    fn visit_flag(&mut self, param: &Param<Flag>) {
        self.0.flag(param);
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

impl ModuleMapper for ToDyn<'_, dyn DynMapper + '_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0.float(AnyParam::new(D, param)).take()
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        self.0.int(AnyParam::new(D, param)).take()
    }
    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        self.0.bool(AnyParam::new(D, param)).take()
    }
    fn map_flag(&mut self, param: Param<Flag>) -> Param<Flag> {
        self.0.flag(param)
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

/// Erased calls in, typed visitor calls out.
pub(crate) struct FromDyn<'a, T>(pub(crate) &'a mut T);

impl<V: ModuleVisitor> DynVisitor for FromDyn<'_, V> {
    fn float(&mut self, param: AnyParamRef<'_>) {
        with_rank!(param.rank, D => {
            self.0.visit_float(param.value.downcast_ref::<Param<Tensor<D>>>().expect("rank"));
        });
    }
    fn int(&mut self, param: AnyParamRef<'_>) {
        with_rank!(param.rank, D => {
            self.0.visit_int(param.value.downcast_ref::<Param<Tensor<D, Int>>>().expect("rank"));
        });
    }
    fn bool(&mut self, param: AnyParamRef<'_>) {
        with_rank!(param.rank, D => {
            self.0.visit_bool(param.value.downcast_ref::<Param<Tensor<D, Bool>>>().expect("rank"));
        });
    }
    fn flag(&mut self, param: &Param<Flag>) {
        self.0.visit_flag(param);
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

impl<M: ModuleMapper> DynMapper for FromDyn<'_, M> {
    fn float(&mut self, param: AnyParam) -> AnyParam {
        with_rank!(param.rank, D => AnyParam::new(D, self.0.map_float(param.take::<Param<Tensor<D>>>())))
    }
    fn int(&mut self, param: AnyParam) -> AnyParam {
        with_rank!(param.rank, D => AnyParam::new(D, self.0.map_int(param.take::<Param<Tensor<D, Int>>>())))
    }
    fn bool(&mut self, param: AnyParam) -> AnyParam {
        with_rank!(param.rank, D => AnyParam::new(D, self.0.map_bool(param.take::<Param<Tensor<D, Bool>>>())))
    }
    fn flag(&mut self, param: Param<Flag>) -> Param<Flag> {
        self.0.map_flag(param)
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

/// What every erased adapter can do, wherever it acts.
pub(crate) trait ErasedModule: std::fmt::Debug + Send + Sync {
    fn role(&self) -> Role;
    fn tensors(&self) -> Vec<CheckpointKey>;
    /// As a file holds it.
    fn stored(&self) -> Box<dyn ErasedModule>;
    /// It has a file's values now.
    fn filled(&mut self);
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn visit(&self, visitor: &mut dyn DynVisitor);
    fn map(&mut self, mapper: &mut dyn DynMapper);
    fn to_device(&mut self, device: &Device);
    fn fork(&mut self, device: &Device);
    fn train(&mut self);
    fn valid(&mut self);
    fn collect_devices(&self, devices: Devices) -> Devices;
}

/// A typed adapter.
#[derive(Clone, Debug)]
pub(crate) struct Typed<A> {
    /// Absent only while it is being changed, so that no second handle on its tensors keeps an optimizer from updating
    /// them in place.
    state: Option<A>,
    role: Role,
}

impl<A: Adapter> Typed<A> {
    pub(crate) fn new(state: A, role: Role) -> Self {
        Self {
            state: Some(state),
            role,
        }
    }

    fn state(&self) -> &A {
        self.state
            .as_ref()
            .expect("present but for the moment of a change")
    }

    fn change(&mut self, change: impl FnOnce(A) -> A) {
        self.state = self.state.take().map(change);
    }
}

impl<A: Adapter> ErasedModule for Typed<A> {
    fn role(&self) -> Role {
        self.role
    }
    fn tensors(&self) -> Vec<CheckpointKey> {
        self.state().tensors()
    }
    fn stored(&self) -> Box<dyn ErasedModule> {
        Box::new(Self::new(self.state().for_checkpoint(), self.role))
    }
    fn filled(&mut self) {
        self.change(Adapter::after_load);
    }
    fn as_any(&self) -> &dyn Any {
        self.state()
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self.state
            .as_mut()
            .expect("present but for the moment of a change")
    }
    fn visit(&self, visitor: &mut dyn DynVisitor) {
        self.state().visit(&mut ToDyn(visitor));
    }
    fn map(&mut self, mapper: &mut dyn DynMapper) {
        self.change(|state| state.map(&mut ToDyn(mapper)));
    }
    fn to_device(&mut self, device: &Device) {
        self.change(|state| state.to_device(device));
    }
    fn fork(&mut self, device: &Device) {
        self.change(|state| state.fork(device));
    }
    fn train(&mut self) {
        self.change(Module::train);
    }
    fn valid(&mut self) {
        self.change(|state| state.valid());
    }
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.state().collect_devices(devices)
    }
}

pub(crate) trait ErasedWeight: ErasedModule {
    fn compose(&self, base: AnyTensor) -> AnyTensor;
    fn low_rank(&self) -> Option<LowRank>;
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2>;
    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3>;
    fn conv2d(&self, input: Tensor<4>, base: &dyn BaseConv2d) -> Tensor<4>;
    fn is_mergeable(&self) -> bool;
    fn needs_weight(&self) -> bool;
    fn keeps_weight(&self) -> bool;
    fn computes_factors(&self) -> bool;
    fn num_tasks(&self) -> Option<usize>;
    fn affects_tied_head(&self) -> bool;
    fn tied_low_rank(&self) -> Option<LowRank>;
    fn boxed(&self) -> Box<dyn ErasedWeight>;
}

impl<A: WeightAdapter> ErasedWeight for Typed<A> {
    fn compose(&self, base: AnyTensor) -> AnyTensor {
        with_rank!(base.rank(), D => AnyTensor::new(self.state().compose(base.get::<D>())))
    }
    fn low_rank(&self) -> Option<LowRank> {
        self.state().low_rank()
    }
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        self.state().linear(input, base)
    }
    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        self.state().embedding(ids, base)
    }
    fn conv2d(&self, input: Tensor<4>, base: &dyn BaseConv2d) -> Tensor<4> {
        self.state().conv2d(input, base)
    }
    fn is_mergeable(&self) -> bool {
        self.state().is_mergeable()
    }
    fn needs_weight(&self) -> bool {
        self.state().needs_weight()
    }
    fn keeps_weight(&self) -> bool {
        self.state().keeps_weight()
    }
    fn computes_factors(&self) -> bool {
        self.state().computes_factors()
    }
    fn num_tasks(&self) -> Option<usize> {
        self.state().num_tasks()
    }
    fn affects_tied_head(&self) -> bool {
        self.state().affects_tied_head()
    }
    fn tied_low_rank(&self) -> Option<LowRank> {
        self.state().tied_low_rank()
    }
    fn boxed(&self) -> Box<dyn ErasedWeight> {
        Box::new(self.clone())
    }
}

pub(crate) trait ErasedHidden: ErasedModule {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3>;
    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts;
    fn inverse(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3>;
    fn is_end(&self) -> bool;
    fn boxed(&self) -> Box<dyn ErasedHidden>;
}

impl<A: HiddenAdapter> ErasedHidden for Typed<A> {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        self.state().forward(hidden, context)
    }
    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts {
        self.state().parts(hidden, context)
    }
    fn inverse(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        self.state().inverse(hidden, context)
    }
    fn is_end(&self) -> bool {
        self.state().is_end()
    }
    fn boxed(&self) -> Box<dyn ErasedHidden> {
        Box::new(self.clone())
    }
}

/// Makes parameters constants.
struct Freeze;

impl ModuleMapper for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(false)
    }
}

impl dyn ErasedModule + '_ {
    /// Makes all parameters constants.
    pub(crate) fn freeze(&mut self) {
        self.map(&mut FromDyn(&mut Freeze));
    }
}

impl dyn ErasedHidden + '_ {
    /// A copy to which no gradient flows.
    pub(crate) fn frozen(&self) -> Box<dyn ErasedHidden> {
        let mut copy = self.boxed();
        copy.map(&mut FromDyn(&mut Freeze));
        copy
    }
}

pub(crate) trait ErasedPrompt: ErasedModule {
    fn virtual_tokens(&self) -> usize;
    fn is_behind_first_token(&self) -> bool;
    fn num_tasks(&self) -> Option<usize>;
    fn prompts_before(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Tensor<3>;
    fn boxed(&self) -> Box<dyn ErasedPrompt>;
}

impl<A: PromptAdapter> ErasedPrompt for Typed<A> {
    fn virtual_tokens(&self) -> usize {
        self.state().virtual_tokens()
    }
    fn is_behind_first_token(&self) -> bool {
        self.state().is_behind_first_token()
    }
    fn num_tasks(&self) -> Option<usize> {
        self.state().num_tasks()
    }
    fn prompts_before(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        self.state().prompts_before(hidden, context)
    }
    fn boxed(&self) -> Box<dyn ErasedPrompt> {
        Box::new(self.clone())
    }
}

pub(crate) trait ErasedKeyValue: ErasedModule {
    fn virtual_tokens(&self) -> usize;
    fn positions(&self) -> usize;
    fn key_value(&self) -> (Tensor<2>, Tensor<2>);
    fn key_value_of(
        &self,
        key_value: (Tensor<2>, Tensor<2>),
        rows: usize,
        context: &PrefixContext<'_>,
    ) -> (Tensor<3>, Tensor<3>);
    fn boxed(&self) -> Box<dyn ErasedKeyValue>;
}

impl<A: KeyValueAdapter> ErasedKeyValue for Typed<A> {
    fn virtual_tokens(&self) -> usize {
        self.state().virtual_tokens()
    }
    fn positions(&self) -> usize {
        self.state().positions()
    }
    fn key_value(&self) -> (Tensor<2>, Tensor<2>) {
        self.state().key_value()
    }
    fn key_value_of(
        &self,
        key_value: (Tensor<2>, Tensor<2>),
        rows: usize,
        context: &PrefixContext<'_>,
    ) -> (Tensor<3>, Tensor<3>) {
        self.state().key_value_of(key_value, rows, context)
    }
    fn boxed(&self) -> Box<dyn ErasedKeyValue> {
        Box::new(self.clone())
    }
}

pub(crate) trait ErasedAttention: ErasedModule {
    fn forward(&self, attended: Tensor<3>, context: &AttentionContext<'_>) -> Tensor<3>;
    fn boxed(&self) -> Box<dyn ErasedAttention>;
}

impl<A: AttentionAdapter> ErasedAttention for Typed<A> {
    fn forward(&self, attended: Tensor<3>, context: &AttentionContext<'_>) -> Tensor<3> {
        self.state().forward(attended, context)
    }
    fn boxed(&self) -> Box<dyn ErasedAttention> {
        Box::new(self.clone())
    }
}
