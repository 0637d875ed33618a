//! The one place that touches Burn's reparameterization mechanism and module traversal.
//!
//! Burn attaches one state to a parameter and lets nobody at it but by type and from outside a
//! traversal. [`Stack`] is that state here, and two operations are all that the rest needs:
//! [`gather`] hands out copies of every stack with its path, [`place`] puts stacks in. Both are one
//! traversal. A stack cannot see which visitor traverses it (the call arrives type-erased), so the
//! two meet in a thread-local slot that is open only between `enter_module` and `exit_module` of
//! the stack's own path segment: an ordinary visitor never finds it open.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, Reparameterizer};
use burn::tensor::Tensor;

use crate::adapter::erased::AnyTensor;
use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::stack::Stack;
use crate::layout::key_mapping::KeyMapping;
use crate::nn::site::{SITE, SiteHead};
use crate::nn::tied_head;

/// Path segment between a parameter or site and its adapters.
pub(crate) const SEGMENT: &str = "peft";

/// Containers that Burn and this crate report for a [`SEGMENT`].
const REPARAMETERIZATION: &str = "Reparameterization";

/// Field of a linear layer's matrix, and of a table.
pub(crate) const WEIGHT: &str = "weight";

/// Whether this is where a stack hands itself out.
fn is_stack(segment: &str, container: &str) -> bool {
    segment == SEGMENT && [REPARAMETERIZATION, SITE, tied_head::TIED].contains(&container)
}

enum Slot {
    Closed,
    /// A visitor asks for a copy.
    Asked,
    /// The copy.
    Given(Stack),
    /// A mapper offers what shall be there from now on.
    Offered(Stack),
}

thread_local! {
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot::Closed) };
    static PLACING: Cell<bool> = const { Cell::new(false) };
    static NAMES: RefCell<Option<KeyMapping>> = const { RefCell::new(None) };
    static TIED: RefCell<Option<&'static str>> = const { RefCell::new(None) };
    static UNTIED: RefCell<Option<Tensor<2>>> = const { RefCell::new(None) };
    static SITE_HEAD: RefCell<Option<SiteHead>> = const { RefCell::new(None) };
}

fn swap(slot: Slot) -> Slot {
    SLOT.with(|cell| cell.replace(slot))
}

/// Called by a stack that is visited: true if a copy was asked for, and the visit is thereby over.
pub(crate) fn hand_out(stack: &Stack) -> bool {
    SLOT.with(|cell| {
        let asked = matches!(*cell.borrow(), Slot::Asked);
        if asked {
            cell.replace(Slot::Given(stack.clone()));
        }
        asked
    })
}

/// Called by a stack that is mapped: what shall be in its place while [`place`] is at work, which maps
/// no states; otherwise the stack itself, to be mapped.
pub(crate) fn placed(stack: Stack) -> Result<Stack, Stack> {
    if !PLACING.get() {
        return Err(stack);
    }
    match swap(Slot::Closed) {
        Slot::Offered(replacement) => Ok(replacement),
        other => {
            swap(other);
            Ok(stack)
        }
    }
}

/// States are left alone as long as it lives.
struct Placing;

impl Placing {
    fn begin() -> Self {
        PLACING.set(true);
        Self
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        PLACING.set(false);
    }
}

/// Called by a [`KeyMapping`] that is visited.
pub(crate) fn report_names(names: &KeyMapping) {
    NAMES.with(|cell| *cell.borrow_mut() = Some(names.clone()));
}

/// Called by a site that is visited.
pub(crate) fn report_site(head: &SiteHead) {
    SITE_HEAD.with(|cell| *cell.borrow_mut() = Some(head.clone()));
}

/// Called by a tied head that is visited, and is the table at `table`.
pub(crate) fn report_tied(table: &'static str) {
    TIED.with(|cell| *cell.borrow_mut() = Some(table));
}

/// Called by a tied head that is mapped: the matrix that shall be its own from now on.
pub(crate) fn untied() -> Option<Tensor<2>> {
    UNTIED.with(|cell| cell.borrow_mut().take())
}

/// A parameter as found by [`gather`].
#[derive(Clone, Debug)]
pub(crate) struct FoundParam {
    pub(crate) path: Vec<String>,
    /// `Linear`, `LayerNorm`, …: the struct that holds the parameter.
    pub(crate) container: String,
    /// The stored value, without adapters.
    pub(crate) base: AnyTensor,
    pub(crate) trainable: Trainable,
    pub(crate) stack: Option<Stack>,
    /// Another reparameterization than ours.
    pub(crate) foreign: Option<String>,
    /// Set where it is no parameter but the weight of a head that is a table.
    pub(crate) tied: Option<Tie>,
}

/// Which table is a tied head's weight, transposed.
#[derive(Clone, Debug)]
pub(crate) struct Tie {
    /// Field path of the table's parameter.
    pub(crate) table: String,
    /// The quantized table, as a linear layer has it.
    pub(crate) quantized: Option<QuantizedBase>,
}

/// A head that is a table, as found by [`gather`].
#[derive(Debug)]
struct FoundTied {
    /// Of the weight that it would have.
    path: Vec<String>,
    table: String,
    stack: Stack,
    /// How many parameters come before it.
    before: usize,
}

/// A site as found by [`gather`].
#[derive(Clone, Debug)]
pub(crate) struct FoundSite {
    pub(crate) path: Vec<String>,
    pub(crate) head: SiteHead,
    pub(crate) stack: Stack,
}

/// Everything that adapters care about in a model, in the order of traversal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) params: Vec<FoundParam>,
    pub(crate) sites: Vec<FoundSite>,
    /// Name maps, with the path of the struct that holds them.
    pub(crate) names: Vec<(Vec<String>, KeyMapping)>,
}

#[derive(Default)]
struct Gather {
    path: Vec<(String, String)>,
    found: Found,
    tied: Vec<FoundTied>,
    /// Inside a foreign reparameterization: its parameters are none of the model's.
    foreign: usize,
}

impl Gather {
    fn names(&self) -> Vec<String> {
        self.path.iter().map(|(name, _)| name.clone()).collect()
    }

    /// What was found, with the weights of tied heads where a head's own would be.
    fn finish(self) -> Found {
        let mut found = self.found;
        for head in self.tied.into_iter().rev() {
            let is_table = |param: &&FoundParam| param.path.join(".") == head.table;
            let Some(table) = found.params.iter().find(is_table) else {
                continue;
            };
            let quantized = table
                .stack
                .as_ref()
                .and_then(|stack| stack.quantized.clone());
            let weight = FoundParam {
                path: head.path,
                container: "Linear".into(),
                base: AnyTensor::new(table.base.get::<2>().transpose()),
                trainable: Trainable::never(),
                stack: (!head.stack.is_empty()).then_some(head.stack),
                foreign: None,
                tied: Some(Tie {
                    table: head.table,
                    quantized: quantized.map(QuantizedBase::of_linear),
                }),
            };
            found.params.insert(head.before, weight);
        }
        found
    }
}

impl ModuleVisitor for Gather {
    fn enter_module(&mut self, name: &str, container: &str) {
        if is_stack(name, container) {
            swap(Slot::Asked);
        } else if container == REPARAMETERIZATION {
            self.foreign += 1;
            if let Some(param) = self.found.params.last_mut() {
                param.foreign = Some(name.to_string());
            }
        }
        self.path.push((name.to_string(), container.to_string()));
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.path.pop();
        if name == SEGMENT && container == REPARAMETERIZATION {
            if let (Slot::Given(stack), Some(param)) =
                (swap(Slot::Closed), self.found.params.last_mut())
            {
                param.stack = Some(stack);
            }
        } else if name == SEGMENT && container == SITE {
            let head = SITE_HEAD.with(|cell| cell.borrow_mut().take());
            if let (Slot::Given(stack), Some(head)) = (swap(Slot::Closed), head) {
                let path = self.names();
                self.found.sites.push(FoundSite { path, head, stack });
            }
        } else if name == SEGMENT && container == tied_head::TIED {
            let table = TIED.with(|cell| cell.borrow_mut().take());
            if let (Slot::Given(stack), Some(table)) = (swap(Slot::Closed), table) {
                let mut path = self.names();
                let mut of_table = path[..path.len() - 1].to_vec();
                of_table.push(format!("{table}.weight"));
                path.push(WEIGHT.into());
                self.tied.push(FoundTied {
                    path,
                    table: of_table.join("."),
                    stack,
                    before: self.found.params.len(),
                });
            }
        } else if container == REPARAMETERIZATION {
            self.foreign -= 1;
        }
        if let Some(names) = NAMES.with(|cell| cell.borrow_mut().take()) {
            // The field that holds the names was just left: what remains is its struct's path.
            self.found.names.push((self.names(), names));
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.foreign > 0 {
            return;
        }
        let container = self
            .path
            .last()
            .map(|(_, container)| {
                container
                    .rsplit(':')
                    .next()
                    .unwrap_or(container)
                    .to_string()
            })
            .unwrap_or_default();
        self.found.params.push(FoundParam {
            path: self.names(),
            container,
            base: AnyTensor::new(param.base()),
            trainable: Trainable::of(param),
            stack: None,
            foreign: None,
            tied: None,
        });
    }
}

/// Whether a parameter is set to be trained, for those who ask.
#[derive(Clone)]
pub(crate) struct Trainable(Arc<dyn Fn() -> bool + Send + Sync>);

impl Trainable {
    fn of<const D: usize>(param: &Param<Tensor<D>>) -> Self {
        let param = param.clone();
        Self(Arc::new(move || is_trainable(&param)))
    }

    /// Of what is no parameter itself.
    fn never() -> Self {
        Self(Arc::new(|| false))
    }

    pub(crate) fn get(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Trainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trainable")
    }
}

/// Whether the parameter is set to be trained, also where its device has no autodiff right now.
///
/// There Burn says it only of what is put to training. A placeholder of one element is: what that leaves in
/// the autodiff graph goes with a backward pass, and would stay for ever without one.
pub(crate) fn is_trainable<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    if param.is_autodiff() {
        return param.is_require_grad();
    }
    let (id, value, mapper) = param.clone().consume();
    let placeholder = Tensor::<D>::zeros([1; D], &value.device());
    let placeholder = Param::from_mapped_value(id, placeholder, mapper)
        .train()
        .val();
    let trained = placeholder.is_require_grad();
    if trained {
        let _ = placeholder.sum().backward();
    }
    trained
}

/// Empties what visitors and modules meet in: ordinary visitors leave reports behind that nobody took, and a
/// panic in the middle of a traversal leaves what was on its way.
fn forget() {
    swap(Slot::Closed);
    NAMES.with(|cell| cell.borrow_mut().take());
    TIED.with(|cell| cell.borrow_mut().take());
    UNTIED.with(|cell| cell.borrow_mut().take());
    SITE_HEAD.with(|cell| cell.borrow_mut().take());
}

/// Nothing is on its way before and after it, whether a traversal ends or panics.
struct Clean;

impl Clean {
    fn begin() -> Self {
        forget();
        Self
    }
}

impl Drop for Clean {
    fn drop(&mut self) {
        forget();
    }
}

/// Copies of all that adapters care about in `module`.
pub(crate) fn gather<M: Module>(module: &M) -> Found {
    let _clean = Clean::begin();
    let mut gather = Gather::default();
    module.visit(&mut gather);
    gather.finish()
}

/// What [`place`] shall do.
#[derive(Default)]
pub(crate) struct Edits {
    /// Stacks by path (dots between the segments) of a parameter or site.
    pub(crate) stacks: HashMap<String, Stack>,
    /// Whether a base parameter shall require gradients, by path; others stay as they are.
    pub(crate) trainable: HashMap<String, bool>,
    /// Weights `[d, vocabulary]` that tied heads get for their own, by path of the weight.
    pub(crate) untied: HashMap<String, AnyTensor>,
}

struct Attach<'a>(&'a mut Edits);

impl Reparameterizer for Attach<'_> {
    type Reparam = Stack;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Stack>) {
        let param = match self.0.trainable.get(path) {
            // Also where the tensor says so already: on a device without autodiff it always says
            // no, and what counts is what `train()` will restore.
            Some(&trainable) => param.set_require_grad(trainable),
            None => param,
        };
        (param, self.0.stacks.remove(path))
    }
}

/// Offers stacks to the places that have one already.
struct Replace<'a> {
    path: Vec<String>,
    edits: &'a mut Edits,
}

impl ModuleMapper for Replace<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        if is_stack(name, container) {
            let mut path = self.path.join(".");
            if container == tied_head::TIED {
                path = format!("{path}.{WEIGHT}");
                let own = self.edits.untied.remove(&path);
                UNTIED.with(|cell| *cell.borrow_mut() = own.map(|own| own.get()));
            }
            if let Some(stack) = self.edits.stacks.remove(&path) {
                swap(Slot::Offered(stack));
            }
        }
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
        swap(Slot::Closed);
    }
}

/// A copy of `module` with `edits` made. Stacks for places that do not exist are ignored.
pub(crate) fn place<M: Module>(module: &M, mut edits: Edits) -> M {
    let _clean = Clean::begin();
    let _placing = Placing::begin();
    let module = module.clone().map(&mut Replace {
        path: Vec::new(),
        edits: &mut edits,
    });
    // Whatever is left belongs to parameters without a stack.
    module.apply_reparameterization(Attach(&mut edits))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::module::{Devices, Module};
    use burn::tensor::Device;

    use super::*;

    /// A module that panics where an adapter would be.
    #[derive(Clone, Debug)]
    struct Broken;

    impl Module for Broken {
        fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
            visitor.enter_module(SEGMENT, REPARAMETERIZATION);
            panic!("in the middle");
        }
        fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
            mapper.enter_module(SEGMENT, tied_head::TIED);
            panic!("in the middle");
        }
        fn collect_devices(&self, devices: Devices) -> Devices {
            devices
        }
        fn to_device(self, _device: &Device) -> Self {
            self
        }
        fn fork(self, _device: &Device) -> Self {
            self
        }
        fn train(self) -> Self {
            self
        }
        fn valid(&self) -> Self {
            self.clone()
        }
        fn materialize(self) -> Self {
            self
        }
    }

    fn is_clean() -> bool {
        let closed = SLOT.with(|cell| matches!(*cell.borrow(), Slot::Closed));
        closed && UNTIED.with(|cell| cell.borrow().is_none()) && !PLACING.get()
    }

    #[test]
    fn a_panic_in_a_traversal_leaves_nothing_behind() {
        let gathered = catch_unwind(AssertUnwindSafe(|| gather(&Broken)));
        assert!(gathered.is_err() && is_clean());
        let table = AnyTensor::new(Tensor::<2>::zeros([1, 1], &Device::default()));
        let edits = Edits {
            untied: HashMap::from([(String::new(), table)]),
            ..Edits::default()
        };
        let placed = catch_unwind(AssertUnwindSafe(|| place(&Broken, edits)));
        assert!(placed.is_err() && is_clean());
    }
}
