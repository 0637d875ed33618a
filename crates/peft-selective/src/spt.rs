//! `SPT`: the elements that the loss is most sensitive to are trained, and a low-rank change in their place where a weight
//! has many of them.

use burn::nn::DropoutConfig;
use peft_core::calibration::CalibrationConfig;
use peft_core::method::prelude::*;

use crate::elements::{Place, integers, share, stored_count, without_statistics};
use crate::low_rank::{DOWN, LowRankChange, UP};
use crate::ranking::largest_of_all;

/// `SPT`'s configuration.
///
/// The sensitivity of an element is the square of its gradient on the user's data:
/// [`attach_on`](peft_core::calibration::Calibrate::attach_on) gathers them when the adapter is attached.
#[method_config(
    SPT, peft_type = "SPT", title = "SPT", family = Selective, identity_at_init, mergeable, new(),
    reference = "He et al. 2023, Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, section 3"
)]
pub struct SptConfig {
    /// The budget: the share of the weights' elements that are chosen, rounded down to a whole number of them.
    #[field(default = 0.005, above = 0.0, at_most = 1.0)]
    pub keep_ratio: f64,
    /// Rank of the low-rank changes.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// They are scaled by `lora_alpha / r`.
    #[field(default = 8.0, finite)]
    pub lora_alpha: f64,
    /// A weight with at least as many chosen elements gets a low-rank change in their place. Default: as many as that has
    /// numbers, `r · (in + out)`, so that the budget holds.
    #[field(at_least = 1)]
    pub threshold: Option<usize>,
    /// Linear layers whose weights take part.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl SptConfig {
    fn low_rank(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> LowRankChange {
        let (r, like, init) = (self.r, target.like(), plan.init());
        LowRankChange {
            down: init.kaiming_uniform([target.d_in, r], target.d_in, like),
            up: init.zeros([r, target.d_out], like),
            dropout: DropoutConfig::new(0.0).init(),
            scale: self.lora_alpha / r as f64,
        }
    }

    /// How many elements of a weight ask for a low-rank change.
    fn threshold(&self, target: &TargetLayer<'_>) -> usize {
        let numbers = self.r.saturating_mul(target.d_in + target.d_out);
        self.threshold.unwrap_or(numbers)
    }

    fn plan_sparse(
        target: &TargetLayer<'_>,
        count: usize,
        layout: &Layout,
        plan: &mut Plan,
        places: Vec<usize>,
    ) {
        let like = (target.like().0, DType::I32);
        let values = plan.init().zeros([count], target.like());
        let indices = plan.init().integers([1, count], like, |_| integers(places));
        let state = Place::of(layout, target.weight).sparse(values, indices);
        plan.adapt_weight(target.weight, state);
    }

    /// The places that are chosen of each weight, in upstream's order.
    fn chosen(&self, targets: &[TargetLayer<'_>], plan: &Plan) -> Result<Vec<Vec<usize>>> {
        let params: Vec<&LayoutParam> = targets.iter().map(|target| target.weight).collect();
        let count = share(&params, ("keep_ratio", self.keep_ratio), &SPT)?;
        let Some(calibration) = plan.calibration() else {
            return Err(without_statistics(SPT.title));
        };
        let scores = params.iter().map(|param| {
            let squares = calibration.gradients(&param.name)?.mean_square::<2>()?;
            Ok(squares.transpose().into_data().iter::<f32>().collect())
        });
        let scores: Vec<Vec<f32>> = scores.collect::<Result<_>>()?;
        Ok(largest_of_all(&scores, count))
    }
}

impl Method for SptConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        if !plan.is_new() {
            for target in &targets {
                let stored = |key| plan.stored_shape(target.layer, key).is_some();
                if stored(DOWN) || stored(UP) {
                    let state = self.low_rank(target, plan);
                    plan.adapt_weight(target.weight, state);
                }
                if let Some(count) = stored_count(target.weight, layout, plan) {
                    Self::plan_sparse(target, count, layout, plan, Vec::new());
                }
            }
            return Ok(());
        }
        let chosen = self.chosen(&targets, plan)?;
        for (target, places) in targets.iter().zip(chosen) {
            if places.len() >= self.threshold(target) {
                let state = self.low_rank(target, plan);
                plan.adapt_weight(target.weight, state);
            } else if !places.is_empty() {
                Self::plan_sparse(target, places.len(), layout, plan, places);
            }
        }
        Ok(())
    }

    fn statistics(&self) -> Option<CalibrationConfig> {
        Some(CalibrationConfig {
            targets: self.targets.clone(),
            squared_gradients: true,
            unreached: true,
            ..CalibrationConfig::default()
        })
    }
}
