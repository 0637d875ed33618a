//! Tensors of files, and gradients as an adapter's tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{DType, Gradients, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

pub(crate) type Tensors = BTreeMap<String, TensorData>;

/// The tensors of a file, in f32 or as whole numbers.
pub(crate) fn read(path: impl AsRef<Path>) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(key, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let dtype = match view.dtype() {
            Dtype::I64 => DType::I64,
            _ => DType::F32,
        };
        let (bytes, shape) = (view.data().to_vec(), view.shape().to_vec());
        (
            key.to_string(),
            TensorData::from_bytes_vec(bytes, shape, dtype),
        )
    };
    file.iter().map(tensor).collect()
}

/// Puts the gradients of an adapter in the place of its values.
pub(crate) struct GradientsAsValues<'a>(pub(crate) &'a Gradients);

impl ModuleMapper for GradientsAsValues<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = param.base().grad(self.0);
        param.map(|value| match gradient {
            Some(gradient) => Tensor::from_inner(gradient),
            None => value.detach() * 0.0,
        })
    }
}
