//! `FishMask`: the elements of the model with the largest Fisher information are trained.

use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor};
use peft_core::Result;
use peft_core::calibration::CalibrationConfig;
use peft_core::method::{Common, Init, Layout, LayoutParam, Method, Plan, Targets, method_config};

use crate::elements::{
    candidates, every_layer, in_upstreams_order, of_rank, plan_largest, plan_stored, share,
    without_statistics,
};

/// `FishMask`'s configuration.
///
/// The mask is chosen when the adapter is attached, from squared gradients of the user's data:
/// [`attach_on`](peft_core::calibration::Calibrate::attach_on) gathers them. With labels of the data that is the empirical
/// Fisher information; with [`drawn_labels`] it is the Fisher information itself.
#[method_config(
    FISH_MASK, peft_type = "FISHMASK", title = "FishMask", family = Selective, identity_at_init, mergeable, new(),
    reference = "Sung et al. 2021, Training Neural Networks with Fixed Sparse Masks, section 3"
)]
pub struct FishMaskConfig {
    /// Share of all elements that train, rounded down to a whole number of them. The authors' code calls it so.
    #[field(default = 0.005, above = 0.0, at_most = 1.0)]
    pub keep_ratio: f64,
    /// Layers whose parameters take part, of whatever kind. Default: all but the head.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl Method for FishMaskConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if !plan.is_new() {
            plan_stored(layout, plan);
            return Ok(());
        }
        let params = candidates(&self.targets, layout, plan, &FISH_MASK)?;
        let count = share(&params, ("keep_ratio", self.keep_ratio), &FISH_MASK)?;
        let Some(calibration) = plan.calibration().cloned() else {
            return Err(without_statistics(FISH_MASK.title));
        };
        plan_largest(&params, count, layout, plan, |param: &LayoutParam| {
            let statistics = calibration.gradients(&param.name)?;
            of_rank!(param, D => {
                let squares = statistics.mean_square::<D>()?;
                Ok(in_upstreams_order(layout, param, squares))
            })
        })
    }

    fn statistics(&self) -> Option<CalibrationConfig> {
        let mut targets = self.targets.clone();
        targets.target_modules.get_or_insert_with(every_layer);
        Some(CalibrationConfig {
            targets,
            squared_gradients: true,
            unreached: true,
            ..CalibrationConfig::default()
        })
    }
}

/// Labels drawn from a model's own prediction: of each row of `logits` `[rows, classes]` one class, with the probability
/// that the softmax of the row says. Squared gradients of their negative log likelihood are the Fisher information, where
/// those of the data's labels are the empirical one.
///
/// ```no_run
/// # use burn::tensor::{Tensor, activation::log_softmax};
/// # use peft_core::{PeftModule, Result, calibration::Calibrate as _, method::Init};
/// # use peft_selective::{FishMaskConfig, drawn_labels};
/// # fn f<M: PeftModule>(model: &M, rows: Vec<()>, logits_of: impl Fn(&M, ()) -> Tensor<2>) -> Result<M> {
/// let mut init = Init::new(7);
/// model.attach_on("mine", &FishMaskConfig::new(), rows, |model, row| {
///     let logits = logits_of(model, row); // [1, classes]
///     let label = drawn_labels(&logits, &mut init)[0];
///     -log_softmax(logits, 1).slice([0..1, label..label + 1]).reshape([1])
/// })
/// # }
/// ```
pub fn drawn_labels(logits: &Tensor<2>, init: &mut Init) -> Vec<usize> {
    let [rows, classes] = logits.dims();
    let logits = logits.clone().without_autodiff();
    let device = logits.device();
    let shares: Vec<f64> = softmax(logits, 1).into_data().iter::<f64>().collect();
    let drawn = init.uniform([rows], 0.5, (&device, DType::F32)).val();
    let drawn = drawn.into_data().iter::<f64>().collect::<Vec<f64>>();
    let of_row = |(shares, drawn): (&[f64], f64)| {
        let mut left = drawn + 0.5;
        let below = |share: &f64| {
            left -= share;
            left < 0.0
        };
        // Rounding may leave nothing to the last class that it could have.
        shares.iter().position(below).unwrap_or(classes - 1)
    };
    shares
        .chunks(classes.max(1))
        .zip(drawn)
        .map(of_row)
        .collect()
}
