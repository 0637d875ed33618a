//! The keys and values of a text, for prefixes that start from it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft_core::calibration::{Calibrate as _, Calibration, CalibrationConfig};
use peft_core::{Error, PeftModule, Result};

/// Runs a model without its adapters on the tokens `ids`, and gives their keys and values in every attention layer.
pub(crate) fn of_text<M: PeftModule>(
    model: &M,
    ids: &[u32],
    run: impl FnOnce(&M, Tensor<2, Int>),
) -> Result<Calibration> {
    if ids.is_empty() {
        return Err(Error::Calibration {
            place: "all layers".to_string(),
            reason: "the text has no token: give at least one".to_string(),
        });
    }
    let wanted = CalibrationConfig::key_values(ids.len());
    let calibrator = model.disable_adapters()?.calibrate(&wanted)?;
    let model = calibrator.model().valid();
    let values: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let data = TensorData::new(values, [1, ids.len()]);
    run(&model, Tensor::from_data(data, &device(&model)));
    calibrator.finish()
}

/// Where the model is.
fn device<M: PeftModule>(model: &M) -> Device {
    model.layout().like().0
}
