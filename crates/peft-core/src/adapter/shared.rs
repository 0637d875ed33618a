//! One parameter at several places of a model.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Weak};

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param, ParamId, Parameter,
};
use burn::tensor::kind::Basic;
use burn::tensor::{Device, Float, Tensor};

/// What the first handle of a group was changed to, on its way to the others.
struct HandedOn {
    group: Weak<()>,
    /// How often the first handle was changed before.
    generation: u64,
    param: Box<dyn Any>,
}

thread_local! {
    static HANDED_ON: RefCell<Vec<HandedOn>> = RefCell::default();
}

/// Forgets what `group` left behind, and all groups that are gone: of traversals that did not end.
fn forget(group: &Arc<()>) {
    let gone = |handed: &HandedOn| handed.group.strong_count() == 0;
    let same = |handed: &HandedOn| handed.group.as_ptr() == Arc::as_ptr(group);
    HANDED_ON.with_borrow_mut(|all| all.retain(|handed| !gone(handed) && !same(handed)));
}

/// A handle on a parameter that several states of one adapter have in common, trained or frozen: VeRA's
/// projections, VB-LoRA's bank. A `Shared<D, Int>` is one of integers.
///
/// Clones of a `Param` would share the tensor too, but an optimizer steps the first clone and leaves
/// the others behind, as it takes each gradient once. The handles are one parameter to whoever
/// traverses the model: visitors, optimizers, counts and checkpoints see it at the first place, and
/// the other handles follow.
///
/// Give the handles out in the order of the model's layers, one to each state, and all of them: the
/// first is the one that is visited. In a traversal that changes the whole model, as those of optimizers,
/// devices, `train` and `valid` do, the others follow it. In one that changes a part without the first handle
/// (`model.layers[1].clone().no_grad()`), those of the part are changed by themselves, so that the part is
/// right by itself; put back into the model, they follow the first again from the next traversal of the whole on.
#[derive(Clone, Debug)]
pub struct Shared<const D: usize, K: Basic = Float>
where
    Tensor<D, K>: Parameter,
{
    param: Param<Tensor<D, K>>,
    /// The same in all handles of all clones.
    group: Arc<()>,
    /// Of this handle, in the order of traversal, and how many there are.
    index: usize,
    count: usize,
    /// How often this handle followed the first one, or was changed as such.
    generation: u64,
}

impl<const D: usize, K: Basic> Shared<D, K>
where
    Tensor<D, K>: Parameter + 'static,
{
    /// `places` handles on `param`, to be given out in the order of the model's layers.
    pub fn new(param: Param<Tensor<D, K>>, places: usize) -> impl Iterator<Item = Self> {
        let group = Arc::new(());
        (0..places).map(move |index| Self {
            param: param.clone(),
            group: group.clone(),
            index,
            count: places,
            generation: 0,
        })
    }

    /// The value.
    pub fn val(&self) -> Tensor<D, K> {
        self.param.val()
    }

    /// The parameter's id, which all handles have in common.
    pub fn id(&self) -> ParamId {
        self.param.id
    }

    /// The value's shape, of a parameter that has no value yet, too.
    pub fn shape(&self) -> Vec<usize> {
        self.param.lazy_shape().to_vec()
    }

    /// Whether this is the handle that is visited, and saved.
    pub(crate) fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Changes the first handle of a traversal, and hands the result on to the others.
    fn once(self, change: impl FnOnce(Param<Tensor<D, K>>) -> Param<Tensor<D, K>>) -> Self {
        let Self {
            param,
            group,
            index,
            count,
            generation,
        } = self;
        let (param, generation) = if index == 0 {
            forget(&group);
            let param = change(param);
            HANDED_ON.with_borrow_mut(|all| {
                all.push(HandedOn {
                    group: Arc::downgrade(&group),
                    generation,
                    param: Box::new(param.clone()),
                });
            });
            (param, generation + 1)
        } else {
            // What an older state of the model left behind, of which a part was changed, is none to follow.
            let ours = |handed: &&HandedOn| {
                handed.group.as_ptr() == Arc::as_ptr(&group) && handed.generation >= generation
            };
            let handed_on: Option<(Param<Tensor<D, K>>, u64)> = HANDED_ON.with_borrow(|all| {
                let handed = all.iter().find(ours)?;
                Some((handed.param.downcast_ref().cloned()?, handed.generation + 1))
            });
            match handed_on {
                Some(followed) => followed,
                // A part of a model: there is none to follow.
                None => (change(param), generation),
            }
        };
        if index + 1 == count {
            forget(&group);
        }
        Self {
            param,
            group,
            index,
            count,
            generation,
        }
    }
}

impl<const D: usize, K: Basic> Module for Shared<D, K>
where
    Tensor<D, K>: Parameter + 'static,
    Param<Tensor<D, K>>: Module,
{
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

impl<const D: usize, K: Basic> ModuleDisplayDefault for Shared<D, K>
where
    Tensor<D, K>: Parameter + 'static,
    Param<Tensor<D, K>>: Module,
{
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

impl<const D: usize, K: Basic> ModuleDisplay for Shared<D, K>
where
    Tensor<D, K>: Parameter + 'static,
    Param<Tensor<D, K>>: Module,
{
}
