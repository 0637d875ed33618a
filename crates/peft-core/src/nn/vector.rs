//! Biases, and factors of normalisations, with the adapters on them.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::forward_context::ForwardContext;
use crate::attached::composition::Parts;
use crate::attached::stack::Stack;
use crate::nn::mixture::{Weights, spread};

/// A vector of a layer: a bias, or a normalisation's factors.
pub(crate) enum Vector {
    /// One for all tokens.
    Same(Tensor<1>),
    /// `[batch, 1 or seq, features]`.
    Varied(Tensor<3>),
}

impl Vector {
    /// The effective value of a parameter, under the composition of its adapters.
    pub(crate) fn of(param: &Param<Tensor<1>>, context: &ForwardContext) -> Self {
        let stack = param.reparameterization::<Stack>();
        let Some((stack, mixture)) = stack.and_then(|stack| Some((stack, stack.mixed()?))) else {
            return Self::Same(param.val());
        };
        let base = param.base();
        let of = |entries: &[usize]| -> Tensor<1> {
            let base = AnyTensor::new(base.clone());
            stack.with(entries).compose(&base).get()
        };
        match &mixture.parts {
            Parts::PerRow(rows) => {
                let values: Tensor<2> = rows.spread(of);
                Self::Varied(values.unsqueeze_dim(1))
            }
            Parts::Blend(blend) => match &blend.rows {
                None => Self::Same(param.val()),
                Some(rows) => {
                    let values: Tensor<2> = rows.spread(|sum| {
                        let sum = blend.sums[sum[0]].iter();
                        let parts = sum.map(|(factor, stack)| of(stack) * *factor);
                        parts
                            .reduce(|sum, part| sum + part)
                            .unwrap_or_else(|| of(&[]))
                    });
                    Self::Varied(values.unsqueeze_dim(1))
                }
            },
            Parts::Weighted(_) | Parts::Tree(_) => Self::Same(param.val()),
            Parts::Routed(entries) => {
                let weights = Weights::at(&mixture.place, None, context);
                let start: Tensor<3> = of(&[]).unsqueeze();
                let sum = entries.iter().fold(start.clone(), |sum, entry| {
                    let weight = weights.of(&stack.entries[*entry].name);
                    let change = of(&[*entry]).unsqueeze::<3>() - start.clone();
                    sum + weight.cast(change.dtype()) * change
                });
                Self::Varied(sum)
            }
        }
    }

    /// The value, if it is one for all tokens.
    pub(crate) fn same(&self) -> Option<Tensor<1>> {
        match self {
            Self::Same(value) => Some(value.clone()),
            Self::Varied(_) => None,
        }
    }

    /// `output` `[batch, …, features]` with the vector added.
    pub(crate) fn add_to<const D: usize>(&self, output: Tensor<D>) -> Tensor<D> {
        let dims = output.dims();
        match self {
            Self::Same(value) => output + value.clone().unsqueeze(),
            Self::Varied(values) => output + spread(values.clone(), dims),
        }
    }

    /// `output` `[batch, …, features]`, times the vector.
    pub(crate) fn times<const D: usize>(&self, output: Tensor<D>) -> Tensor<D> {
        let dims = output.dims();
        match self {
            Self::Same(value) => output * value.clone().unsqueeze(),
            Self::Varied(values) => output * spread(values.clone(), dims),
        }
    }
}
