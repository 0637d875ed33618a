//! Products with sparse matrices.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
#[cfg(feature = "flex")]
use {
    crate::cpu::sparse::Pattern,
    crate::extension::Fused,
    crate::fused::{fuses, is_fused},
    burn::backend::Dispatch,
    std::sync::Arc,
};

use crate::reference;
use crate::sparse_matrix::Sparse;

/// Integers on the host.
fn host<const D: usize>(integers: &Tensor<D, Int>) -> Vec<i64> {
    integers.to_data().iter::<i64>().collect()
}

/// Whether [`add_sparse`] of this input needs no dense matrix, neither in the forward nor in the backward pass: on
/// Burn's CPU backend, in `f32`. Elsewhere it makes one of the sparse matrix.
pub fn multiplies_sparse<const D: usize>(input: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    let fused = input.dtype() == DType::F32 && is_fused(&input.device());
    #[cfg(not(feature = "flex"))]
    let fused = {
        let _ = input;
        false
    };
    fused
}

/// Adds the product with a sparse matrix S to a layer's output: `y + x S`, in the memory of `y` where nothing else
/// holds it.
///
/// `output` is `[…, out]`, `input` `[…, in]`. The backward pass keeps `x` where S is trained and the k elements where
/// `x` is. The gradient of S is that of its k elements: no matrix `[in, out]` exists.
///
/// # Panics
///
/// If shapes do not fit, or if an element is outside of the matrix.
pub fn add_sparse<const D: usize>(
    output: Tensor<D>,
    input: Tensor<D>,
    sparse: Sparse,
) -> Tensor<D> {
    let sparse = sparse.cast(input.dtype());
    let [d_in, d_out] = sparse.shape;
    let widths = [input.dims()[D - 1], output.dims()[D - 1]];
    assert_eq!(widths, [d_in, d_out], "the widths of input and output");
    #[cfg(feature = "flex")]
    if fuses(&output) && input.dtype() == DType::F32 {
        if output.dims().contains(&0) {
            return output;
        }
        return Tensor::from_dispatch(<Dispatch as Fused>::add_sparse(
            output.into_dispatch(),
            input.into_dispatch(),
            sparse.values.clone().into_dispatch(),
            Arc::new(Pattern::new(
                &host(&sparse.inputs),
                &host(&sparse.outputs),
                sparse.shape,
            )),
        ));
    }
    reference::add_sparse(output, input, sparse)
}

/// Adds rows of a sparse table S `[rows, d]` to what an embedding gives: `y + S[ids]`.
///
/// `output` is `[batch, seq, d]`, `ids` `[batch, seq]`. The ids are read on the host. On every backend, the gradient of
/// S is that of its k elements: no matrix `[rows, d]` exists.
///
/// # Panics
///
/// If shapes do not fit, or if an element is outside of the table.
pub fn add_sparse_rows(output: Tensor<3>, ids: Tensor<2, Int>, sparse: Sparse) -> Tensor<3> {
    let sparse = sparse.cast(output.dtype());
    let (shape, [rows, width]) = (output.dims(), sparse.shape);
    assert_eq!(shape[2], width, "the widths of table and output");
    assert_eq!(ids.dims(), [shape[0], shape[1]], "an id for each vector");
    let mut of_row = vec![Vec::new(); rows];
    let (inputs, outputs) = (host(&sparse.inputs), host(&sparse.outputs));
    for (element, row) in inputs.iter().enumerate() {
        of_row[*row as usize].push(element);
    }
    let (mut places, mut elements) = (Vec::new(), Vec::new());
    for (token, id) in host(&ids).iter().enumerate() {
        for element in &of_row[*id as usize] {
            places.push((token * width) as i64 + outputs[*element]);
            elements.push(*element as i64);
        }
    }
    if places.is_empty() {
        // None of the rows is asked for; the elements have a gradient all the same.
        return output + (sparse.values.sum() * 0.0).reshape([1, 1, 1]);
    }
    let device = output.device();
    let integers = |values: Vec<i64>| {
        let count = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
    };
    let values = sparse.values.select(0, integers(elements));
    let flat: Tensor<1> = output.reshape([-1]);
    let added = flat.scatter(0, integers(places), values, IndexingUpdateOp::Add);
    added.reshape(shape)
}
