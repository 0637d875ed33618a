//! Waves along the rows of a matrix.

use std::f64::consts::TAU;
#[cfg(feature = "flex")]
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Waves along rows of `width` numbers: the cosine of every frequency, which its sine follows.
///
/// Clones share what is computed once for the fast transform.
#[derive(Clone, Debug)]
pub struct Waves {
    frequencies: Vec<usize>,
    width: usize,
    #[cfg(feature = "flex")]
    pub(crate) fast: Arc<crate::cpu::transform::Waves>,
}

impl Waves {
    /// Waves of these frequencies, in turns in a row.
    ///
    /// # Panics
    ///
    /// If a frequency is above half of the width, or there twice.
    pub fn new(frequencies: &[usize], width: usize) -> Self {
        let mut sorted = frequencies.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), frequencies.len(), "a frequency twice");
        let most = sorted.last().copied().unwrap_or(0);
        assert!(
            most <= width / 2,
            "the frequency {most} is above half of the width {width}"
        );
        Self {
            frequencies: frequencies.to_vec(),
            width,
            #[cfg(feature = "flex")]
            fast: Arc::new(crate::cpu::transform::Waves::new(frequencies, width)),
        }
    }

    /// How many waves there are: two for each frequency.
    pub fn count(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Their numbers, `[waves, width]`.
    pub fn values(&self, like: (&Device, DType)) -> Tensor<2> {
        let mut values = Vec::with_capacity(self.count() * self.width);
        for frequency in &self.frequencies {
            let turn = |at: usize| {
                let turns = (at * frequency % self.width) as f64 / self.width as f64;
                (TAU * turns).sin_cos()
            };
            values.extend((0..self.width).map(|at| turn(at).1 as f32));
            values.extend((0..self.width).map(|at| turn(at).0 as f32));
        }
        Tensor::from_data(TensorData::new(values, [self.count(), self.width]), like)
    }
}
