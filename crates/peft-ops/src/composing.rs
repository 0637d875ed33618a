//! Weights that few numbers change, and inputs that are turned in blocks.

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

#[cfg(feature = "flex")]
use crate::extension::{Composing, Maybe};
#[cfg(feature = "flex")]
use crate::fused::is_fused;
use crate::low_rank::LowRank;
use crate::reference;
use crate::waves::Waves;

/// Whether the operation is fused for this tensor and others of these number formats.
#[cfg(feature = "flex")]
fn fuses<const D: usize>(tensor: &Tensor<D>, others: &[DType]) -> bool {
    let single = tensor.dtype() == DType::F32 && others.iter().all(|other| *other == DType::F32);
    single && is_fused(&tensor.device()) && !tensor.dims().contains(&0)
}

/// `W + s·A B` for `matrix` `[in, out]`: for factors of so high a rank that with many tokens one dense matrix costs less
/// than their products with every token. Their dropout is not looked at.
///
/// The backward pass keeps A and B alone, and makes no other matrix of the weight's size.
///
/// # Panics
///
/// If shapes do not fit.
pub fn add_product(matrix: Tensor<2>, low_rank: LowRank) -> Tensor<2> {
    let low_rank = low_rank.cast(matrix.dtype());
    let (shape, down, up) = (matrix.dims(), low_rank.down.dims(), low_rank.up.dims());
    assert_eq!([down[0], up[1]], shape, "the sides of a product");
    assert_eq!(down[1], up[0], "the ranks of both factors");
    #[cfg(feature = "flex")]
    if fuses(&matrix, &[]) && down[1] > 0 {
        return Tensor::from_dispatch(<Dispatch as Composing>::add_product(
            matrix.into_dispatch(),
            low_rank.down.into_dispatch(),
            low_rank.up.into_dispatch(),
            low_rank.scale as f32,
        ));
    }
    reference::add_product(matrix, low_rank)
}

/// `W ⊙ (1 + A B)`, elementwise, for `matrix` `[in, out]`, A `[in, r]` and B `[r, out]`.
///
/// The backward pass keeps the three, and makes no other matrix of the weight's size.
///
/// # Panics
///
/// If shapes do not fit.
pub fn scale_by_product(matrix: Tensor<2>, down: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let (shape, [d_in, rank], [other, d_out]) = (matrix.dims(), down.dims(), up.dims());
    assert_eq!([d_in, d_out], shape, "the sides of a product");
    assert_eq!(rank, other, "the ranks of both factors");
    #[cfg(feature = "flex")]
    if fuses(&matrix, &[down.dtype(), up.dtype()]) && rank > 0 {
        return Tensor::from_dispatch(<Dispatch as Composing>::scale_by_product(
            matrix.into_dispatch(),
            down.into_dispatch(),
            up.into_dispatch(),
        ));
    }
    reference::scale_by_product(matrix, down, up)
}

/// `W + H (G ⊙ v)`, with Hadamard's matrix H: the weight's elements in blocks of d, one behind the other, with a frozen
/// diagonal of G each, `[blocks, d]`, and one vector for all, `[d]`. The last block may be longer than what is left of
/// the weight.
///
/// On Burn's CPU backend H is a fast transform in place, in both passes.
///
/// # Panics
///
/// If d is no power of two, or shapes do not fit.
pub fn add_hadamard<const D: usize>(
    weight: Tensor<D>,
    diagonals: Tensor<2>,
    vector: Tensor<1>,
) -> Tensor<D> {
    let ([blocks, size], elements) = (diagonals.dims(), weight.shape().num_elements());
    assert!(size.is_power_of_two(), "blocks of {size} elements");
    assert_eq!(vector.dims(), [size], "the vector's length");
    assert_eq!(blocks, elements.div_ceil(size), "blocks of the weight");
    #[cfg(feature = "flex")]
    if fuses(&weight, &[diagonals.dtype(), vector.dtype()]) {
        return Tensor::from_dispatch(<Dispatch as Composing>::add_hadamard(
            weight.into_dispatch(),
            diagonals.into_dispatch(),
            vector.into_dispatch(),
        ));
    }
    reference::add_hadamard(weight, diagonals, vector)
}

/// `W + s·C B` for `weight` `[in, out]`, coefficients C `[in, waves]` and waves B along the weight's rows.
///
/// On Burn's CPU backend the product is a fast Fourier transform of every row, in both passes, and nothing is kept.
///
/// # Panics
///
/// If shapes do not fit.
pub fn add_waves(
    weight: Tensor<2>,
    coefficients: Tensor<2>,
    waves: &Waves,
    scale: f64,
) -> Tensor<2> {
    let [d_in, d_out] = weight.dims();
    assert_eq!(d_out, waves.width(), "the width of the waves");
    assert_eq!(coefficients.dims(), [d_in, waves.count()], "coefficients");
    #[cfg(feature = "flex")]
    if fuses(&weight, &[coefficients.dtype()]) && waves.count() > 0 {
        return Tensor::from_dispatch(<Dispatch as Composing>::add_waves(
            weight.into_dispatch(),
            coefficients.into_dispatch(),
            waves.fast.clone(),
            scale as f32,
        ));
    }
    reference::add_waves(weight, coefficients, waves, scale)
}

/// `x·diag(R₁, R₂, …)` for `input` `[tokens, count · size]` and blocks `[count, size, size]`.
///
/// # Panics
///
/// If shapes do not fit.
pub fn block_diagonal(input: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let ([_, width], [count, size, other]) = (input.dims(), blocks.dims());
    assert_eq!(size, other, "blocks are square");
    assert_eq!(width, count * size, "the width of the blocks");
    #[cfg(feature = "flex")]
    if fuses(&input, &[blocks.dtype()]) {
        return Tensor::from_dispatch(<Dispatch as Composing>::block_diagonal(
            input.into_dispatch(),
            blocks.into_dispatch(),
        ));
    }
    reference::block_diagonal(input, blocks)
}

/// `x ⊙ s + b` for every row of `input` `[tokens, width]`, with a factor and, where there is a bias, an addend for each
/// column.
///
/// # Panics
///
/// If shapes do not fit.
pub fn scale_columns(input: Tensor<2>, scale: Tensor<1>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let [_, width] = input.dims();
    assert_eq!(scale.dims(), [width], "a factor for each column");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [width], "an addend for each column");
    }
    #[cfg(feature = "flex")]
    {
        let other = bias.as_ref().map_or(DType::F32, Tensor::dtype);
        if fuses(&input, &[scale.dtype(), other]) {
            return Tensor::from_dispatch(<Dispatch as Composing>::scale_columns(
                input.into_dispatch(),
                scale.into_dispatch(),
                Maybe::from(bias.map(Tensor::into_dispatch)),
            ));
        }
    }
    reference::scale_columns(input, scale, bias)
}
