//! A step of AdamW in place.

use rayon::prelude::*;

use crate::options::AdamWOptions;

/// Elements that a task changes.
const TASK: usize = 1 << 14;

/// Changes a parameter and its moments, in the order in which Burn computes: the same bits.
pub(crate) fn step(
    parameter: &mut [f32],
    gradient: &[f32],
    [first, second]: [&mut [f32]; 2],
    options: AdamWOptions,
) {
    let AdamWOptions { beta_1, beta_2, .. } = options;
    let (fresh_1, fresh_2) = (1.0 - beta_1, 1.0 - beta_2);
    let [correction_1, correction_2] = options.corrections();
    let (kept, rate) = (options.kept() as f32, options.rate as f32);
    let change = |parameter: &mut [f32], gradient: &[f32], moments: [&mut [f32]; 2]| {
        let [first, second] = moments;
        for (((p, g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            *m = *m * beta_1 + g * fresh_1;
            *v = *v * beta_2 + g * g * fresh_2;
            let delta = (*m / correction_1) / ((*v / correction_2).sqrt() + options.epsilon);
            *p = *p * kept - delta * rate;
        }
    };
    if parameter.len() <= TASK {
        change(parameter, gradient, [first, second]);
        return;
    }
    parameter
        .par_chunks_mut(TASK)
        .zip(gradient.par_chunks(TASK))
        .zip(first.par_chunks_mut(TASK))
        .zip(second.par_chunks_mut(TASK))
        .for_each(|(((parameter, gradient), first), second)| {
            change(parameter, gradient, [first, second]);
        });
}
