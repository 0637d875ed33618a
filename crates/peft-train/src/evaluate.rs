//! Measuring on held-out data.

use crate::data::Dataset;
use crate::model::CausalLm;
use crate::outcome::Evaluation;
use crate::{Error, Result};

/// Mean negative log likelihood of the tokens of `data` under `model`, without dropout and in the order
/// of the data, `batch_size` rows at a time. Every token counts the same, whatever row it is in.
///
/// # Errors
///
/// [`Error::NoTargets`] if the data are empty, [`Error::TooLong`], [`Error::UnknownToken`] and
/// [`Error::Tasks`] if they do not fit the model, [`Error::Diverged`] if the loss is no number, [`Error::Config`] if `batch_size` is 0.
pub fn evaluate<M: CausalLm>(model: &M, data: &Dataset, batch_size: usize) -> Result<Evaluation> {
    data.fits(model, "held-out")?;
    measure(&model.valid(), data, batch_size, 0)
}

/// As [`evaluate`], of a model that was trained for `step` steps and has no autodiff, and that the data fit.
pub(crate) fn measure<M: CausalLm>(
    model: &M,
    data: &Dataset,
    batch_size: usize,
    step: usize,
) -> Result<Evaluation> {
    if batch_size == 0 {
        return Err(Error::Config {
            field: "batch_size",
            found: "0".into(),
            expected: "at least 1",
        });
    }
    let targets = data.targets();
    if targets == 0 {
        return Err(Error::NoTargets { what: "held-out" });
    }
    let rows: Vec<usize> = (0..data.len()).collect();
    let sum: f64 = rows
        .chunks(batch_size)
        .map(|rows| f64::from(model.nll(&data.batch(rows)).into_scalar::<f32>()))
        .sum();
    let nll = sum / targets as f64;
    if !nll.is_finite() {
        return Err(Error::Diverged {
            step,
            what: "held-out loss",
            value: nll,
        });
    }
    Ok(Evaluation { step, nll, targets })
}
