//! What a calibration found, by layer and parameter.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::error::{Error, Result, listing};
use crate::statistics::gradients::GradientStatistics;
use crate::statistics::inputs::InputStatistics;

/// Statistics of layers' inputs and parameters' gradients, from a [`Calibrator`](crate::calibration::Calibrator).
///
/// A method reads them while it plans, from [`Plan::calibration`](crate::method::Plan::calibration). Copies share
/// their tensors.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    pub(crate) inputs: BTreeMap<String, InputStatistics>,
    pub(crate) gradients: BTreeMap<String, GradientStatistics>,
    /// Keys and values side by side, by site.
    pub(crate) key_values: BTreeMap<String, InputStatistics>,
}

impl Calibration {
    /// The statistics of the inputs of the layer with this upstream name, as in `encoder.layer.0.attention.self.query`.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if none were gathered there.
    pub fn inputs(&self, layer: &str) -> Result<&InputStatistics> {
        let known = self.inputs.keys();
        let found = self.inputs.get(layer);
        found.ok_or_else(|| unknown(layer, "inputs", known))
    }

    /// The statistics of the gradients of the parameter with this upstream name, as in
    /// `encoder.layer.0.attention.self.query.weight`.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if none were gathered there.
    pub fn gradients(&self, param: &str) -> Result<&GradientStatistics> {
        let known = self.gradients.keys();
        let found = self.gradients.get(param);
        found.ok_or_else(|| unknown(param, "gradients", known))
    }

    /// Keys and values of the first tokens of a text at the [`KeyValueSite`](crate::KeyValueSite) with this upstream name,
    /// as in `encoder.layer.0.attention.self`: each `[tokens, kv_heads · head_dim]`, in the order of the text, F32, on the
    /// model's device without autodiff. `None` where keys and values were gathered nowhere.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if they were gathered elsewhere and not there.
    pub fn key_values(&self, site: &str) -> Result<Option<(Tensor<2>, Tensor<2>)>> {
        if self.key_values.is_empty() {
            return Ok(None);
        }
        let found = self.key_values.get(site);
        let found = found.ok_or_else(|| {
            let known = self.key_values.keys();
            unknown(site, "keys and values", known)
        })?;
        let both = found.samples()?;
        let width = both.dims()[1] / 2;
        let half = |from| both.clone().narrow(1, from, width);
        Ok(Some((half(0), half(width))))
    }
}

fn unknown<'a>(place: &str, what: &str, known: impl Iterator<Item = &'a String>) -> Error {
    let known = listing(known.cloned());
    let known = if known.is_empty() {
        "none".to_string()
    } else {
        format!("\n{known}")
    };
    Error::Calibration {
        place: place.to_string(),
        reason: format!("no statistics of {what} were gathered here. Gathered: {known}"),
    }
}
