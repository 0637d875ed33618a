//! Masks: which elements of a weight are trained.

use std::sync::Arc;

use burn::tensor::{Bool, Tensor, TensorData};
use peft_core::Result;
use peft_core::calibration::Calibration;

use crate::ranking::ranked;

/// What a mask is chosen from.
#[derive(Debug)]
pub struct MaskContext<'a> {
    /// Upstream's name of the weight, as in `encoder.layer.0.attention.self.query.weight`.
    pub name: &'a str,
    /// The weight, `[in, out]`.
    pub weight: Tensor<2>,
    /// How many elements the mask must have.
    pub count: usize,
    /// The statistics that the user gathered, if the adapter is attached with some.
    pub calibration: Option<&'a Calibration>,
}

type Choose = dyn Fn(&MaskContext<'_>) -> Result<Tensor<2, Bool>> + Send + Sync;

/// A function that chooses a mask of the weight's shape `[in, out]`: true where an element is trained, at
/// [`count`](MaskContext::count) places.
#[derive(Clone)]
pub struct MaskFn(Arc<Choose>);

impl MaskFn {
    /// From a function.
    pub fn new(
        choose: impl Fn(&MaskContext<'_>) -> Result<Tensor<2, Bool>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(choose))
    }

    /// The elements that are largest in magnitude: `SHiRA-WM`.
    pub fn magnitude() -> Self {
        Self::new(|context| Ok(largest(context.weight.clone().abs(), context.count)))
    }

    /// The elements with the largest gradients on the user's data, by the mean of their squares: `SHiRA-Grad`. Attach the
    /// adapter with a calibration of `squared_gradients`.
    pub fn gradient() -> Self {
        Self::new(|context| {
            let gradients = mean_squares(context)?;
            Ok(largest(gradients, context.count))
        })
    }

    /// The elements whose magnitude times that of their gradient is largest: `SHiRA-SNIP`. Attach the adapter with a
    /// calibration of `squared_gradients`.
    pub fn snip() -> Self {
        Self::new(|context| {
            let gradients = mean_squares(context)?.sqrt();
            Ok(largest(
                gradients * context.weight.clone().abs(),
                context.count,
            ))
        })
    }

    /// The diagonal, and whole outputs besides, evenly spaced, the last of them in part: `SHiRA-Struct`. A weight that is not
    /// square has the diagonal of its largest square.
    pub fn structured() -> Self {
        Self::new(|context| {
            let [inputs, outputs] = context.weight.dims();
            let mut mask = vec![false; inputs * outputs];
            let mut left = context.count;
            let mut choose = |place: usize| {
                if left > 0 && !std::mem::replace(&mut mask[place], true) {
                    left -= 1;
                }
            };
            (0..inputs.min(outputs)).for_each(|at| choose(at * outputs + at));
            let rest = context.count.saturating_sub(inputs.min(outputs));
            // Of each output all inputs but the diagonal's are new.
            let whole = rest.div_ceil(inputs.saturating_sub(1).max(1)).min(outputs);
            for at in 0..whole {
                let output = at * outputs / whole;
                (0..inputs).for_each(|input| choose(input * outputs + output));
            }
            // Outputs without a diagonal need fewer; a count of nearly all needs what is left.
            (0..inputs * outputs).for_each(choose);
            let data = TensorData::new(mask, [inputs, outputs]);
            Ok(Tensor::from_data(data, &context.weight.device()))
        })
    }

    /// The mask that SHiRA's `mask_type` calls so: `magnitude`, `gradient`, `snip` or `structured`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "magnitude" => Some(Self::magnitude()),
            "gradient" => Some(Self::gradient()),
            "snip" => Some(Self::snip()),
            "structured" => Some(Self::structured()),
            _ => None,
        }
    }

    /// Chooses.
    ///
    /// # Errors
    ///
    /// What the function refuses.
    pub fn choose(&self, context: &MaskContext<'_>) -> Result<Tensor<2, Bool>> {
        (self.0)(context)
    }
}

impl std::fmt::Debug for MaskFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaskFn")
    }
}

impl PartialEq for MaskFn {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn mean_squares(context: &MaskContext<'_>) -> Result<Tensor<2>> {
    match context.calibration {
        Some(calibration) => calibration.gradients(context.name)?.mean_square(),
        None => Err(peft_core::Error::config(
            "A mask by gradients",
            "mask_fn",
            "no statistics",
            "attach the adapter by `attach_with`, with a calibration of squared_gradients",
        )),
    }
}

/// The places of the `count` largest of `scores`. Of equal ones the first are taken.
pub fn largest(scores: Tensor<2>, count: usize) -> Tensor<2, Bool> {
    let (shape, device) = (scores.dims(), scores.device());
    let scores: Vec<f32> = scores.into_data().iter::<f32>().collect();
    let mut mask = vec![false; scores.len()];
    for place in ranked(&scores, count) {
        mask[place] = true;
    }
    Tensor::from_data(TensorData::new(mask, shape), &device)
}

/// The places where a mask `[in, out]` is true, as upstream has them: row by row of its transpose.
pub(crate) fn places(mask: Tensor<2, Bool>) -> Vec<usize> {
    let [inputs, outputs] = mask.dims();
    let mask: Vec<i64> = mask.int().into_data().iter::<i64>().collect();
    let of_output = |output: usize| (0..inputs).map(move |input| input * outputs + output);
    (0..outputs)
        .flat_map(of_output)
        .filter(|place| mask[*place] != 0)
        .collect()
}

/// Places in the flattened weight `[in, out]` as a file has them: outputs, then inputs.
pub(crate) fn coordinates(places: &[usize], outputs: usize) -> Vec<i64> {
    let output = places.iter().map(|place| (place % outputs) as i64);
    output
        .chain(places.iter().map(|place| (place / outputs) as i64))
        .collect()
}
