//! Statistics of the gradients of parameters.

use burn::tensor::{DType, Gradients, Tensor};

use crate::adapter::any_tensor::{AnyTensor, with_rank};
use crate::error::{Error, Result};
use crate::statistics::refusal::{not_finite, not_gathered};

/// Which statistics of a parameter's gradients are gathered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradientKinds {
    pub(crate) mean: bool,
    pub(crate) mean_square: bool,
}

impl GradientKinds {
    pub(crate) fn any(self) -> bool {
        self.mean || self.mean_square
    }
}

/// Sums over the gradients of one parameter.
#[derive(Debug)]
pub(crate) struct GradientSums {
    kinds: GradientKinds,
    /// Upstream's name of the parameter.
    param: String,
    /// The parameter's tensor in the model that runs: gradients are found by it.
    leaf: AnyTensor,
    /// In how many backward passes the parameter had a gradient.
    seen: usize,
    sum: Option<AnyTensor>,
    sum_squares: Option<AnyTensor>,
}

impl GradientSums {
    pub(crate) fn new(kinds: GradientKinds, param: &str, leaf: AnyTensor) -> Self {
        Self {
            kinds,
            param: param.to_string(),
            leaf,
            seen: 0,
            sum: None,
            sum_squares: None,
        }
    }

    /// Adds the gradient of one backward pass, if the parameter has one there. Says whether it has.
    pub(crate) fn record(&mut self, gradients: &Gradients) -> bool {
        with_rank!(self.leaf.rank(), D => {
            let Some(gradient) = self.leaf.get::<D>().grad(gradients) else {
                return false;
            };
            let gradient: Tensor<D> = gradient.without_autodiff().cast(DType::F32);
            if self.kinds.mean_square {
                add(&mut self.sum_squares, gradient.clone().square());
            }
            if self.kinds.mean {
                add(&mut self.sum, gradient);
            }
        });
        self.seen += 1;
        true
    }

    /// The statistics, over `batches` backward passes. Without a gradient in any of them, they are zeros where `unreached`
    /// says that this may be.
    pub(crate) fn finish(mut self, batches: usize, unreached: bool) -> Result<GradientStatistics> {
        if self.seen == 0 && unreached && batches > 0 {
            with_rank!(self.leaf.rank(), D => {
                let zeros = self.leaf.get::<D>().without_autodiff().zeros_like().cast(DType::F32);
                self.sum = self.kinds.mean.then(|| AnyTensor::new(zeros.clone()));
                self.sum_squares = self.kinds.mean_square.then(|| AnyTensor::new(zeros));
            });
        } else if self.seen == 0 {
            return Err(Error::Calibration {
                place: self.param,
                reason: "no loss had a gradient for this parameter: give `Calibrator::record_gradients` the gradients \
                         of at least one batch, and select only layers that the loss depends on"
                    .to_string(),
            });
        }
        // A batch whose loss does not depend on the parameter has a gradient of zero.
        let mean = |sum: AnyTensor| with_rank!(sum.rank(), D => AnyTensor::new(sum.get::<D>() / batches as f64));
        let statistics = GradientStatistics {
            batches,
            mean: self.sum.map(mean),
            mean_square: self.sum_squares.map(mean),
            param: self.param,
        };
        if statistics.is_finite() {
            Ok(statistics)
        } else {
            Err(not_finite(&statistics.param, "the parameter's gradients"))
        }
    }
}

/// `sum + more`, where the sum may be nothing so far.
fn add<const D: usize>(sum: &mut Option<AnyTensor>, more: Tensor<D>) {
    let more = match sum.take() {
        Some(sum) => sum.get::<D>() + more,
        None => more,
    };
    *sum = Some(AnyTensor::new(more));
}

/// Statistics of the gradients of one parameter, over all backward passes of a
/// [`Calibrator`](crate::calibration::Calibrator).
///
/// Tensors have the parameter's shape as Burn stores it: `[in, out]` for the weight of a linear layer. They are
/// F32, on the parameter's device without autodiff.
#[derive(Clone, Debug)]
pub struct GradientStatistics {
    param: String,
    batches: usize,
    mean: Option<AnyTensor>,
    mean_square: Option<AnyTensor>,
}

impl GradientStatistics {
    /// How many backward passes there were. At least 1.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// The mean of the gradients over the backward passes.
    ///
    /// # Panics
    ///
    /// Unless `D` is the parameter's rank.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for it.
    pub fn mean<const D: usize>(&self) -> Result<Tensor<D>> {
        self.gathered(self.mean.as_ref(), "gradients")
    }

    /// The mean of the squared gradients over the backward passes. If each pass is of one example, and the loss is
    /// its negative log likelihood, this is the diagonal of the empirical Fisher information.
    ///
    /// # Panics
    ///
    /// Unless `D` is the parameter's rank.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if the configuration did not ask for it.
    pub fn mean_square<const D: usize>(&self) -> Result<Tensor<D>> {
        self.gathered(self.mean_square.as_ref(), "squared_gradients")
    }

    fn gathered<const D: usize>(
        &self,
        statistic: Option<&AnyTensor>,
        ask: &str,
    ) -> Result<Tensor<D>> {
        statistic
            .map(AnyTensor::get)
            .ok_or_else(|| not_gathered(&self.param, ask))
    }

    fn is_finite(&self) -> bool {
        let all = [self.mean.as_ref(), self.mean_square.as_ref()];
        all.into_iter().flatten().all(AnyTensor::is_finite)
    }
}
