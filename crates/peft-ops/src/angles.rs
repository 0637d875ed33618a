//! The angles of rotary position embedding.

use burn::tensor::{Device, Tensor, TensorData};

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
