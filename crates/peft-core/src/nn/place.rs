//! A linear layer, or a head that is a table, with the adapters on its weight.

use burn::nn::Linear;
use burn::tensor::Tensor;
use peft_ops::{LowRank, Weight};

use crate::adapter::erased::ErasedWeight;
use crate::adapter::quantized_base::QuantizedBase;
use crate::attached::base_norms::BaseNorms;
use crate::attached::composition::Parts;
use crate::attached::stack::Stack;

/// A linear layer as its adapters find it.
#[derive(Clone)]
pub(crate) struct Place<'a> {
    /// The parameter's own tensor, `[in, out]`.
    pub(crate) base: Tensor<2>,
    /// What it stands in for, if the base is quantized.
    pub(crate) quantized: Option<QuantizedBase>,
    pub(crate) bias: Option<Tensor<1>>,
    /// Changes of the base that lie below all adapters.
    pub(crate) below: Vec<LowRank>,
    /// Of the base.
    pub(crate) norms: BaseNorms,
    /// Whether the base is the parameter that the stack is on: then what the stack keeps is of this base.
    pub(crate) own: bool,
    pub(crate) stack: &'a Stack,
}

impl<'a> Place<'a> {
    pub(crate) fn of(layer: &Linear, stack: &'a Stack, bias: Option<Tensor<1>>) -> Self {
        Self {
            base: layer.weight.base(),
            quantized: stack.quantized.clone(),
            bias,
            below: Vec::new(),
            norms: stack.norms.clone(),
            own: true,
            stack,
        }
    }

    /// The effective weight, where it is kept between forward passes.
    pub(crate) fn kept(&self) -> Option<Tensor<2>> {
        if self.own {
            self.stack.kept(&self.base)
        } else {
            None
        }
    }

    /// The base as an operation takes it.
    pub(crate) fn weight(&self) -> Weight {
        match &self.quantized {
            Some(quantized) => quantized.weight(&self.base),
            None => Weight::Dense(self.base.clone()),
        }
    }

    /// The input as a matrix, `[rows, in]`.
    pub(crate) fn as_rows<const D: usize>(&self, input: Tensor<D>) -> Tensor<2> {
        let [d_in, _] = self.base.dims();
        input.reshape([-1, d_in as isize])
    }

    /// All that is added to the base, if it is low-rank additions and nothing else.
    pub(crate) fn low_rank(&self) -> Option<Vec<LowRank>> {
        let added = match self.stack.mixed().map(|mixture| &mixture.parts) {
            Some(Parts::PerRow(_) | Parts::Routed(_) | Parts::Tree(_)) => return None,
            Some(Parts::Blend(blend)) => {
                if blend.rows.is_some() {
                    return None;
                }
                let stacks = blend.sums.iter().take(1).flatten();
                let each =
                    stacks.flat_map(|(weight, stack)| stack.iter().map(move |at| (at, weight)));
                let factors = each.map(|(entry, weight)| {
                    let adapter = self.stack.entries[*entry].adapter.weight_adapter();
                    let factors = adapter.low_rank()?;
                    let scale = factors.scale * weight;
                    Some(LowRank { scale, ..factors })
                });
                factors.collect::<Option<Vec<_>>>()?
            }
            Some(Parts::Weighted(parts)) => {
                let factors = parts.iter().map(|(entry, weight)| {
                    let adapter = self.stack.entries[*entry].adapter.weight_adapter();
                    let factors = adapter.low_rank()?;
                    let scale = factors.scale * weight;
                    Some(LowRank { scale, ..factors })
                });
                factors.collect::<Option<Vec<_>>>()?
            }
            None => {
                let adapters = self.stack.active_weights().into_iter();
                let factors = adapters.map(ErasedWeight::low_rank);
                factors.collect::<Option<Vec<_>>>()?
            }
        };
        let alone = self.below.len() + added.len() == 1;
        let all: Vec<LowRank> = self.below.iter().cloned().chain(added).collect();
        // Several have one input, and each drops other elements of it.
        let together = alone || all.iter().all(|factors| factors.dropout == 0.0);
        together.then_some(all)
    }

    /// The base with what lies below all adapters folded in, where there is something.
    pub(crate) fn composed(mut self) -> Self {
        for factors in std::mem::take(&mut self.below) {
            let base = match self.quantized.take() {
                Some(quantized) => quantized.dense(&self.base),
                None => self.base,
            };
            let change = factors.cast(base.dtype()).product();
            self.base = base + change;
            self.norms = BaseNorms::default();
        }
        self
    }
}
