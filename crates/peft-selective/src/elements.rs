//! Elements of any parameters of a model, chosen over all of them at once.

use burn::module::Param;
use burn::tensor::{DType, Int, Tensor};
use peft_core::method::{LayerKind, Layout, LayoutParam, MethodInfo, Plan, SparseDelta, Targets};
use peft_core::{Error, Result, Selection};

use crate::ranking::largest_of_all;

/// What the keys of a parameter's elements end with, after its own name.
const VALUES: &str = "sparse_values";
const INDICES: &str = "sparse_indices";
/// The same of all elements.
pub(crate) const DENSE: &str = "dense_values";

/// The selection of every layer.
pub(crate) fn every_layer() -> Selection {
    Selection::from(".*")
}

/// The parameters whose elements may be chosen: those of the layers that are named; of all but the heads where none are.
pub(crate) fn candidates<'a>(
    targets: &Targets,
    layout: &'a Layout,
    plan: &Plan,
    info: &MethodInfo,
) -> Result<Vec<&'a LayoutParam>> {
    let by_default = targets.target_modules.is_none();
    let layers = targets.select(layout, info.title, &every_layer(), plan.is_new())?;
    let named = layers.iter().filter(|layer| !(by_default && layer.head));
    let params = named.flat_map(|layer| layer.params.iter().map(|index| &layout.params[*index]));
    // A tied head is its table.
    let own =
        params.filter(|param| !param.is_tied() && !param.is_buffer() && !plan.is_saved(param));
    let own: Vec<&LayoutParam> = own.collect();
    match own
        .iter()
        .find(|param| param.elements() > i32::MAX as usize)
    {
        Some(param) => Err(Error::config(
            info.title,
            "target_modules",
            &param.name,
            "parameters with fewer than 2^31 elements",
        )),
        None => Ok(own),
    }
}

/// Whether upstream's parameter is the transpose of Burn's.
fn is_transposed(layout: &Layout, param: &LayoutParam) -> bool {
    layout.layer_of(param).kind == LayerKind::Linear && param.shape().len() == 2
}

/// A tensor's numbers in upstream's order of the parameter.
pub(crate) fn in_upstreams_order<const D: usize>(
    layout: &Layout,
    param: &LayoutParam,
    tensor: Tensor<D>,
) -> Vec<f32> {
    let tensor = if is_transposed(layout, param) {
        tensor.swap_dims(0, 1)
    } else {
        tensor
    };
    tensor.into_data().iter::<f32>().collect()
}

/// Calls a function that is generic over the rank with that of a parameter.
macro_rules! of_rank {
    ($param:expr, $D:ident => $body:expr) => {
        match $param.shape().len() {
            1 => {
                const $D: usize = 1;
                $body
            }
            2 => {
                const $D: usize = 2;
                $body
            }
            3 => {
                const $D: usize = 3;
                $body
            }
            4 => {
                const $D: usize = 4;
                $body
            }
            _ => {
                const $D: usize = 5;
                $body
            }
        }
    };
}
pub(crate) use of_rank;

/// How many of the parameters' elements a share of them is.
pub(crate) fn share(
    params: &[&LayoutParam],
    (field, share): (&'static str, f64),
    info: &MethodInfo,
) -> Result<usize> {
    let all: usize = params.iter().map(|param| param.elements()).sum();
    match (all as f64 * share) as usize {
        0 => {
            let expected = format!("more: of {all} elements at least one has to train");
            Err(Error::config(info.title, field, share, expected))
        }
        count => Ok(count),
    }
}

/// Plans changes of the `count` elements with the largest scores over all parameters. Scores are in upstream's order.
pub(crate) fn plan_largest(
    params: &[&LayoutParam],
    count: usize,
    layout: &Layout,
    plan: &mut Plan,
    scores: impl Fn(&LayoutParam) -> Result<Vec<f32>>,
) -> Result<()> {
    let scores: Vec<Vec<f32>> = params
        .iter()
        .map(|param| scores(param))
        .collect::<Result<_>>()?;
    let places = largest_of_all(&scores, count);
    drop(scores);
    for (param, places) in params.iter().zip(places) {
        if !places.is_empty() {
            plan_places(param, places.len(), layout, plan, places);
        }
    }
    Ok(())
}

/// Plans the changes that the file being loaded has: as many as its tensors are long. They tell which parameters it
/// changes; its configuration names layers by their weights only.
pub(crate) fn plan_stored(layout: &Layout, plan: &mut Plan) {
    for param in layout.params.iter().filter(|param| !param.is_tied()) {
        if let Some(count) = stored_count(param, layout, plan) {
            plan_places(param, count, layout, plan, Vec::new());
        }
    }
}

/// How many elements of a parameter the file being loaded changes; none if it has no such tensor. A tensor of another
/// shape than `[k]`, and one that is missing, is refused where it is read.
pub(crate) fn stored_count(param: &LayoutParam, layout: &Layout, plan: &Plan) -> Option<usize> {
    let layer = layout.layer_of(param);
    let shape = |key: &str| plan.stored_shape(layer, &format!("{}.{key}", param.field()));
    let shape = shape(VALUES).or_else(|| shape(INDICES))?;
    Some(shape.iter().product())
}

/// Whether the file being loaded has a tensor of this name of one of the parameters.
pub(crate) fn is_stored(params: &[&LayoutParam], key: &str, layout: &Layout, plan: &Plan) -> bool {
    params.iter().any(|param| {
        let key = format!("{}.{key}", param.field());
        plan.stored_shape(layout.layer_of(param), &key).is_some()
    })
}

/// What is said where a mask needs statistics that are not there.
pub(crate) fn without_statistics(title: &str) -> Error {
    Error::Calibration {
        place: "all parameters".into(),
        reason: format!(
            "{title} needs squared gradients: attach it by `attach_on`, or by `attach_with` with a calibration of \
             squared_gradients"
        ),
    }
}

/// Plans a change of `count` elements of a parameter, at `places` of upstream's.
fn plan_places(
    param: &LayoutParam,
    count: usize,
    layout: &Layout,
    plan: &mut Plan,
    places: Vec<usize>,
) {
    let (device, place) = (param.device(), Place::of(layout, param));
    let init = plan.init();
    let values = init.zeros([count], (&device, param.dtype()));
    let indices = init.integers([1, count], (&device, DType::I32), |_| integers(places));
    plan.adapt_weight(param, place.sparse(values, indices));
}

/// Indices as integers of a tensor.
pub(crate) fn integers(places: Vec<usize>) -> Vec<i64> {
    places.into_iter().map(|place| place as i64).collect()
}

/// A parameter, as its sparse change has to know it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    shape: Vec<usize>,
    transposed: bool,
    field: String,
    is_head: bool,
}

impl Place {
    pub(crate) fn of(layout: &Layout, param: &LayoutParam) -> Self {
        let layer = layout.layer_of(param);
        let mut heads = layout.tied_heads();
        Self {
            shape: param.shape(),
            transposed: is_transposed(layout, param),
            field: param.field().to_string(),
            is_head: heads.any(|(_, table)| table.name == layer.name),
        }
    }

    /// Shape, as Burn has it.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether upstream's is the transpose.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The parameter's own name.
    pub(crate) fn field(&self) -> &str {
        &self.field
    }

    /// Whether it is a table that is a head, too.
    pub(crate) fn is_head(&self) -> bool {
        self.is_head
    }

    /// A change of the parameter at `indices` `[1, k]` of upstream's.
    pub(crate) fn sparse(
        &self,
        values: Param<Tensor<1>>,
        indices: Param<Tensor<2, Int>>,
    ) -> SparseDelta {
        let keys = [VALUES, INDICES].map(|key| format!("{}.{key}", self.field));
        let state = SparseDelta::flat(values, indices, &self.shape, self.transposed)
            .with_keys(&keys[0], Some(&keys[1]));
        if self.is_head {
            state.with_tied_head()
        } else {
            state
        }
    }
}
