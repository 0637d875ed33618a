//! A copy of a parameter, trained in its place: `modules_to_save` and biases.

use burn::module::{Module, Param, ParamId};
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor};

use crate::adapter::any_tensor::with_rank;
use crate::adapter::base::{BaseEmbedding, BaseLinear};
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::{Adapter, WeightAdapter};
use crate::adapter::erased::AnyAdapter;
use crate::adapter::role::Role;
use crate::layout::model_layout::LayoutParam;

/// The copy of a bias that a method trains ([`Plan::train_bias`](crate::method::Plan::train_bias)).
pub type TrainedBias = ModuleToSave<1, false>;

impl TrainedBias {
    /// The bias, `[out]`.
    pub fn value(&self) -> Tensor<1> {
        self.value.val()
    }

    /// The parameter's id, by which an optimizer's groups find it.
    pub fn id(&self) -> ParamId {
        self.value.id
    }

    /// With another value.
    pub(crate) fn with_value(mut self, value: Tensor<1>) -> Self {
        self.value = Param::from_tensor(value);
        self
    }
}

/// The trained copy. The base below keeps its value, so that disabling the adapter gives the
/// model back bit for bit, heads and biases included (upstream's `bias="all"` does not).
#[derive(Module, Debug)]
pub struct ModuleToSave<const R: usize, const OF_MODULE: bool> {
    value: Param<Tensor<R>>,
    #[module(skip)]
    key: String,
    #[module(skip)]
    transposed: bool,
    /// Upstream's name of the weight of a tied head, if that follows this table.
    #[module(skip)]
    head: Option<String>,
}

impl ModuleToSave<1, true> {
    /// A copy of `param`, of whatever rank it is, for `modules_to_save`; `head` is the weight of a tied head that
    /// follows it.
    pub(crate) fn of_module(
        param: &LayoutParam,
        transposed: bool,
        head: Option<&LayoutParam>,
    ) -> AnyAdapter {
        with_rank!(param.shape().len(), R => {
            let copy = ModuleToSave::<R, true> {
                value: Param::from_tensor(param.value::<R>().detach()),
                key: param.name.clone(),
                transposed,
                head: head.map(|head| head.name.clone()),
            };
            AnyAdapter::weight(copy, Role::SavedModule)
        })
    }
}

impl ModuleToSave<1, false> {
    /// A copy of a bias, under another key than its name where a method says so.
    pub(crate) fn of_bias(param: &LayoutParam, key: Option<String>) -> Self {
        Self {
            value: Param::from_tensor(param.value::<1>().detach()),
            key: key.unwrap_or_else(|| param.name.clone()),
            transposed: false,
            head: None,
        }
    }
}

impl<const R: usize, const OF_MODULE: bool> Adapter for ModuleToSave<R, OF_MODULE> {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let spec = CheckpointKey::named("value", &self.key);
        let spec = match &self.head {
            Some(head) => spec.twin(CheckpointKey::named("value", head)),
            None => spec,
        };
        vec![if self.transposed {
            spec.transposed()
        } else {
            spec
        }]
    }
}

impl<const R: usize, const OF_MODULE: bool> WeightAdapter for ModuleToSave<R, OF_MODULE> {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        // The ranks are equal; the reshape only tells the compiler.
        self.value.val().reshape(weight.shape())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // What lies below is not looked at: a quantized base stays quantized.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let shape: [usize; 2] = self.value.dims()[..]
            .try_into()
            .expect("the weight of a linear layer is a matrix");
        let value: Tensor<2> = self.value.val().reshape(shape);
        peft_ops::linear(input, value, base.bias(), None)
    }

    fn embedding(&self, ids: Tensor<2, Int>, _base: &dyn BaseEmbedding) -> Tensor<3> {
        let shape: [usize; 2] = self.value.dims()[..]
            .try_into()
            .expect("a table is a matrix");
        embedding(self.value.val().reshape(shape), ids)
    }

    fn keeps_weight(&self) -> bool {
        false
    }

    fn affects_tied_head(&self) -> bool {
        self.head.is_some()
    }
}
