//! What DEFT does in a training loop: a basis vector that turns round takes its part of R along.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{MethodHooks, States};

use crate::math::qr::signs;
use crate::weight_aware::deft_state::DeftLinear;

/// Householder's method, which upstream's files go by, chooses the signs of Q by single elements of P. Where such an element
/// changes its sign in a step, a column of Q turns round, and `R Qᵀ` jumps. Here the column of R turns round as well.
#[derive(Debug, Default)]
pub(crate) struct DeftSchedule {
    /// Of the columns of Q before the step, by layer.
    before: BTreeMap<String, Vec<bool>>,
}

impl MethodHooks for DeftSchedule {
    fn before_step(&mut self, _step: usize, states: &States, _gradients: &mut GradientsParams) {
        let states = states.of::<DeftLinear>();
        self.before = states
            .map(|(place, state)| (place.to_string(), signs(state.deft_p.val())))
            .collect();
    }

    fn after_step(&mut self, _step: usize, states: &mut States) {
        let mut turned = BTreeMap::new();
        for (place, state) in states.of::<DeftLinear>() {
            let now = signs(state.deft_p.val());
            if let Some(before) = self.before.remove(place)
                && before != now
            {
                let factors = before.iter().zip(&now);
                let factors: Vec<f32> = factors
                    .map(|(before, now)| if before == now { 1.0 } else { -1.0 })
                    .collect();
                turned.insert(place.to_string(), factors);
            }
        }
        if turned.is_empty() {
            return;
        }
        states.edit::<DeftLinear>(|place, state| {
            let (Some(factors), Some(r)) = (turned.get(place), state.deft_r.take()) else {
                return;
            };
            let factors = TensorData::new(factors.clone(), [1, factors.len()]);
            let turned = r.map(|value| {
                let like = (&value.device(), value.dtype());
                let factors = Tensor::<2>::from_data(factors, like);
                (value.detach() * factors).detach().require_grad()
            });
            state.deft_r = Some(turned);
        });
    }
}
