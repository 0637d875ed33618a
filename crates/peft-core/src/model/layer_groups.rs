//! A model's trained parameters by depth: rates that fall from layer to layer, and layers that begin to train one after
//! the other.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;

use crate::attached::stack::INACTIVE_ADAPTER;
use crate::attached::traversal;
use crate::error::{Error, Result};
use crate::layout::model_layout::{Layout, block};

/// What error messages call this, in the place of a method.
const TITLE: &str = "Layer groups";

/// One group: layers of one depth.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerGroup {
    /// The block's upstream name, as in `encoder.layer.3`; in front of all blocks, between them and behind them the
    /// names of the modules that train.
    pub name: String,
    /// Its trained parameters.
    pub params: Vec<ParamId>,
    /// Their elements.
    pub elements: usize,
}

/// A model's trained parameters in groups by depth: the head and what else is behind the blocks, each block, and what is
/// in front of them. Groups in which nothing trains are left out.
///
/// It serves methods of Howard and Ruder 2018, *Universal Language Model Fine-tuning for Text Classification*:
/// [`rates`](Self::rates) is discriminative fine-tuning (section 3.2), and [`unfrozen`](Self::unfrozen) gradual
/// unfreezing (section 3.3). Both go with every method that trains something in the layers: full and partial
/// fine-tuning, biases, `LoRA`, bottleneck adapters.
///
/// Depth is the order in which the model's fields are declared; blocks are told by numbers in names
/// ([`Layer::block`](crate::method::Layer::block)). A parameter that adapters of several layers share is in the group of
/// the first of them. Adapters that are not active have no part.
///
/// ```
/// # use burn::lr_scheduler::{constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler};
/// # use burn::optim::{GradientsParams, ModuleOptimizer};
/// # use burn::tensor::Tensor;
/// # use peft_core::{LayerGroups, PeftModule, Result};
/// # fn train<M: PeftModule>(
/// #     mut model: M,
/// #     mut optimizer: ModuleOptimizer,
/// #     loss_of: impl Fn(&M) -> Tensor<1>,
/// # ) -> Result<M> {
/// # let (epochs, steps, rate) = (4, 100, 1e-3);
/// let groups = LayerGroups::new(&model);
/// let mut rates = ModuleLrScheduler::new(ConstantLr::from(rate));
/// for (group, factor) in groups.rates(2.6)? {
///     rates = rates.with_group(group, ConstantLr::from(rate * factor));
/// }
/// for epoch in 0..epochs {
///     for _ in 0..steps {
///         // The head alone in the first epoch, and one block more in each of the next ones.
///         let part = groups.unfrozen(&model, epoch + 1);
///         let gradients = GradientsParams::from_grads(loss_of(&part).backward(), &part);
///         model = optimizer.step(rates.step(), model, gradients);
///     }
/// }
/// # Ok(model) }
/// ```
#[derive(Clone, Debug)]
pub struct LayerGroups {
    /// From the input to the output.
    groups: Vec<LayerGroup>,
}

impl LayerGroups {
    /// The groups of what trains in `model`.
    pub fn new<M: Module>(model: &M) -> Self {
        let layout = traversal::gather(model).layout;
        let mut find = Find {
            places: places(&layout),
            path: Vec::new(),
            inactive: 0,
            block: None,
            groups: Vec::new(),
        };
        model.visit(&mut find);
        let mut groups = find.groups;
        groups.retain(|group| !group.params.is_empty());
        Self { groups }
    }

    /// The groups, from the input to the output.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    /// The factor of each group's learning rate: 1 for the group nearest to the output, and for each of the others that of
    /// the group above it divided by `divisor`. The paper's is 2.6.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] unless the divisor is a finite number above 0.
    pub fn rates(&self, divisor: f64) -> Result<Vec<(ParamGroup, f64)>> {
        if !(divisor.is_finite() && divisor > 0.0) {
            let expected = "a finite number above 0";
            return Err(Error::config(TITLE, "divisor", divisor, expected));
        }
        let mut factor = 1.0;
        let groups = self.groups.iter().rev().map(|group| {
            let ids = ParamGroup::from_ids(group.params.clone());
            let own = (ids, factor);
            factor /= divisor;
            own
        });
        Ok(groups.collect())
    }

    /// A copy of the model in which only the `count` groups nearest to the output train: for the forward pass of a step. All
    /// train with `count` as large as the number of groups, or larger.
    ///
    /// The copy shares tensors and ids with the model, so that an optimizer steps the model with the copy's gradients.
    /// Below the lowest group that trains nothing is kept for the backward pass, and nothing is computed in it.
    #[must_use]
    pub fn unfrozen<M: Module>(&self, model: &M, count: usize) -> M {
        let frozen = self.groups.len().saturating_sub(count);
        if frozen == 0 {
            return model.clone();
        }
        let frozen = self.groups[..frozen].iter();
        let frozen = frozen.flat_map(|group| group.params.iter().copied());
        model.clone().map(&mut Freeze(frozen.collect()))
    }
}

/// Prints a line for each group, from the output to the input.
impl std::fmt::Display for LayerGroups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.groups.iter().map(|group| group.name.len()).max();
        let width = width.unwrap_or(0);
        for group in self.groups.iter().rev() {
            writeln!(f, "{:width$}  {} trained", group.name, group.elements)?;
        }
        Ok(())
    }
}

/// Upstream's names of what is at field paths: layers and sites.
fn places(layout: &Layout) -> HashMap<String, String> {
    let mut places = HashMap::new();
    for param in &layout.params {
        let name = &layout.layer_of(param).name;
        places.insert(param.path.clone(), name.clone());
        // A tied head's adapters are below the head itself.
        if param.is_tied()
            && let Some((head, _)) = param.path.rsplit_once('.')
        {
            places.insert(head.to_string(), name.clone());
        }
    }
    for site in &layout.sites {
        places.insert(site.path.clone(), site.name.clone());
    }
    places
}

struct Find {
    places: HashMap<String, String>,
    path: Vec<String>,
    /// How many adapters that are not active it is inside of.
    inactive: usize,
    /// The block of the last place: its list and its index.
    block: Option<(String, usize)>,
    groups: Vec<LayerGroup>,
}

impl Find {
    /// Upstream's name of the layer or site that the path leads through.
    fn place(&self) -> Option<&String> {
        let lengths = (1..=self.path.len()).rev();
        lengths
            .map(|length| self.path[..length].join("."))
            .find_map(|path| self.places.get(&path))
    }
}

impl ModuleVisitor for Find {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_string());
        self.inactive += usize::from(container == INACTIVE_ADAPTER);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.pop();
        self.inactive -= usize::from(container == INACTIVE_ADAPTER);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(place) = self.place().cloned() else {
            return;
        };
        let own = block(&place).map(|(list, index)| (list.to_string(), index));
        if self.groups.is_empty() || own != self.block {
            let name = own.as_ref().map(|(list, index)| match list.as_str() {
                "" => index.to_string(),
                list => format!("{list}.{index}"),
            });
            self.groups.push(LayerGroup {
                name: name.unwrap_or_default(),
                params: Vec::new(),
                elements: 0,
            });
            self.block.clone_from(&own);
        }
        if self.inactive > 0 || !param.is_require_grad() {
            return;
        }
        let Some(group) = self.groups.last_mut() else {
            return;
        };
        group.params.push(param.id);
        group.elements += param.lazy_shape().num_elements();
        let module = place.split('.').next().unwrap_or_default();
        if own.is_none() && !group.name.split(", ").any(|name| name == module) {
            let comma = if group.name.is_empty() { "" } else { ", " };
            group.name += comma;
            group.name += module;
        }
    }
}

/// Takes parameters out of training.
struct Freeze(HashSet<ParamId>);

impl ModuleMapper for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0.contains(&param.id) {
            param.set_require_grad(false)
        } else {
            param
        }
    }
}
