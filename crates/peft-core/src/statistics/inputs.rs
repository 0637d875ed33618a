//! Statistics of what linear layers see.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Tensor};

use crate::error::{Error, Result};
use crate::statistics::refusal::{not_finite, not_gathered};

/// Which statistics of a layer's inputs are gathered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InputKinds {
    pub(crate) second_moment: bool,
    pub(crate) means: bool,
    /// How many inputs are kept as they are, at most.
    pub(crate) samples: usize,
}

impl InputKinds {
    pub(crate) fn any(self) -> bool {
        self.second_moment || self.means || self.samples > 0
    }
}

/// Sums over the inputs of one layer.
#[derive(Debug, Default)]
struct Sums {
    rows: usize,
    second_moment: Option<Tensor<2>>,
    sum: Option<Tensor<1>>,
    sum_abs: Option<Tensor<1>>,
    samples: Option<Tensor<2>>,
}

/// Gathers what one linear layer sees. The layer's forward pass calls [`record`](Self::record).
#[derive(Debug)]
pub(crate) struct InputRecorder {
    kinds: InputKinds,
    sums: Mutex<Sums>,
}

impl InputRecorder {
    pub(crate) fn new(kinds: InputKinds) -> Self {
        Self {
            kinds,
            sums: Mutex::default(),
        }
    }

    /// Adds inputs `[rows, in]` to the sums. No gradient goes through them.
    pub(crate) fn record(&self, input: Tensor<2>) {
        let input = input.without_autodiff().cast(DType::F32);
        let [rows, width] = input.dims();
        let kinds = self.kinds;
        let second_moment = kinds
            .second_moment
            .then(|| input.clone().transpose().matmul(input.clone()));
        let column_sums = |input: Tensor<2>| input.sum_dim(0).reshape([width]);
        let means = kinds
            .means
            .then(|| (column_sums(input.clone()), column_sums(input.clone().abs())));
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.rows += rows;
        if let Some(second_moment) = second_moment {
            add(&mut sums.second_moment, second_moment);
        }
        if let Some((sum, sum_abs)) = means {
            add(&mut sums.sum, sum);
            add(&mut sums.sum_abs, sum_abs);
        }
        let kept = sums.samples.as_ref().map_or(0, |kept| kept.dims()[0]);
        let more = rows.min(kinds.samples.saturating_sub(kept));
        if more > 0 {
            let more = input.slice([0..more, 0..width]);
            sums.samples = Some(match sums.samples.take() {
                Some(kept) => {
                    let more = more.to_device(&kept.device());
                    Tensor::cat(vec![kept, more], 0)
                }
                None => more,
            });
        }
    }

    /// The statistics of the layer called `layer`.
    pub(crate) fn finish(&self, layer: &str) -> Result<InputStatistics> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.rows == 0 {
            return Err(Error::Calibration {
                place: layer.to_string(),
                reason: "the layer saw no input: run the calibrator's model on at least one batch, and call the layer \
                         through `peft_core::nn::AdaptedForward`"
                    .to_string(),
            });
        }
        let rows = sums.rows as f64;
        let mean = |sum: &Option<Tensor<1>>| sum.clone().map(|sum| sum / rows);
        let statistics = InputStatistics {
            layer: layer.to_string(),
            rows: sums.rows,
            second_moment: sums.second_moment.clone().map(|sum| sum / rows),
            mean: mean(&sums.sum),
            mean_abs: mean(&sums.sum_abs),
            samples: sums.samples.clone(),
        };
        if statistics.is_finite() {
            Ok(statistics)
        } else {
            Err(not_finite(layer, "the layer's inputs"))
        }
    }
}

/// `sum + more`, where the sum may be nothing so far.
fn add<const D: usize>(sum: &mut Option<Tensor<D>>, more: Tensor<D>) {
    *sum = Some(match sum.take() {
        Some(sum) => {
            let more = more.to_device(&sum.device());
            sum + more
        }
        None => more,
    });
}

fn finite<const D: usize>(tensor: Option<&Tensor<D>>) -> bool {
    tensor.is_none_or(|tensor| tensor.clone().is_finite().all().into_scalar::<bool>())
}

/// Statistics of the inputs of one linear layer, over all batches of a
/// [`Calibrator`](crate::calibration::Calibrator).
///
/// An input is one row: the `in` features of one token. Padding tokens count as every other token does.
/// Tensors are F32, on the layer's device without autodiff.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    layer: String,
    rows: usize,
    second_moment: Option<Tensor<2>>,
    mean: Option<Tensor<1>>,
    mean_abs: Option<Tensor<1>>,
    samples: Option<Tensor<2>>,
}

impl InputStatistics {
    /// How many inputs the layer saw. At least 1.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The mean of xᵀx over the inputs x, `[in, in]`. Its eigenvectors are the right singular vectors of all inputs
    /// as one matrix (EVA); it is also the matrix that `CorDA` and GPTQ start from.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for it.
    pub fn second_moment(&self) -> Result<Tensor<2>> {
        self.gathered(self.second_moment.as_ref(), "second_moments")
    }

    /// The mean of each feature, `[in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for it.
    pub fn mean(&self) -> Result<Tensor<1>> {
        self.gathered(self.mean.as_ref(), "means")
    }

    /// The mean of the absolute value of each feature, `[in]`.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for it.
    pub fn mean_abs(&self) -> Result<Tensor<1>> {
        self.gathered(self.mean_abs.as_ref(), "means")
    }

    /// The first inputs as they were, `[rows, in]`: as many as the configuration asked for, or fewer if the layer
    /// saw fewer.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for them.
    pub fn samples(&self) -> Result<Tensor<2>> {
        self.gathered(self.samples.as_ref(), "samples")
    }

    fn gathered<const D: usize>(
        &self,
        statistic: Option<&Tensor<D>>,
        ask: &str,
    ) -> Result<Tensor<D>> {
        statistic
            .cloned()
            .ok_or_else(|| not_gathered(&self.layer, ask))
    }

    fn is_finite(&self) -> bool {
        finite(self.second_moment.as_ref())
            && finite(self.mean.as_ref())
            && finite(self.mean_abs.as_ref())
            && finite(self.samples.as_ref())
    }
}
