//! How far a matrix is from having orthonormal columns or rows.

use burn::tensor::Tensor;

/// `‖M − I‖` (Frobenius), of shape `[1]`, for a product M of a factor with itself.
pub(crate) fn beside_identity(product: Tensor<2>) -> Tensor<1> {
    let identity = Tensor::<2>::eye(product.dims()[0], &product.device()).cast(product.dtype());
    // The root has no derivative at 0.
    ((product - identity).square().sum() + 1e-24).sqrt()
}
