//! Packed matrices on a device.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

use super::extension::{OnCube, PackedTensors};
use super::layout::Layout;
use crate::format::{BlockScales, Codes, PackedMatrix, QuantizedMatrix};

/// A packed matrix's tensors on one device. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    words: Tensor<1, Int>,
    values: Tensor<1>,
    scales: Tensor<1>,
    scale_words: Tensor<1, Int>,
    scale_values: Tensor<1>,
    layout: Layout,
}

/// The devices that a matrix is on, and its tensors there; nothing for a format that is not decoded there.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlacedOnce(Arc<Mutex<Vec<(Device, Option<Placed>)>>>);

impl PlacedOnce {
    /// The tensors on a device, copied there at the first call.
    pub(crate) fn on(&self, device: &Device, rows: &dyn QuantizedMatrix) -> Option<Placed> {
        let mut placed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = placed.iter().find(|(there, _)| there == device) {
            return found.clone();
        }
        let device = device.clone().without_autodiff();
        let new = rows
            .packed()
            .map(|matrix| Placed::new(&matrix, rows.shape(), &device));
        placed.push((device, new.clone()));
        new
    }
}

impl Placed {
    /// # Panics
    ///
    /// If the matrix does not have one code an element, or one scale a block.
    fn new(matrix: &PackedMatrix, shape: [usize; 2], device: &Device) -> Self {
        let elements = shape[0] * shape[1];
        let blocks = elements.div_ceil(matrix.block_size);
        assert_eq!(matrix.codes.len(), elements, "one code for each element");
        let floats = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::<1>::from_data(data, (device, DType::F32))
        };
        let words = |codes: &Codes| {
            let words = codes.words();
            let data = TensorData::new(words.to_vec(), [words.len()]);
            Tensor::<1, Int>::from_data(data, (device, DType::U32))
        };
        let (scales, nested) = match &matrix.scales {
            BlockScales::Plain(scales) => {
                assert_eq!(scales.len(), blocks, "one scale for each block");
                (floats(scales), None)
            }
            BlockScales::Nested {
                codes,
                block_size,
                factors,
                offset,
            } => {
                assert_eq!(codes.len(), blocks, "one scale for each block");
                assert_eq!(factors.len(), blocks.div_ceil(*block_size), "factors");
                assert_eq!(codes.bits(), 8, "bits of a scale's code");
                let values = [codes.values(), &[*offset]].concat();
                let nested = (words(codes), floats(&values), *block_size);
                (floats(factors), Some(nested))
            }
        };
        let words = words(&matrix.codes);
        // A kernel has all its arguments, whether it reads them or not.
        let (scale_words, scale_values, nested) =
            nested.unwrap_or_else(|| (words.clone(), scales.clone(), 0));
        Self {
            words,
            values: floats(matrix.codes.values()),
            scales,
            scale_words,
            scale_values,
            layout: Layout {
                shape,
                bits: matrix.codes.bits() as usize,
                block_size: matrix.block_size,
                nested,
            },
        }
    }

    /// As operations take it.
    fn tensors(&self) -> PackedTensors<Dispatch> {
        PackedTensors {
            words: self.words.clone().into_dispatch(),
            values: self.values.clone().into_dispatch(),
            scales: self.scales.clone().into_dispatch(),
            scale_words: self.scale_words.clone().into_dispatch(),
            scale_values: self.scale_values.clone().into_dispatch(),
            layout: self.layout,
        }
    }

    /// All rows, `[rows, columns]`, of the number format of `like`.
    pub(crate) fn decode(&self, like: &Tensor<1>) -> Tensor<2> {
        let like = like.clone().into_dispatch();
        Tensor::from_dispatch(<Dispatch as OnCube>::decoded(like, self.tensors()))
    }

    /// Some rows, `[ids, columns]`, of the number format of `like`.
    pub(crate) fn select(&self, ids: Tensor<1, Int>, like: &Tensor<1>) -> Tensor<2> {
        let ids = ids.cast(IntDType::I32).into_dispatch();
        let like = like.clone().into_dispatch();
        Tensor::from_dispatch(<Dispatch as OnCube>::selected(like, ids, self.tensors()))
    }

    /// `x Wᵀ` of rows that are outputs: `[…, columns]` to `[…, rows]`. Nothing dense is kept for the backward pass.
    pub(crate) fn linear<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let mut dims = input.dims();
        let [rows, columns] = self.layout.shape;
        assert_eq!(
            dims[D - 1],
            columns,
            "the input's width is not the weight's"
        );
        let tokens = dims[..D - 1].iter().product::<usize>();
        let input = input.reshape([tokens, columns]).into_dispatch();
        let output = <Dispatch as OnCube>::product(input, self.tensors(), false);
        dims[D - 1] = rows;
        Tensor::<2>::from_dispatch(output).reshape(dims)
    }
}
