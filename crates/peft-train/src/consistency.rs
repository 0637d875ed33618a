//! Two passes over a batch that shall agree.

use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use peft_core::nn::consistency_loss;
use peft_models::LmBatch;

use crate::model::CausalLm;

/// The mean of two passes' sums of negative log likelihoods, and the gradients of `scale` times that mean and `weight` times
/// the sum of the targets' distances: of a model that gives logits.
pub(crate) fn twice<M: CausalLm>(
    model: &M,
    batch: &LmBatch,
    weight: f64,
    scale: f64,
) -> (f64, GradientsParams) {
    let learned = (0..)
        .zip(&batch.targets)
        .filter(|(_, target)| **target >= 0);
    let (places, targets): (Vec<i64>, Vec<i64>) = learned.unzip();
    let count = targets.len();
    let pass = || {
        let logits = model.logits(batch).expect("checked before the first step");
        let places = Tensor::<1, Int>::from_data(places.as_slice(), &logits.device());
        logits.select(0, places)
    };
    let (a, b) = (pass(), pass());
    let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &a.device()).unsqueeze_dim(1);
    let nll = |logits: &Tensor<2>| {
        let likely = log_softmax(logits.clone(), 1).gather(1, targets.clone());
        -likely.sum()
    };
    let nll = (nll(&a) + nll(&b)) / 2.0;
    let value = f64::from(nll.clone().into_scalar::<f32>());
    let apart = consistency_loss(a, b) * (weight * count as f64);
    let gradients = ((nll + apart) * scale).backward();
    (value, GradientsParams::from_grads(gradients, model))
}
