//! The usual shape of a method: one state on each layer.

use burn::tensor::{DType, Device};

use crate::adapter::contract::WeightAdapter;
use crate::error::Result;
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam};
use crate::layout::targets::Targets;
use crate::method::contract::{Method, MethodConfig};
use crate::method::plan::Plan;
use crate::method::targeting::{LINEAR, Target, select, train_biases};
use crate::statistics::wanted::CalibrationConfig;

/// A layer that a method adapts.
#[derive(Clone, Debug)]
pub struct TargetLayer<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// Its weight: `[in, out]` of a linear layer, `[out, in / groups, …]` of a convolution, with an axis for each of its
    /// kernel's.
    pub weight: &'a LayoutParam,
    /// Its bias, `[out]`, if it has one.
    pub bias: Option<&'a LayoutParam>,
    /// Number of inputs, of a convolution those of one output: `in / groups · h · w`.
    pub d_in: usize,
    /// Number of outputs.
    pub d_out: usize,
    device: Device,
}

impl<'a> TargetLayer<'a> {
    pub(super) fn new(layout: &'a Layout, (layer, weight): Target<'a>) -> Self {
        let shape = weight.shape();
        let rest = shape[1..].iter().product();
        let (d_in, d_out) = match layer.kind {
            LayerKind::Conv1d | LayerKind::Conv2d => (rest, shape[0]),
            _ => (shape[0], rest),
        };
        Self {
            layer,
            weight,
            bias: layout.param(layer, "bias"),
            d_in,
            d_out,
            device: weight.device(),
        }
    }

    /// The layer's name, upstream's.
    pub fn name(&self) -> &'a str {
        &self.layer.name
    }

    /// Shape of the kernel, `[k]` or `[h, w]`; of other layers than convolutions `[]`.
    pub fn kernel(&self) -> Vec<usize> {
        self.weight.shape().split_off(2)
    }

    /// Device and float type for parameters of a state on it.
    pub fn like(&self) -> (&Device, DType) {
        (&self.device, self.weight.dtype())
    }
}

/// A method that puts one state on the weight of each linear layer, or of each layer of some kinds. It is a [`Method`] by
/// this.
///
/// The configuration's `targets` select the layers, `all-linear` if they name none, and its `bias` says which biases
/// train besides; both are fields that [`method_config`](crate::method::method_config) finds by these names.
pub trait LinearMethod: MethodConfig {
    /// What is put on a layer.
    type State: WeightAdapter;

    /// The kinds of layers: linear layers, if nothing else is said. A state on a convolution changes its
    /// [matrix](crate::method::matrix_of), as one on a linear layer changes the weight.
    const LAYERS: &'static [LayerKind] = LINEAR;

    /// The state for one layer.
    ///
    /// Initial values come from `plan.init()`. While a checkpoint is loaded (`!plan.is_new()`), a parameter of
    /// `plan.init()` has a shape and no values yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) where a field does not fit the layer.
    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Self::State>;

    /// Checks what no field's range says: one field against another. Default: nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config).
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// As [`Method::max_rank`].
    fn max_rank(&self) -> Option<usize> {
        None
    }

    /// As [`Method::statistics`].
    fn statistics(&self) -> Option<CalibrationConfig> {
        None
    }
}

impl<T: LinearMethod> Method for T {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = layer_targets(self, layout, plan, T::LAYERS)?;
        adapt_each(self, &targets, layout, plan, |target, plan| {
            self.on_linear(target, plan)
        })
    }

    fn max_rank(&self) -> Option<usize> {
        LinearMethod::max_rank(self)
    }

    fn statistics(&self) -> Option<CalibrationConfig> {
        LinearMethod::statistics(self)
    }
}

/// The linear layers that a configuration selects.
///
/// # Errors
///
/// As [`layer_targets`].
pub fn linear_targets<'a>(
    config: &dyn MethodConfig,
    layout: &'a Layout,
    plan: &Plan,
) -> Result<Vec<TargetLayer<'a>>> {
    layer_targets(config, layout, plan, LINEAR)
}

/// The layers of some kinds that a configuration selects.
///
/// # Errors
///
/// As [`Targets::select`]; [`Error::UnsupportedLayer`](crate::Error::UnsupportedLayer) for a layer of another kind than
/// `kinds`; and as [`ByLayer::refuse_unused`](crate::method::ByLayer::refuse_unused) in a configuration of a user's.
pub fn layer_targets<'a>(
    config: &dyn MethodConfig,
    layout: &'a Layout,
    plan: &Plan,
    kinds: &[LayerKind],
) -> Result<Vec<TargetLayer<'a>>> {
    let everything = Targets::default();
    let targets = config.targets().unwrap_or(&everything);
    let found = select(targets, layout, plan, config.info(), kinds)?;
    if plan.is_new() {
        let names: Vec<&str> = found.iter().map(|(layer, _)| layer.name.as_str()).collect();
        config.check_layers(&names)?;
    }
    let target = |found| TargetLayer::new(layout, found);
    Ok(found.into_iter().map(target).collect())
}

/// Puts a state on each target, and trains the biases that the configuration names.
///
/// # Errors
///
/// Those of `state`.
pub fn adapt_each<S: WeightAdapter>(
    config: &dyn MethodConfig,
    targets: &[TargetLayer<'_>],
    layout: &Layout,
    plan: &mut Plan,
    mut state: impl FnMut(&TargetLayer<'_>, &mut Plan) -> Result<S>,
) -> Result<()> {
    for target in targets {
        let state = state(target, plan)?;
        plan.adapt_weight(target.weight, state);
    }
    let adapted: Vec<Target<'_>> = targets
        .iter()
        .map(|target| (target.layer, target.weight))
        .collect();
    train_biases(config.bias(), layout, &adapted, plan);
    Ok(())
}
