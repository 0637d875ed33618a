//! One parameter at several places of a model.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, ParamId,
};
use burn::tensor::{Device, Tensor};

/// What the first handle of each group was changed to, on its way to the others, with how often the
/// group was changed before.
type HandedOn = RefCell<HashMap<ParamId, (u64, Box<dyn Any>)>>;

thread_local! {
    static HANDED_ON: HandedOn = RefCell::default();
}

/// A handle on a parameter that several states of one adapter have in common, trained or frozen: VeRA's
/// projections, VB-LoRA's bank.
///
/// Clones of a `Param` would share the tensor too, but an optimizer steps the first clone and leaves
/// the others behind, as it takes each gradient once. The handles are one parameter to whoever
/// traverses the model: visitors, optimizers, counts and checkpoints see it at the first place, and
/// the other handles follow.
///
/// Give the handles out in the order of the model's layers, one to each state, and all of them: the
/// first is the one that is visited. A traversal that changes a model must go over the whole of it, as
/// those of optimizers, devices, `train` and `valid` do; otherwise it panics rather than let the
/// handles part.
#[derive(Clone, Debug)]
pub struct Shared<const D: usize> {
    param: Param<Tensor<D>>,
    /// The same in all handles of all clones.
    group: ParamId,
    /// Of this handle, in the order of traversal, and how many there are.
    index: usize,
    count: usize,
    /// How often this handle was changed; all handles of one model agree.
    generation: u64,
}

impl<const D: usize> Shared<D> {
    /// `places` handles on `param`, to be given out in the order of the model's layers.
    pub fn new(param: Param<Tensor<D>>, places: usize) -> impl Iterator<Item = Self> {
        let group = ParamId::new();
        (0..places).map(move |index| Self {
            param: param.clone(),
            group,
            index,
            count: places,
            generation: 0,
        })
    }

    /// The value.
    pub fn val(&self) -> Tensor<D> {
        self.param.val()
    }

    /// Whether this is the handle that is visited, and saved.
    pub fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Changes the first handle of a traversal, and hands the result on to the others.
    fn once(self, change: impl FnOnce(Param<Tensor<D>>) -> Param<Tensor<D>>) -> Self {
        let Self {
            param,
            group,
            index,
            count,
            generation,
        } = self;
        let handed_on = |cell: &HandedOn| {
            let map = cell.borrow();
            let (known, value) = map.get(&group)?;
            let value = value.downcast_ref::<Param<Tensor<D>>>()?;
            (*known == generation).then(|| value.clone())
        };
        let param = if index == 0 {
            let param = change(param);
            HANDED_ON.with_borrow_mut(|map| {
                map.insert(group, (generation, Box::new(param.clone())));
            });
            param
        } else {
            HANDED_ON.with(handed_on).expect(
                "a model with shared parameters is changed as a whole, in the order of its layers",
            )
        };
        if index + 1 == count {
            HANDED_ON.with_borrow_mut(|map| map.remove(&group));
        }
        Self {
            param,
            group,
            index,
            count,
            generation: generation + 1,
        }
    }
}

impl<const D: usize> Module for Shared<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if self.is_first() {
            self.param.visit(visitor);
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        self.once(|param| Module::map(param, mapper))
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.param.collect_devices(devices)
    }

    fn to_device(self, device: &Device) -> Self {
        self.once(|param| param.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.once(|param| param.fork(device))
    }

    fn train(self) -> Self {
        self.once(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().once(|param| param.valid())
    }

    fn materialize(self) -> Self {
        self
    }
}

impl<const D: usize> ModuleDisplayDefault for Shared<D> {
    fn content(&self, content: Content) -> Option<Content> {
        let text = format!(
            "Shared {{rank: {D}, shape: {:?}, place {} of {}}}",
            self.param.lazy_shape().as_slice(),
            self.index + 1,
            self.count
        );
        content.add_formatted(&text).optional()
    }
}

impl<const D: usize> ModuleDisplay for Shared<D> {}
