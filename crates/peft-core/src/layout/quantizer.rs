//! Which weights are stored quantized, and how.

use std::collections::BTreeMap;

use burn::tensor::DType;
use peft_ops::quantized::QuantizedWeight;
use serde_json::Value;

use crate::error::Result;
use crate::layout::model_layout::LayerKind;

/// A matrix that a [`WeightQuantizer`] is asked about.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedLayer<'a> {
    /// Upstream's name of the layer, as in `model.layers.0.self_attn.q_proj`.
    pub name: &'a str,
    /// [`LayerKind::Linear`] or [`LayerKind::Embedding`].
    pub kind: &'a LayerKind,
    /// Whether it is (part of) an output head.
    pub head: bool,
    /// As upstream lays it out: `[out, in]` of a linear layer, `[vocabulary, d]` of a table.
    pub shape: [usize; 2],
}

/// A tensor as a safetensors file holds it: one of those that a quantized matrix consists of in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Number format.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// The elements, row-major, in little-endian order.
    pub bytes: Vec<u8>,
}

/// Chooses how weights are stored, while a model is loaded or by [`pack_weights`](crate::quantize::QuantizedModule::pack_weights).
pub trait WeightQuantizer {
    /// The quantized form of a matrix, or `None` to leave it as it is. `values` are row-major, as upstream lays
    /// them out.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`](crate::Error::Packing) for values that the format cannot hold.
    fn pack(&self, layer: QuantizedLayer<'_>, values: &[f32]) -> Result<Option<QuantizedWeight>>;

    /// Whether [`pack`](Self::pack) could want this matrix: its values need not be read otherwise. Default: yes.
    fn wants(&self, _layer: QuantizedLayer<'_>) -> bool {
        true
    }

    /// A matrix that a checkpoint holds quantized, from all of its parts, by their names below the layer's:
    /// `weight`, `weight.absmax`, … `None` if this quantizer does not read such parts, as by default.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`](crate::Error::Packing) for parts that do not fit together.
    fn read_parts(
        &self,
        _layer: QuantizedLayer<'_>,
        _parts: &BTreeMap<String, RawTensor>,
    ) -> Result<Option<QuantizedWeight>> {
        Ok(None)
    }

    /// The parts of a layer's quantized matrix, as [`read_parts`](Self::read_parts) takes them, for a
    /// checkpoint. `None` if it is to be written dense, as by default.
    ///
    /// # Errors
    ///
    /// [`Error::Packing`](crate::Error::Packing) for a matrix in another format than
    /// [`quantization_config`](Self::quantization_config) says.
    fn write_parts(
        &self,
        _layer: &str,
        _rows: &QuantizedWeight,
    ) -> Result<Option<BTreeMap<String, RawTensor>>> {
        Ok(None)
    }

    /// What `config.json` says of a checkpoint with such parts, in upstream's field of this name; `dense` are
    /// the linear layers that are not in parts. Default: nothing.
    fn quantization_config(&self, _dense: &[String]) -> Option<Value> {
        None
    }
}
