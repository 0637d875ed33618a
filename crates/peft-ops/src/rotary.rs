//! Rotary position embedding.

use burn::tensor::Device;
use burn::tensor::{Tensor, TensorData};
#[cfg(feature = "flex")]
use burn::{backend::Dispatch, tensor::DType};

#[cfg(feature = "flex")]
use crate::extension::Fused;
#[cfg(feature = "flex")]
use crate::fuses;
use crate::reference;

/// Cosines and sines of the angles by which pairs of features are turned (Su et al. 2021, section 3.2).
#[derive(Clone, Debug)]
pub struct Rotary {
    /// `[1 or batch, seq, pairs]`.
    pub cos: Tensor<3>,
    /// `[1 or batch, seq, pairs]`.
    pub sin: Tensor<3>,
}

impl Rotary {
    /// The angles of `positions`, `items` rows of equally many, for `frequencies` in radians per position, one
    /// for each pair. `scale` multiplies cosines and sines: 1, but for context extensions that want more.
    ///
    /// # Panics
    ///
    /// If the rows are not of one length.
    pub fn new(
        positions: &[usize],
        items: usize,
        frequencies: &[f64],
        scale: f64,
        device: &Device,
    ) -> Self {
        assert!(
            items > 0 && positions.len().is_multiple_of(items),
            "{} positions in {items} rows",
            positions.len()
        );
        let shape = [items, positions.len() / items, frequencies.len()];
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|position| {
                    // As upstream: angles are rounded to f32 before their cosine is taken.
                    let at = |frequency: &f64| *position as f32 * *frequency as f32;
                    frequencies
                        .iter()
                        .map(move |frequency| (function(f64::from(at(frequency))) * scale) as f32)
                })
                .collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }
}

/// Turns the pairs of every head of `input` `[batch, seq, heads · 2 · pairs]`. The first half of a head's
/// features are the pairs' first members, as in Hugging Face's models (`rotate_half`).
///
/// The backward pass keeps the angles only.
///
/// # Panics
///
/// If shapes do not fit.
pub fn rotary(input: Tensor<3>, rotary: &Rotary, heads: usize) -> Tensor<3> {
    let [batch, seq, width] = input.dims();
    let [items, length, pairs] = rotary.cos.dims();
    assert!(
        rotary.sin.dims() == [items, length, pairs]
            && (items == 1 || items == batch)
            && length == seq
            && heads * 2 * pairs == width,
        "angles of [{items}, {length}, {pairs}] for {heads} heads of [{batch}, {seq}, {width}]"
    );
    #[cfg(feature = "flex")]
    if fuses(&input) && rotary.cos.dtype() == DType::F32 {
        return Tensor::from_dispatch(<Dispatch as Fused>::rotary(
            input.into_dispatch(),
            rotary.cos.clone().into_dispatch(),
            rotary.sin.clone().into_dispatch(),
            heads,
        ));
    }
    reference::rotary(input, rotary, heads)
}
