//! Burn's tensors as slices and matrices.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, TensorData};
use burn_flex::FlexTensor;

use crate::cpu::attention::{Mask, Rows};
use crate::cpu::linear::LowRank;
use crate::cpu::matrix::Matrix;
use crate::cpu::norm::Affine;
use crate::cpu::rotary::Rotation;

/// The numbers of a tensor that [`dense`] made.
pub(super) fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.storage()
}

/// The tensor, row-major and with nothing else in its memory.
pub(super) fn dense(tensor: FlexTensor) -> FlexTensor {
    debug_assert_eq!(tensor.dtype(), DType::F32);
    tensor.to_contiguous()
}

/// Keys or values, of which each item is row-major: room behind an item's rows, as a cache has, is not copied away.
pub(super) fn items(tensor: FlexTensor) -> FlexTensor {
    let width = tensor.shape()[2];
    match *tensor.layout().strides() {
        [item, row, 1] if item >= 0 && row == width.cast_signed() => tensor,
        _ => dense(tensor),
    }
}

/// The rows of a tensor that [`items`] made.
pub(super) fn item_rows(tensor: &FlexTensor) -> Rows<'_> {
    let layout = tensor.layout();
    Rows {
        values: &numbers(tensor)[layout.start_offset()..],
        item: layout.strides()[0].unsigned_abs(),
    }
}

/// A weight as it is in memory: a transposed one is not copied.
pub(super) fn weight(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().strides().iter().all(|stride| *stride >= 0) {
        tensor
    } else {
        dense(tensor)
    }
}

/// The matrix of a tensor that [`weight`] made.
pub(super) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let (layout, shape) = (tensor.layout(), tensor.shape());
    let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
    let data: &[f32] = tensor.storage();
    Matrix::view(
        &data[layout.start_offset()..],
        [shape[0], shape[1]],
        [stride(0), stride(1)],
    )
}

pub(super) fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}

pub(super) fn vector(data: Vec<f32>) -> FlexTensor {
    let shape = Shape::from([data.len()]);
    tensor(data, shape)
}

/// Rows, and the width of the last dimension.
pub(super) fn rows(tensor: &FlexTensor) -> (usize, usize) {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    (shape.num_elements() / width.max(1), width)
}

/// The shape with another last dimension.
pub(super) fn with_width(mut shape: Shape, width: usize) -> Shape {
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}

pub(super) fn low_rank<'a>(down: &'a FlexTensor, up: &'a FlexTensor, scale: f32) -> LowRank<'a> {
    LowRank {
        down: numbers(down),
        up: numbers(up),
        rank: rows(down).1,
        scale,
    }
}

pub(super) fn affine<'a>(
    gamma: &'a FlexTensor,
    beta: Option<&'a FlexTensor>,
    epsilon: f32,
) -> Affine<'a> {
    Affine {
        gamma: numbers(gamma),
        beta: beta.map(numbers),
        epsilon,
    }
}

pub(super) fn rotation<'a>(cos: &'a FlexTensor, sin: &'a FlexTensor, heads: usize) -> Rotation<'a> {
    Rotation {
        cos: numbers(cos),
        sin: numbers(sin),
        heads,
        half: rows(cos).1,
    }
}

pub(super) fn mask(mask: Option<&FlexTensor>) -> Option<Mask<'_>> {
    mask.map(|mask| Mask {
        values: numbers(mask),
        rows: mask.shape()[1],
    })
}
