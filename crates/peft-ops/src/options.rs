//! Settings of operations.

/// Settings of a step of [`adamw`](fn@crate::adamw).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// How much of the first moment stays, in [0, 1).
    pub beta_1: f32,
    /// How much of the second moment stays, in [0, 1).
    pub beta_2: f32,
    /// Beside the root of the second moment.
    pub epsilon: f32,
    /// Weight decay; times the learning rate it is the share that the parameter loses.
    pub weight_decay: f64,
    /// Learning rate.
    pub rate: f64,
    /// The step's number, from 1.
    pub time: i32,
}

impl AdamWOptions {
    pub(crate) fn corrections(&self) -> [f32; 2] {
        [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(self.time))
    }

    /// What is left of the parameter.
    pub(crate) fn kept(&self) -> f64 {
        1.0 - self.rate * self.weight_decay
    }
}

/// In which precision products with weights are computed. See [`set_mixed_precision`](crate::set_mixed_precision).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum MixedPrecision {
    /// In `f32`.
    #[default]
    Off,
    /// The weight of a layer, what it is multiplied with, and in the backward pass the output's gradient are rounded
    /// to bfloat16 (8 bits of precision, the exponents of `f32`); sums are `f32`. So it is for the head below
    /// [`linear_cross_entropy`](fn@crate::linear_cross_entropy), and for attention's products: queries, keys, values,
    /// weights and their gradients are rounded. Of a low-rank addition `(x A) B`, x and the output's gradient are
    /// rounded, as the weight sees them; A has 16 bits of precision and B all of them. Everything else is `f32`:
    /// gradients of weights and of factors, biases, norms, activations, softmax, the loss.
    ///
    /// A frozen weight is rounded once, and takes half of its memory again, as it must come back unchanged. One that is
    /// stored in bfloat16 ([`QuantizedMatrix::bfloat16`](crate::quantized::QuantizedMatrix::bfloat16)) is read as it
    /// is. Another quantized one is rounded where it is decoded. Fused operations only: on Burn's CPU backend (`flex`),
    /// for `f32`. There, products of fewer than 16 rows with a quantized weight stay `f32`, as rounding would cost more
    /// than it saves.
    Bf16,
}

/// Settings of [`attention`](fn@crate::attention).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// Heads of queries; they divide the width.
    pub heads: usize,
    /// Heads of keys and values; they divide `heads`, and each serves `heads / kv_heads` neighbours
    /// (grouped queries, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Whether a query sees no later keys than its own place. Places are counted from the end, so
    /// queries may be fewer than keys.
    pub causal: bool,
    /// Probability of dropping an attention weight on autodiff devices, in [0, 1).
    pub dropout: f64,
    /// What scores are multiplied by; `1 / sqrt(width of a head)` if none is given.
    pub scale: Option<f64>,
}

impl AttentionOptions {
    /// As many heads of keys as of queries, every key seen, no dropout.
    pub fn new(heads: usize) -> Self {
        Self {
            heads,
            kv_heads: heads,
            causal: false,
            dropout: 0.0,
            scale: None,
        }
    }

    pub(crate) fn scale(&self, width: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (width as f64).sqrt())
    }
}
