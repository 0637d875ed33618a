//! Training that is dense at first and sparse afterwards: the elements that changed most go on.

use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData};
use peft_core::checkpoint::transposed;
use peft_core::method::{
    Adapter, BaseEmbedding, BaseLinear, CheckpointKey, Init, Layout, LayoutParam, MethodHooks,
    MethodInfo, Plan, SparseDelta, States, WeightAdapter,
};
use peft_core::{Error, Result};

use crate::elements::{DENSE, Place, integers, is_stored, stored_count};

/// `W' = W + D` of one parameter while training is dense, and `W' = W + S` afterwards, where S is 0 but at k places.
#[derive(Module, Debug)]
pub struct DenseFirst {
    /// D, flattened as Burn has the parameter, `[n]`.
    pub dense: Option<Param<Tensor<1>>>,
    /// S. Neither is there where the parameter is not among those that go on.
    pub sparse: Option<SparseDelta>,
    #[module(skip)]
    place: Place,
}

impl Adapter for DenseFirst {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut keys = Vec::new();
        if self.dense.is_some() {
            let key = format!("{}.{DENSE}", self.place.field());
            keys.push(CheckpointKey::layer("dense", &key));
        }
        if let Some(sparse) = &self.sparse {
            let own = sparse.tensors().into_iter();
            keys.extend(own.map(|key| key.within("sparse")));
        }
        keys
    }
}

impl WeightAdapter for DenseFirst {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let weight = match &self.dense {
            Some(dense) => {
                let shape = weight.shape();
                weight + dense.val().reshape(shape)
            }
            None => weight,
        };
        match &self.sparse {
            Some(sparse) => sparse.compose(weight),
            None => weight,
        }
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        match (&self.dense, &self.sparse) {
            (None, Some(sparse)) => sparse.linear(input, base),
            (None, None) => base.forward(input),
            (Some(_), _) => {
                let weight = self.compose(base.weight());
                peft_core::ops::linear(input, weight, base.bias(), None)
            }
        }
    }

    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        match (&self.dense, &self.sparse) {
            (None, Some(sparse)) => sparse.embedding(ids, base),
            (None, None) => base.forward(ids),
            (Some(_), _) => burn::tensor::module::embedding(self.compose(base.weight()), ids),
        }
    }

    fn affects_tied_head(&self) -> bool {
        self.place.is_head()
    }
}

impl DenseFirst {
    /// D in upstream's order, on the host.
    fn changes(&self) -> Option<Vec<f32>> {
        let dense = self.dense.as_ref()?.val().into_data();
        Some(self.place.in_upstreams_order(dense.iter::<f32>().collect()))
    }

    /// From here on sparse: changes at `places`, in upstream's order, that start at `values`; at 0 without those.
    fn go_on(&mut self, places: Vec<usize>, values: Option<Vec<f32>>) {
        let Some(dense) = self.dense.take() else {
            return;
        };
        let dense = dense.val();
        self.sparse = self.place.started(places, values, &dense);
    }
}

/// Plans dense changes of the parameters; while a file is loaded, what that has: dense changes of these, or sparse ones of
/// any.
pub(crate) fn plan_dense(params: &[&LayoutParam], layout: &Layout, plan: &mut Plan) {
    if plan.is_new() || is_stored(params, DENSE, layout, plan) {
        for param in params {
            let device = param.device();
            let dense = (plan.init()).zeros([param.elements()], (&device, param.dtype()));
            let state = DenseFirst {
                dense: Some(dense),
                sparse: None,
                place: Place::of(layout, param),
            };
            plan.adapt_weight(param, state);
        }
        return;
    }
    for param in layout.params.iter().filter(|param| !param.is_tied()) {
        let Some(count) = stored_count(param, layout, plan) else {
            continue;
        };
        let place = Place::of(layout, param);
        let state = DenseFirst {
            dense: None,
            sparse: Some(place.stored(param, count, plan)),
            place,
        };
        plan.adapt_weight(param, state);
    }
}

/// Which elements go on, by state: places in upstream's order, from what has changed of each.
pub(crate) trait Choice: std::fmt::Debug + Send {
    /// `changes` are those of the states at `names`, the upstream names of their layers.
    fn choose(&self, names: &[&str], places: &[Place], changes: &[Vec<f32>]) -> Vec<Vec<usize>>;
}

/// Turns dense training into sparse training after a step.
#[derive(Debug)]
pub(crate) struct Switch<C> {
    /// The last step of the dense training.
    after: usize,
    choice: C,
    /// Whether what goes on starts at the base's values again.
    rewind: bool,
}

impl<C: Choice + 'static> Switch<C> {
    /// After a share of the `steps`; none where nothing is dense any more.
    pub(crate) fn schedule(
        (field, share): (&'static str, f64),
        steps: usize,
        states: &States,
        (choice, rewind): (C, bool),
        info: &MethodInfo,
    ) -> Result<Option<Box<dyn MethodHooks>>> {
        if states
            .of::<DenseFirst>()
            .all(|(_, state)| state.dense.is_none())
        {
            return Ok(None);
        }
        let after = (steps as f64 * share).round() as usize;
        if after == 0 || after >= steps {
            let expected = format!("a share that leaves some of {steps} steps to each phase");
            return Err(Error::config(info.title, field, share, expected));
        }
        Ok(Some(Box::new(Self {
            after,
            choice,
            rewind,
        })))
    }
}

impl<C: Choice> MethodHooks for Switch<C> {
    fn after_step(&mut self, step: usize, states: &mut States) {
        if step != self.after {
            return;
        }
        let mut names = Vec::new();
        let (mut places, mut changes) = (Vec::new(), Vec::new());
        for (name, state) in states.of::<DenseFirst>() {
            if let Some(changed) = state.changes() {
                names.push(name);
                places.push(state.place.clone());
                changes.push(changed);
            }
        }
        let chosen = self.choice.choose(&names, &places, &changes);
        let mut chosen = chosen.into_iter().zip(changes);
        let rewind = self.rewind;
        states.edit::<DenseFirst>(|_, state| {
            if state.dense.is_none() {
                return;
            }
            if let Some((places, changes)) = chosen.next() {
                let values = || places.iter().map(|place| changes[*place]).collect();
                let values = (!rewind).then(values);
                state.go_on(places, values);
            }
        });
    }
}

impl Place {
    /// Numbers of the parameter in upstream's order, from Burn's.
    pub(crate) fn in_upstreams_order(&self, values: Vec<f32>) -> Vec<f32> {
        match (self.is_transposed(), self.shape()) {
            (true, &[rows, columns]) => transposed(&values, [rows, columns]),
            _ => values,
        }
    }

    /// A sparse change of `count` elements, which a file gives.
    pub(crate) fn stored(&self, param: &LayoutParam, count: usize, plan: &mut Plan) -> SparseDelta {
        let (device, init) = (param.device(), plan.init());
        let values = init.zeros([count], (&device, param.dtype()));
        let indices = init.integers([1, count], (&device, DType::I32), |_| Vec::new());
        self.sparse(values, indices)
    }

    /// A sparse change of trained values, as `like` has them, that start at `values` or at 0; none of no places.
    pub(crate) fn started(
        &self,
        places: Vec<usize>,
        values: Option<Vec<f32>>,
        like: &Tensor<1>,
    ) -> Option<SparseDelta> {
        let (device, dtype, count) = (like.device(), like.dtype(), places.len());
        if count == 0 {
            return None;
        }
        let values = values.unwrap_or_else(|| vec![0.0; count]);
        let values = TensorData::new(values, [count]);
        let values = Param::from_tensor(Tensor::from_data(values, (&device, dtype)));
        let like = (&device, DType::I32);
        let indices = Init::new(0).integers([1, count], like, |_| integers(places));
        Some(self.sparse(values, indices))
    }
}
