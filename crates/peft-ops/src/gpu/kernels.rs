//! Kernels, and how they are launched. No runtime is named here.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::extension::{OnCube, PackedTensors};
use super::layout::Layout;

/// The code at an index.
#[cube]
fn code(words: &Tensor<u32>, index: usize, #[comptime] bits: usize) -> usize {
    let per_word = comptime!(32 / bits);
    let mask = comptime!((1u32 << bits) - 1);
    let shift = u32::cast_from(index % per_word) * comptime!(bits as u32);
    usize::cast_from((words[index / per_word] >> shift) & mask)
}

/// The element at a row-major index.
#[cube]
fn element(
    words: &Tensor<u32>,
    values: &Tensor<f32>,
    scales: &Tensor<f32>,
    scale_words: &Tensor<u32>,
    scale_values: &Tensor<f32>,
    index: usize,
    #[comptime] bits: usize,
    #[comptime] block_size: usize,
    #[comptime] nested: usize,
) -> f32 {
    let value = values[code(words, index, bits)];
    let block = index / block_size;
    if comptime!(nested == 0) {
        value * scales[block]
    } else {
        let scale = scale_values[code(scale_words, block, 8usize)];
        value * (scale * scales[block / nested] + scale_values[256])
    }
}

#[cube(launch)]
pub(super) fn decode_kernel<F: Float>(
    words: &Tensor<u32>,
    values: &Tensor<f32>,
    scales: &Tensor<f32>,
    scale_words: &Tensor<u32>,
    scale_values: &Tensor<f32>,
    output: &mut Tensor<F>,
    #[comptime] bits: usize,
    #[comptime] block_size: usize,
    #[comptime] nested: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    output[ABSOLUTE_POS] = F::cast_from(element(
        words,
        values,
        scales,
        scale_words,
        scale_values,
        ABSOLUTE_POS,
        bits,
        block_size,
        nested,
    ));
}

#[cube(launch)]
pub(super) fn select_kernel<F: Float>(
    ids: &Tensor<i32>,
    words: &Tensor<u32>,
    values: &Tensor<f32>,
    scales: &Tensor<f32>,
    scale_words: &Tensor<u32>,
    scale_values: &Tensor<f32>,
    output: &mut Tensor<F>,
    #[comptime] bits: usize,
    #[comptime] block_size: usize,
    #[comptime] nested: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= output.len() {
        terminate!();
    }
    let columns = output.shape(1);
    let row = usize::cast_from(ids[ABSOLUTE_POS / columns]);
    output[ABSOLUTE_POS] = F::cast_from(element(
        words,
        values,
        scales,
        scale_words,
        scale_values,
        row * columns + ABSOLUTE_POS % columns,
        bits,
        block_size,
        nested,
    ));
}

impl OnCube for CubeBackend {
    fn decoded(like: CubeTensor, matrix: PackedTensors<Self>) -> CubeTensor {
        let Layout {
            shape,
            bits,
            block_size,
            nested,
        } = matrix.layout;
        let output = empty_device_dtype(
            like.client.clone(),
            like.device.clone(),
            shape.into(),
            like.dtype,
        );
        let count = shape[0] * shape[1];
        let cube_dim = CubeDim::new(&like.client, count);
        decode_kernel::launch(
            &like.client,
            calculate_cube_count_elemwise(&like.client, count, cube_dim),
            cube_dim,
            into_contiguous(matrix.words).into_tensor_arg(),
            into_contiguous(matrix.values).into_tensor_arg(),
            into_contiguous(matrix.scales).into_tensor_arg(),
            into_contiguous(matrix.scale_words).into_tensor_arg(),
            into_contiguous(matrix.scale_values).into_tensor_arg(),
            output.clone().into_tensor_arg(),
            bits,
            block_size,
            nested,
            dtype_to_storage_type(like.dtype),
        );
        output
    }

    fn selected(like: CubeTensor, ids: CubeTensor, matrix: PackedTensors<Self>) -> CubeTensor {
        let Layout {
            shape: [_, columns],
            bits,
            block_size,
            nested,
        } = matrix.layout;
        let shape = [ids.meta.shape()[0], columns];
        let output = empty_device_dtype(
            like.client.clone(),
            like.device.clone(),
            shape.into(),
            like.dtype,
        );
        let count = shape[0] * shape[1];
        let cube_dim = CubeDim::new(&like.client, count);
        select_kernel::launch(
            &like.client,
            calculate_cube_count_elemwise(&like.client, count, cube_dim),
            cube_dim,
            into_contiguous(ids).into_tensor_arg(),
            into_contiguous(matrix.words).into_tensor_arg(),
            into_contiguous(matrix.values).into_tensor_arg(),
            into_contiguous(matrix.scales).into_tensor_arg(),
            into_contiguous(matrix.scale_words).into_tensor_arg(),
            into_contiguous(matrix.scale_values).into_tensor_arg(),
            output.clone().into_tensor_arg(),
            bits,
            block_size,
            nested,
            dtype_to_storage_type(like.dtype),
        );
        output
    }

    fn product(input: CubeTensor, matrix: PackedTensors<Self>, flipped: bool) -> CubeTensor {
        let weight = Self::decoded(input.clone(), matrix);
        let right = if flipped {
            weight
        } else {
            Self::float_swap_dims(weight, 0, 1)
        };
        Self::float_matmul(input, right)
    }
}
