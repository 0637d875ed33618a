//! The training loop: the same for every method and every kind of task.

use std::time::Instant;

use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams};
use peft_core::PeftModule;
use peft_train::clip_by_norm;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::Progress;
use crate::job::Job;
use crate::measure;
use crate::record::{Epoch, Memory};
use crate::{Error, Result};

/// What the loop needs of a task.
pub(super) trait Learnable {
    /// The model.
    type Model: PeftModule;
    /// Rows as the model takes them.
    type Batch;

    /// Number of training rows.
    fn rows(&self) -> usize;

    /// Sets which training rows are learned: the first of the pair of as many equal shares as the second says, or all.
    fn learn(&mut self, share: Option<(usize, usize)>);

    /// One epoch's batches of training rows, in random order.
    fn batches(&mut self, order: &mut StdRng) -> Vec<Vec<usize>>;

    /// A batch, and its number of tokens with padding.
    fn batch(&self, rows: &[usize]) -> (Self::Batch, usize);

    /// The mean loss of a batch, and its gradients.
    fn gradients(&self, model: &Self::Model, batch: Self::Batch) -> (f64, GradientsParams);

    /// The score on dev.
    fn dev(&self, model: &Self::Model) -> f64;
}

/// A trained model, and what was seen on the way.
pub(super) struct Fitted<M> {
    pub(super) model: M,
    pub(super) curve: Vec<Epoch>,
    /// Seconds of each step but the first two.
    pub(super) step_s: Vec<f64>,
    /// Tokens of these steps.
    pub(super) tokens: usize,
    pub(super) memory: Memory,
}

/// Trains `model`. A loss that is no number ends it: the last epoch's numbers are NaN then.
pub(super) fn fit<T: Learnable>(
    job: &Job,
    task: &mut T,
    mut model: T::Model,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Fitted<T::Model>> {
    let baseline_bytes = measure::resident();
    measure::reset_peak();
    let settings = &job.task.training;
    let device = peft_core::device::device(&job.device)?.autodiff();
    let steps = settings.epochs * task.rows().div_ceil(settings.batch_size);
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(settings.weight_decay as f32)
        .init();
    let mut training = model.training_hooks(steps)?;
    let mut order = StdRng::seed_from_u64(job.seed);
    let (mut curve, mut step_s, mut tokens) = (Vec::new(), Vec::new(), 0);
    let (mut step, mut peak_bytes) = (0, 0);
    for epoch in 1..=settings.epochs {
        let mut total = 0.0;
        for rows in task.batches(&mut order) {
            let (batch, count) = task.batch(&rows);
            let start = Instant::now();
            // What is recorded is the task's loss, without a method's penalty.
            let (loss, mut gradients) = task.gradients(&model, batch);
            if let Some(penalty) = training.penalty(&model)? {
                let mut sum = GradientsAccumulator::new();
                sum.accumulate(&model, gradients);
                sum.accumulate(
                    &model,
                    GradientsParams::from_grads(penalty.backward(), &model),
                );
                gradients = sum.grads();
            }
            let (mut gradients, _) = clip_by_norm(gradients, &model, Some(settings.clip_norm));
            training.before_step(&model, &mut gradients)?;
            let rate = job.learning_rate * schedule(step, steps, settings.warmup);
            model = optimizer.step(rate, model, gradients);
            model = training.after_step(model)?;
            let _ = device.sync();
            // The first steps allocate what the others reuse.
            if step >= 2 || steps <= 4 {
                step_s.push(start.elapsed().as_secs_f64());
                tokens += count;
            }
            step += 1;
            total += loss * rows.len() as f64;
            if !progress(Progress { step, steps, loss }) {
                return Err(Error::Stopped { done: 0, total: 1 });
            }
            if !loss.is_finite() {
                break;
            }
        }
        let train_loss = total / task.rows() as f64;
        // The peak is that of training: evaluation has other batches.
        peak_bytes = peak_bytes.max(measure::peak());
        let dev = if train_loss.is_finite() {
            task.dev(&model)
        } else {
            f64::NAN
        };
        measure::reset_peak();
        curve.push(Epoch {
            epoch: epoch as u64,
            train_loss,
            dev,
        });
        if !train_loss.is_finite() {
            break;
        }
    }
    Ok(Fitted {
        model,
        curve,
        step_s,
        tokens,
        memory: Memory {
            peak_bytes,
            baseline_bytes,
        },
    })
}

/// Linear rise over the first `warmup` of the steps, linear fall to 0 after, as the peer's.
fn schedule(step: usize, steps: usize, warmup: f64) -> f64 {
    let rise = (steps as f64 * warmup).floor();
    let step = step as f64;
    if step < rise {
        step / rise
    } else {
        (steps as f64 - step) / (steps as f64 - rise).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_and_falls_like_the_peers() {
        assert!(schedule(0, 100, 0.1).abs() < 1e-12);
        assert!((schedule(5, 100, 0.1) - 0.5).abs() < 1e-12);
        assert!((schedule(10, 100, 0.1) - 1.0).abs() < 1e-12);
        assert!((schedule(55, 100, 0.1) - 0.5).abs() < 1e-12);
        assert!(schedule(99, 100, 0.1) > 0.0);
    }
}
