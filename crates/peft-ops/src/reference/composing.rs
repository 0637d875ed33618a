//! References of the operations that compose weights and turn inputs.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{LowRank, Waves};

/// [`add_product`](crate::add_product), composed.
pub fn add_product(matrix: Tensor<2>, low_rank: LowRank) -> Tensor<2> {
    matrix + low_rank.product()
}

/// [`scale_by_product`](crate::scale_by_product), composed.
pub fn scale_by_product(matrix: Tensor<2>, down: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    matrix * (down.matmul(up) + 1.0)
}

/// Hadamard's matrix of a power of two: entry (i, j) is negative where i and j have an odd number of binary ones in
/// common.
fn hadamard(size: usize, like: (&Device, DType)) -> Tensor<2> {
    let entry = |at: usize| 1.0 - 2.0 * (((at / size) & (at % size)).count_ones() % 2) as f32;
    let values: Vec<f32> = (0..size * size).map(entry).collect();
    Tensor::from_data(TensorData::new(values, [size, size]), like)
}

/// Rows of `x` `[rows, d]`, d a power of two, times Hadamard's matrix, which is the Kronecker product of two smaller ones.
pub fn hadamard_rows(x: Tensor<2>) -> Tensor<2> {
    let [rows, size] = x.dims();
    let (device, dtype) = (x.device(), x.dtype());
    let a = 1 << (size.ilog2() / 2);
    let b = size / a;
    let x = x.reshape([rows * a, b]);
    let x = x.matmul(hadamard(b, (&device, dtype)));
    let x: Tensor<3> = x.reshape([rows, a, b]).swap_dims(1, 2);
    let x = x.reshape([rows * b, a]);
    let x = x.matmul(hadamard(a, (&device, dtype)));
    let x: Tensor<3> = x.reshape([rows, b, a]).swap_dims(1, 2);
    x.reshape([rows, size])
}

/// [`add_hadamard`](crate::add_hadamard), composed.
pub fn add_hadamard<const D: usize>(
    weight: Tensor<D>,
    diagonals: Tensor<2>,
    vector: Tensor<1>,
) -> Tensor<D> {
    let shape = weight.shape();
    let [count, size] = diagonals.dims();
    let blocks = diagonals * vector.unsqueeze();
    let flat: Tensor<1> = hadamard_rows(blocks).reshape([count * size]);
    weight + flat.narrow(0, 0, shape.num_elements()).reshape(shape)
}

/// [`add_waves`](crate::add_waves), composed.
pub fn add_waves(
    weight: Tensor<2>,
    coefficients: Tensor<2>,
    waves: &Waves,
    scale: f64,
) -> Tensor<2> {
    let values = waves.values((&coefficients.device(), coefficients.dtype()));
    weight + (coefficients * scale).matmul(values)
}

/// [`block_diagonal`](crate::block_diagonal), composed.
pub fn block_diagonal(input: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let [rows, width] = input.dims();
    let [count, size, _] = blocks.dims();
    let parts = input.reshape([rows, count, size]).swap_dims(0, 1);
    let products = parts.matmul(blocks).swap_dims(0, 1);
    products.reshape([rows, width])
}

/// [`scale_columns`](crate::scale_columns), composed.
pub fn scale_columns(input: Tensor<2>, scale: Tensor<1>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let scaled = input * scale.unsqueeze();
    match bias {
        Some(bias) => scaled + bias.unsqueeze(),
        None => scaled,
    }
}
