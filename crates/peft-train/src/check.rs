//! What is checked before the first step of a run.

use crate::data::Dataset;
use crate::model::CausalLm;
use crate::plan::Plan;
use crate::{Error, Result, TrainConfig, trained};

/// Whether `model` can be trained so on these data.
pub(crate) fn check<M: CausalLm>(
    config: &TrainConfig,
    model: &M,
    data: &Dataset,
    held_out: Option<&Dataset>,
) -> Result<()> {
    for (data, what) in [(Some(data), "training"), (held_out, "held-out")] {
        let Some(data) = data else {
            continue;
        };
        if data.is_empty() {
            return Err(Error::NoTargets { what });
        }
        data.fits(model, what)?;
    }
    let adapters = model.adapters();
    if !adapters.is_empty() && model.counts().trainable == 0 {
        return Err(Error::NotActive { adapters });
    }
    if trained::count(model) == 0 {
        return Err(Error::NothingToTrain);
    }
    settings(config, held_out.is_some())?;
    if config.gradient_checkpointing && !model.has_checkpointing() {
        return Err(refused(
            "gradient_checkpointing",
            "true".into(),
            "false, as this model has none of its own; build it on \
             `device.autodiff().gradient_checkpointing()` for Burn's",
        ));
    }
    if let Some(weight) = config.consistency_weight {
        let refuse = |expected| Err(refused("consistency_weight", weight.to_string(), expected));
        if config.gradient_checkpointing {
            return refuse("left out with `gradient_checkpointing`");
        }
        if !model.has_logits() {
            return refuse("left out, as this model gives no logits");
        }
    }
    let steps = Plan::new(config, data.len()).steps;
    let warmup = config.warmup.steps(steps);
    if warmup >= steps {
        let found = format!("{warmup} of the run's {steps} steps");
        return Err(refused("warmup", found, "fewer steps than all"));
    }
    Ok(())
}

/// Settings that are about held-out data.
fn settings(config: &TrainConfig, held_out: bool) -> Result<()> {
    if let Some(patience) = config.early_stopping_patience
        && !(held_out && config.eval_every.is_some())
    {
        return Err(refused(
            "early_stopping_patience",
            patience.to_string(),
            "used with held-out data and `eval_every`",
        ));
    }
    if config.keep_best && !held_out {
        let expected = "used with held-out data";
        return Err(refused("keep_best", "true".into(), expected));
    }
    Ok(())
}

fn refused(field: &'static str, found: String, expected: &'static str) -> Error {
    Error::Config {
        field,
        found,
        expected,
    }
}
