//! A weight as the matrix from what one output sees to the outputs.

use burn::tensor::{Shape, Tensor};

/// A weight as a matrix `[in, out]`: that of a linear layer as it is, and the kernel `[out, in / groups, …]` of a convolution as
/// `[in / groups · …, out]`, whose rows are the numbers that one output sees.
///
/// A method that changes the matrix of a linear layer changes a convolution in the same way:
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use peft_core::method::{from_matrix, matrix_of};
///
/// fn halved<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
///     let shape = weight.shape();
///     from_matrix(matrix_of(weight) * 0.5, shape)
/// }
///
/// let kernel = Tensor::<4>::ones([8, 3, 5, 5], &Device::default());
/// assert_eq!(matrix_of(kernel.clone()).dims(), [75, 8]);
/// assert_eq!(halved(kernel).dims(), [8, 3, 5, 5]);
/// ```
///
/// # Panics
///
/// If the weight is a vector.
pub fn matrix_of<const D: usize>(weight: Tensor<D>) -> Tensor<2> {
    let shape = weight.dims();
    if D == 2 {
        return weight.reshape([shape[0], shape[1]]);
    }
    assert!(D > 2, "a vector is no matrix");
    weight.reshape([shape[0] as isize, -1]).transpose()
}

/// The weight of `shape` whose [matrix](matrix_of) this is.
pub fn from_matrix<const D: usize>(matrix: Tensor<2>, shape: impl Into<Shape>) -> Tensor<D> {
    let matrix = if D == 2 { matrix } else { matrix.transpose() };
    matrix.reshape::<D, Shape>(shape.into())
}
