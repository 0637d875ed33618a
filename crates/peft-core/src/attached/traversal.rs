//! The one place that touches Burn's reparameterization mechanism and module traversal.
//!
//! Burn attaches one state to a parameter and lets nobody at it but by type and from outside a
//! traversal. [`Stack`] is that state here, and two operations are all that the rest needs:
//! [`gather`] hands out copies of every stack with its path, [`place`] puts stacks in. Both are one
//! traversal. A stack cannot see which visitor traverses it (the call arrives type-erased), so the
//! two meet in a [`slot`] of the thread.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, Reparameterizer};
use burn::tensor::Tensor;

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::trainable::Trainable;
use crate::attached::stack::Stack;
use crate::attached::view::{Attached, Foreign};
use crate::layout::key_mapping::KeyMapping;
use crate::layout::model_layout::Layout;
use crate::layout::scan::{Scan, ScannedParam, WEIGHT};
use crate::layout::site_kind::SiteHead;
use crate::slot::{self, Mode, REPARAMETERIZATION, SITE, TIED};

/// What a tied head reports: which table it is, by the path of fields from the struct that holds the head.
pub(crate) struct TableName(pub(crate) &'static str);

/// What a tied head is offered: a weight `[d, vocabulary]` of its own.
pub(crate) struct OwnWeight(pub(crate) Tensor<2>);

#[derive(Default)]
struct Gather {
    path: Vec<(String, String)>,
    scan: Scan,
    stacks: HashMap<String, Stack>,
    foreign: Option<Foreign>,
    /// Inside a foreign reparameterization: its parameters are none of the model's.
    inside_foreign: usize,
}

impl Gather {
    fn names(&self) -> Vec<String> {
        self.path.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Takes what the adapters' place at the current path has reported.
    fn take(&mut self, container: &str) {
        let Some(stack) = slot::reported::<Stack>() else {
            return;
        };
        let path = self.names();
        match container {
            SITE => {
                if let Some(head) = slot::reported::<SiteHead>() {
                    self.stacks.insert(path.join("."), stack);
                    self.scan.sites.push((path, head));
                }
            }
            TIED => {
                if let Some(TableName(table)) = slot::reported() {
                    let weight = self.scan.push_head(path, table);
                    if !stack.is_empty() {
                        self.stacks.insert(weight, stack);
                    }
                }
            }
            _ => {
                if let Some(param) = self.scan.params.last_mut() {
                    param.quantized.clone_from(&stack.quantized);
                    self.stacks.insert(param.path.join("."), stack);
                }
            }
        }
    }
}

impl ModuleVisitor for Gather {
    fn enter_module(&mut self, name: &str, container: &str) {
        if container == REPARAMETERIZATION && !slot::leads_to_adapters(name, container) {
            self.inside_foreign += 1;
            if let (None, Some(param)) = (&self.foreign, self.scan.params.last()) {
                self.foreign = Some(Foreign {
                    parameter: param.path.join("."),
                    found: name.to_string(),
                });
            }
        }
        self.path.push((name.to_string(), container.to_string()));
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.path.pop();
        if slot::leads_to_adapters(name, container) {
            self.take(container);
        } else if container == REPARAMETERIZATION {
            self.inside_foreign -= 1;
        }
        if let Some(names) = slot::reported::<KeyMapping>() {
            // The field that holds the names was just left: what remains is its struct's path.
            self.scan.names.push((self.names(), names));
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.inside_foreign > 0 {
            return;
        }
        let container = self.path.last().map(|(_, container)| {
            let name = container.rsplit(':').next().unwrap_or(container);
            name.to_string()
        });
        self.scan.params.push(ScannedParam {
            path: self.names(),
            container: container.unwrap_or_default(),
            base: AnyTensor::new(param.base()),
            quantized: None,
            trainable: Trainable::of(param),
            table: None,
        });
    }
}

/// Copies of all that adapters care about in `module`.
pub(crate) fn gather<M: Module>(module: &M) -> Attached {
    let _open = slot::Open::to(Mode::Reading);
    let mut gather = Gather::default();
    module.visit(&mut gather);
    Attached::new(Layout::new(gather.scan), gather.stacks, gather.foreign)
}

/// What [`place_with`] shall do.
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
        (param, self.0.stacks.remove(path).map(Stack::placed))
    }
}

/// Offers stacks to the places that have one already.
struct Replace<'a> {
    path: Vec<String>,
    edits: &'a mut Edits,
}

impl ModuleMapper for Replace<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        if slot::leads_to_adapters(name, container) {
            let mut path = self.path.join(".");
            if container == TIED {
                path = format!("{path}.{WEIGHT}");
                if let Some(own) = self.edits.untied.remove(&path) {
                    slot::offer(OwnWeight(own.get()));
                }
            }
            if let Some(stack) = self.edits.stacks.remove(&path) {
                slot::offer(stack);
            }
        }
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
        slot::clear();
    }
}

/// A copy of `module` with `edits` made. Stacks for places that do not exist are ignored.
pub(crate) fn place_with<M: Module>(module: &M, mut edits: Edits) -> M {
    let _open = slot::Open::to(Mode::Writing);
    let module = module.clone().map(&mut Replace {
        path: Vec::new(),
        edits: &mut edits,
    });
    // Whatever is left belongs to parameters without a stack.
    module.apply_reparameterization(Attach(&mut edits))
}

/// A copy of `module` with these stacks, by path of their parameter or site, in the place of what is there.
pub(crate) fn place<M: Module>(module: &M, stacks: HashMap<String, Stack>) -> M {
    let edits = Edits {
        stacks,
        ..Edits::default()
    };
    place_with(module, edits)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::module::{Devices, Module};
    use burn::tensor::Device;

    use super::*;
    use crate::slot::SEGMENT;

    /// A module that panics where an adapter would be.
    #[derive(Clone, Debug)]
    struct Broken;

    impl Module for Broken {
        fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
            visitor.enter_module(SEGMENT, REPARAMETERIZATION);
            slot::report(Stack::default);
            panic!("in the middle");
        }
        fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
            mapper.enter_module(SEGMENT, TIED);
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

    #[test]
    fn a_panic_in_a_traversal_leaves_nothing_behind() {
        let gathered = catch_unwind(AssertUnwindSafe(|| gather(&Broken)));
        assert!(gathered.is_err() && slot::is_closed());
        let table = AnyTensor::new(Tensor::<2>::zeros([1, 1], &Device::default()));
        let edits = Edits {
            untied: HashMap::from([(String::new(), table)]),
            ..Edits::default()
        };
        let placed = catch_unwind(AssertUnwindSafe(|| place_with(&Broken, edits)));
        assert!(placed.is_err() && slot::is_closed());
    }
}
