//! A base that is stored quantized: the parameter's own tensor then only stands in for its shape.

use burn::tensor::{Int, Tensor};
use peft_ops::Weight;
use peft_ops::quantized::QuantizedWeight;

/// The base of a parameter in quantized form.
#[derive(Clone, Debug)]
pub(crate) struct QuantizedBase {
    pub(crate) rows: QuantizedWeight,
    /// Whether the parameter is the transpose of the rows, as a linear layer's is.
    pub(crate) transposed: bool,
}

impl QuantizedBase {
    /// The same rows, which are a table's, as the outputs of a linear layer.
    pub(crate) fn of_linear(self) -> Self {
        Self {
            transposed: true,
            ..self
        }
    }

    /// The base as a layer's operation takes it.
    pub(crate) fn weight(&self, placeholder: &Tensor<2>) -> Weight {
        if self.transposed {
            Weight::Quantized(self.rows.clone())
        } else {
            Weight::Dense(self.dense(placeholder))
        }
    }

    /// The base, of the shape, device and number format of what stands in for it.
    pub(crate) fn dense(&self, placeholder: &Tensor<2>) -> Tensor<2> {
        let rows = self
            .rows
            .to_tensor(&placeholder.device())
            .cast(placeholder.dtype());
        if self.transposed {
            rows.transpose()
        } else {
            rows
        }
    }

    /// Rows for `ids` `[batch, seq]`: `[batch, seq, d]`.
    pub(crate) fn embedding(&self, ids: Tensor<2, Int>, placeholder: &Tensor<2>) -> Tensor<3> {
        self.rows
            .select(ids, &placeholder.device())
            .cast(placeholder.dtype())
    }
}
