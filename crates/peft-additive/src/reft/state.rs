//! The state of ReFT behind one block, and what it computes.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::Tensor;
use peft_core::method::{Adapter, CheckpointKey, HiddenAdapter, SiteContext};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::linear;

use super::orthogonal::OrthogonalProjection;
use super::places::places;
use crate::Activation;

/// One edit: `h + R (σ(W h + b) − Rᵀ h)`, or without what R takes away.
#[derive(Module, Debug)]
pub struct ReftUnit {
    /// W, `[d, r]`.
    pub learned_source: Param<Tensor<2>>,
    /// b, `[r]`.
    pub learned_source_bias: Param<Tensor<1>>,
    /// R, `[d, r]`, where any matrix may be it.
    pub projection: Option<Param<Tensor<2>>>,
    /// R, where its columns are orthonormal.
    pub orthogonal: Option<OrthogonalProjection>,
}

impl ReftUnit {
    fn projection(&self) -> Tensor<2> {
        match (&self.projection, &self.orthogonal) {
            (Some(projection), _) => projection.val(),
            (None, Some(orthogonal)) => orthogonal.matrix(),
            (None, None) => unreachable!("a unit has a projection"),
        }
    }

    fn keys(index: usize) -> Vec<CheckpointKey> {
        let key = |field: &str, key: &str| {
            let key = format!("reft_layer.refts.{{adapter}}.units.{index}.{key}");
            let ours = CheckpointKey::layer(field, &key);
            ours.within(&format!("units.{index}"))
        };
        let original = "projection.parametrizations.weight.original";
        let base = "projection.parametrizations.weight.0.base";
        vec![
            key("learned_source", "learned_source.weight").transposed(),
            key("learned_source_bias", "learned_source.bias"),
            key("projection", "projection.weight").transposed(),
            key("orthogonal.original", original).transposed(),
            key("orthogonal.base", base),
        ]
    }
}

/// ReFT behind one block.
#[derive(Module, Debug)]
pub struct Reft {
    /// One for all tokens that are edited, or one for the first and one for the last tokens.
    pub units: Vec<ReftUnit>,
    /// On the edited hidden states.
    pub dropout: Dropout,
    /// How many of a text's first tokens are edited.
    pub prefix_positions: usize,
    /// How many of its last.
    pub suffix_positions: usize,
    /// Whether `Rᵀ h` is subtracted.
    pub subtract_projection: bool,
    /// σ.
    #[module(skip)]
    pub non_linearity: Option<Activation>,
}

impl Adapter for Reft {
    fn tensors(&self) -> Vec<CheckpointKey> {
        (0..self.units.len()).flat_map(ReftUnit::keys).collect()
    }
}

impl Reft {
    /// What a unit adds to the hidden states at `places` `[rows or 1, seq, 1]`.
    fn change(&self, unit: &ReftUnit, hidden: Tensor<3>, places: Tensor<3>) -> Tensor<3> {
        let projection = unit.projection();
        let (weight, bias) = (unit.learned_source.val(), unit.learned_source_bias.val());
        let mut source = linear(hidden.clone(), weight, Some(bias), None);
        if let Some(activation) = self.non_linearity {
            source = activation.apply(source);
        }
        if self.subtract_projection {
            source = source - linear(hidden, projection.clone(), None, None);
        }
        // Here it is narrow.
        linear(source * places, projection.transpose(), None, None)
    }
}

impl HiddenAdapter for Reft {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let [_, seq, _] = hidden.dims();
        let forward = context.forward;
        // What was generated goes on as it is: of a text in a cache, the prompt was edited.
        if forward.cached_tokens() > 0 || seq <= forward.virtual_tokens() {
            return hidden;
        }
        let counts = [self.prefix_positions, self.suffix_positions];
        let [first, last] = places(forward, &hidden, counts);
        // A token that is both counts as one of the last.
        let first = first.clone() - first * last.clone();
        let of_unit = match &self.units[..] {
            [unit] => vec![(unit, first.clone() + last.clone())],
            [of_first, of_last] => vec![(of_first, first.clone()), (of_last, last.clone())],
            _ => unreachable!("a unit for all tokens, or two"),
        };
        let used = of_unit.into_iter().zip([
            self.units.len() == 1 || self.prefix_positions > 0,
            self.suffix_positions > 0,
        ]);
        let edited = used
            .filter(|(_, used)| *used)
            .fold(hidden.clone(), |edited, ((unit, places), _)| {
                edited + self.change(unit, hidden.clone(), places)
            });
        if dropout_rate(&self.dropout) == 0.0 || !hidden.is_autodiff() {
            return edited;
        }
        let places = (first + last).expand(hidden.dims());
        let dropped = self.dropout.adapted(edited);
        hidden.mask_where(places.greater_elem(0.5), dropped)
    }
}
