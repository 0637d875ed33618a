//! How far two outputs for one input are apart.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;

/// How far two outputs are apart that come from two forward passes over one batch, in which something random was drawn anew:
/// half the Kullback-Leibler divergences in both directions, the mean over rows. `a` and `b` are logits `[rows, classes]`;
/// the result is `[1]`, in nats.
///
/// Add it to the mean of both losses (Liang et al. 2021, *R-Drop*, section 2.1).
///
/// ```
/// # use burn::tensor::Tensor;
/// use peft_core::nn::consistency_loss;
///
/// # fn loss<M>(model: &M, logits: impl Fn(&M) -> Tensor<2>, loss_of: impl Fn(&Tensor<2>) -> Tensor<1>) -> Tensor<1> {
/// let (a, b) = (logits(model), logits(model));
/// (loss_of(&a) + loss_of(&b)) / 2.0 + consistency_loss(a, b)
/// # }
/// ```
pub fn consistency_loss(a: Tensor<2>, b: Tensor<2>) -> Tensor<1> {
    let rows = a.dims()[0] as f64;
    let (a, b) = (log_softmax(a, 1), log_softmax(b, 1));
    // Σ p (ln p - ln q) + Σ q (ln q - ln p)
    let both = (a.clone().exp() - b.clone().exp()) * (a - b);
    both.sum() / (2.0 * rows)
}
