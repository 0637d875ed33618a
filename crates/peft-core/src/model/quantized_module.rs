//! Quantized weights of a model.

use burn::module::Module;
use peft_ops::quantized::QuantizedWeight;

use crate::error::Result;
use crate::layout::quantizer::WeightQuantizer;
use crate::model::quantize;

/// A model whose weights may be stored quantized. Every Burn module has it, beside [`PeftModule`](crate::PeftModule).
pub trait QuantizedModule: Module {
    /// Stores weights of linear layers and tables in fewer bits, as `quantizer` says (QLoRA: Dettmers et al.
    /// 2023); they cannot be trained themselves from then on, adapters on them can. Adapters that are on the
    /// model stay. Layers compute with the values that the quantized form has.
    ///
    /// Loading a model with a quantizer takes less memory than packing it here.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`](crate::Error::Packing); [`Error::Merged`](crate::Error::Merged).
    fn pack_weights(&self, quantizer: &dyn WeightQuantizer) -> Result<Self> {
        quantize::pack(self, quantizer)
    }

    /// Stores quantized weights as dense tensors again, of the values that they have.
    ///
    /// # Errors
    ///
    /// [`Error::Merged`](crate::Error::Merged).
    fn unpack_weights(&self) -> Result<Self> {
        quantize::unpack(self)
    }

    /// The quantized weights, by upstream name of the layer.
    fn quantized_weights(&self) -> Vec<(String, QuantizedWeight)> {
        quantize::quantized_weights(self)
    }

    /// The model with quantized weights in the place of those at these field paths, which were never read: for
    /// loaders. Rows of a linear layer are its outputs.
    ///
    /// # Panics
    ///
    /// If there is no such matrix, or one of another shape.
    #[must_use]
    fn with_quantized_weights(&self, weights: Vec<(String, QuantizedWeight)>) -> Self {
        quantize::with_quantized_weights(self, weights)
    }
}

impl<M: Module> QuantizedModule for M {}
