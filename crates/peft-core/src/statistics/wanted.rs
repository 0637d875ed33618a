//! Which statistics are gathered.

use crate::layout::targets::{Selection, Targets};
use crate::statistics::gradients::GradientKinds;
use crate::statistics::inputs::InputKinds;

/// Which statistics a [`Calibrator`](crate::calibration::Calibrator) gathers, of which layers. By default it gathers none: ask for at least one.
///
/// Statistics are F32 tensors on the device of the layer. They stay in memory until the [`Calibration`](crate::calibration::Calibration) is dropped. For
/// each selected layer with `in` input features, and for each of its parameters with `n` elements, they take:
///
/// | field | used by | bytes |
/// |---|---|---|
/// | `second_moments` | EVA, `CorDA`, GPTQ | 4 · in² |
/// | `means` | AWQ | 8 · in |
/// | `samples` | methods that fit a layer's outputs | 4 · in · rows; at most the inputs of one batch more |
/// | `gradients` | LoRA-GA, SHiRA | 4 · n |
/// | `squared_gradients` | `FishMask` | 4 · n |
///
/// Keys and values of attention layers are asked for by [`key_values`](Self::key_values), for prefixes that start from a
/// text. With `kv` features of keys they take 8 · kv · tokens for each layer.
///
/// The number of batches changes nothing. While a batch runs, the second moment takes its bytes once more for one
/// layer; while a loss is differentiated, each selected parameter has its gradient in memory.
///
/// Inputs are recorded of linear layers and of heads that are tables ([`TiedHead`](crate::TiedHead)). The model must
/// call them through [`AdaptedForward`](crate::nn::AdaptedForward). Gradients are recorded of all parameters of the
/// selected layers, of whatever kind.
///
/// ```
/// # use peft_core::calibration::CalibrationConfig;
/// let wanted = CalibrationConfig {
///     second_moments: true,
///     ..CalibrationConfig::new(["query", "value"])
/// };
/// ```
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each statistic is asked for by itself"
)]
pub struct CalibrationConfig {
    /// The layers. Default: `all-linear`.
    pub targets: Targets,
    /// The second moment of each layer's inputs.
    pub second_moments: bool,
    /// The mean and the mean absolute value of each input feature.
    pub means: bool,
    /// How many inputs of each layer are kept as they are: the first ones. An input is one token. Default: 0.
    pub samples: usize,
    /// The mean gradient of each parameter.
    pub gradients: bool,
    /// The mean squared gradient of each parameter.
    pub squared_gradients: bool,
    /// Whether a parameter that no loss depends on counts as one with gradients of zero, and a tied head, which has no
    /// parameter of its own, is left out. Otherwise both are refused.
    pub unreached: bool,
    /// How many tokens' keys and values are kept of each attention layer: the first ones. Default: 0.
    pub key_values: usize,
}

impl CalibrationConfig {
    /// The keys and values of the first `tokens` tokens in every attention layer, at the model's
    /// [`KeyValueSite`](crate::KeyValueSite)s, and nothing else: as they are attended to, rotated where the model rotates
    /// by position. Run the calibrator's model on one row without padding: padding counts as any token does, and the
    /// tokens of several rows follow one another.
    pub fn key_values(tokens: usize) -> Self {
        Self {
            key_values: tokens,
            ..Self::default()
        }
    }

    /// No statistics yet, of these layers: a list of names, one regular expression, or `all-linear`, as in
    /// [`Targets::target_modules`].
    pub fn new(layers: impl Into<Selection>) -> Self {
        Self {
            targets: Targets::new(layers),
            ..Self::default()
        }
    }

    pub(crate) fn input_kinds(&self) -> InputKinds {
        InputKinds {
            second_moment: self.second_moments,
            means: self.means,
            samples: self.samples,
        }
    }

    pub(crate) fn gradient_kinds(&self) -> GradientKinds {
        GradientKinds {
            mean: self.gradients,
            mean_square: self.squared_gradients,
        }
    }
}
