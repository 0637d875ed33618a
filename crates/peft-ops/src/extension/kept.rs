//! What operations keep for their backward pass.

use std::fmt::Debug;

use burn_flex::FlexTensor;

use super::tensors::{item_rows, mask, numbers};
use crate::cpu::attention::{Attention, Inputs};
use crate::segments::Segments;

/// What an operation of `N` inputs keeps for its backward pass.
pub(super) trait Kept<const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs that are `wanted`, from the output's, which is dense.
    fn gradients(self, gradient: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

/// What attention keeps: its inputs. Weights are computed again.
#[derive(Clone, Debug)]
pub(super) struct Attended {
    pub(super) query: FlexTensor,
    pub(super) key: FlexTensor,
    pub(super) value: FlexTensor,
    pub(super) mask: Option<FlexTensor>,
    pub(super) segments: Option<Segments>,
    pub(super) settings: Attention,
}

impl Attended {
    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            query: numbers(&self.query),
            key: item_rows(&self.key),
            value: item_rows(&self.value),
            mask: mask(self.mask.as_ref()),
            segments: self.segments.as_ref(),
        }
    }
}
