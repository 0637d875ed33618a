//! A copy of a parameter, trained in its place: `modules_to_save`, biases, and parameters that a method selects.

use burn::module::{Module, Param, ParamId};
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor, TensorData};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::any_tensor::{AnyTensor, with_rank};
use crate::adapter::base::{BaseEmbedding, BaseLinear};
use crate::adapter::checkpoint_key::CheckpointKey;
use crate::adapter::contract::{Adapter, WeightAdapter};
use crate::adapter::role::Role;
use crate::layout::model_layout::LayoutParam;
use crate::upstream::BATCHES_SEEN;

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
    /// The layer's running statistics, by the names that upstream has for its copies of them.
    #[module(skip)]
    beside: Vec<(String, AnyTensor)>,
}

/// A layer's running statistics under the names that they have beside `key`, the name of one of its parameters.
fn beside(param: &LayoutParam, key: &str) -> Vec<(String, AnyTensor)> {
    let module = key.rsplit_once('.').map_or("", |(module, _)| module);
    let named = |(field, value): &(String, AnyTensor)| (format!("{module}.{field}"), value.clone());
    param.beside.iter().map(named).collect()
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
                beside: beside(param, &param.name),
            };
            AnyAdapter::weight(copy, Role::SavedModule)
        })
    }
}

impl ModuleToSave<1, false> {
    /// A copy of `param`, of whatever rank it is, as the method's own; `head` is the weight of a tied head that follows
    /// it.
    pub(crate) fn of_param(
        param: &LayoutParam,
        transposed: bool,
        head: Option<&LayoutParam>,
    ) -> AnyAdapter {
        with_rank!(param.shape().len(), R => {
            let copy = ModuleToSave::<R, false> {
                value: Param::from_tensor(param.value::<R>().detach()),
                key: param.name.clone(),
                transposed,
                head: head.map(|head| head.name.clone()),
                beside: beside(param, &param.name),
            };
            AnyAdapter::weight(copy, Role::Method)
        })
    }
}

impl ModuleToSave<1, false> {
    /// A copy of a bias, under another key than its name where a method says so.
    pub(crate) fn of_bias(param: &LayoutParam, key: Option<String>) -> Self {
        let key = key.unwrap_or_else(|| param.name.clone());
        Self {
            value: Param::from_tensor(param.value::<1>().detach()),
            beside: beside(param, &key),
            key,
            transposed: false,
            head: None,
        }
    }
}

impl<const R: usize, const OF_MODULE: bool> Adapter for ModuleToSave<R, OF_MODULE> {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let spec = CheckpointKey::named("value", &self.key);
        let spec = match &self.head {
            // Upstream writes a saved table for the head, too.
            Some(head) if OF_MODULE => spec.twin(CheckpointKey::named("value", head)),
            _ => spec,
        };
        let mut keys = vec![if self.transposed {
            spec.transposed()
        } else {
            spec
        }];
        let statistics = self.beside.iter();
        keys.extend(statistics.map(|(name, value)| CheckpointKey::constant(name, value.to_data())));
        // Upstream's counter, which Burn does not have.
        if let Some((module, _)) = self
            .beside
            .first()
            .and_then(|(name, _)| name.rsplit_once('.'))
        {
            let none = TensorData::new(vec![0_i64], Vec::<usize>::new());
            let name = format!("{module}.{BATCHES_SEEN}");
            keys.push(CheckpointKey::any_constant(&name, none));
        }
        keys
    }
}

impl<const R: usize, const OF_MODULE: bool> ModuleToSave<R, OF_MODULE> {
    /// The copy, whose rank is R: no operation of the backend, which would bring a view into another order.
    fn copy<const D: usize>(&self) -> Tensor<D> {
        AnyTensor::new(self.value.val()).get()
    }
}

impl<const R: usize, const OF_MODULE: bool> WeightAdapter for ModuleToSave<R, OF_MODULE> {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        self.copy()
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // What lies below is not looked at: a quantized base stays quantized.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        peft_ops::linear(input, self.copy::<2>(), base.bias(), None)
    }

    fn embedding(&self, ids: Tensor<2, Int>, _base: &dyn BaseEmbedding) -> Tensor<3> {
        embedding(self.copy(), ids)
    }

    fn keeps_weight(&self) -> bool {
        false
    }

    fn affects_tied_head(&self) -> bool {
        self.head.is_some()
    }
}
