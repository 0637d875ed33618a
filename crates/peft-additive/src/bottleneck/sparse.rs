//! SparseAdapter: most weights are pruned before training, and stay so.

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::method::{Init, MethodHooks, States};

use super::fields::Pruning;
use super::projection::{Dense, Projection};
use super::state::Bottleneck;

/// The weights of Down and Up.
fn layers(state: &Bottleneck) -> impl Iterator<Item = &Dense> {
    let both = [&state.down, &state.up].into_iter();
    both.filter_map(|projection| match projection {
        Projection::Dense(dense) => Some(dense),
        Projection::Phm(_) => None,
    })
}

fn layers_mut(state: &mut Bottleneck) -> impl Iterator<Item = &mut Dense> {
    let both = [&mut state.down, &mut state.up].into_iter();
    both.filter_map(|projection| match projection {
        Projection::Dense(dense) => Some(dense),
        Projection::Phm(_) => None,
    })
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Which of some matrices' elements are kept: those of the highest scores over all of them. NaN counts as the least.
fn kept(scores: &[Vec<f32>], sparsity: f64) -> Vec<Vec<bool>> {
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (matrix, scores) in scores.iter().enumerate() {
        order.extend((0..scores.len()).map(|element| (matrix, element)));
    }
    let score = |&(matrix, element): &(usize, usize)| {
        let score = scores[matrix][element];
        if score.is_nan() {
            f32::NEG_INFINITY
        } else {
            score
        }
    };
    let pruned = (order.len() as f64 * sparsity).round() as usize;
    order.sort_by(|a, b| score(a).total_cmp(&score(b)));
    let mut kept: Vec<Vec<bool>> = scores.iter().map(|one| vec![true; one.len()]).collect();
    for (matrix, element) in order.into_iter().take(pruned) {
        kept[matrix][element] = false;
    }
    kept
}

/// 1 for what is kept, 0 for the others, of the shape of `like` and where that is.
fn mask(kept: &[bool], like: &Tensor<2>) -> Tensor<2> {
    let mask: Vec<f32> = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
    let mask = TensorData::new(mask, like.dims());
    Tensor::from_data(mask, (&like.device(), like.dtype()))
}

/// Sets what is not kept to 0. The parameter keeps its id.
fn prune(layer: &mut Dense, kept: &[bool]) {
    layer.weight = layer.weight.clone().map(|weight| {
        let mask = mask(kept, &weight);
        let is_trained = weight.is_require_grad();
        let pruned = (weight.detach() * mask).detach();
        if is_trained {
            pruned.require_grad()
        } else {
            pruned
        }
    });
}

/// Prunes fresh adapters, by what their initial values tell.
pub(crate) fn prune_fresh(
    states: &mut [&mut Bottleneck],
    pruning: Pruning,
    sparsity: f64,
    init: &mut Init,
) {
    let score = |layer: &Dense, init: &mut Init| match pruning {
        Pruning::Magnitude => values(layer.weight.val().abs()),
        Pruning::Random => {
            let weight = layer.weight.val();
            let like = (&weight.device(), burn::tensor::DType::F32);
            values(init.uniform(weight.dims(), 1.0, like).val())
        }
        Pruning::Snip => unreachable!("needs gradients"),
    };
    let mut scores = Vec::new();
    for state in &*states {
        scores.extend(layers(state).map(|layer| score(layer, init)));
    }
    let mut kept = kept(&scores, sparsity).into_iter();
    for layer in states.iter_mut().flat_map(|state| layers_mut(state)) {
        if let Some(kept) = kept.next() {
            prune(layer, &kept);
        }
    }
}

/// Whether adapters are pruned already: they come from a file, or a training goes on.
pub(crate) fn is_pruned(states: &States) -> bool {
    let mut all = states
        .of::<Bottleneck>()
        .flat_map(|(_, state)| layers(state));
    all.any(|layer| values(layer.weight.val()).contains(&0.0))
}

/// The states that take part in a forward pass. Gradients tell nothing of those that were dropped.
fn used(states: &States) -> impl Iterator<Item = &Bottleneck> {
    let all = states.of::<Bottleneck>().map(|(_, state)| state);
    all.filter(|state| !state.skip.always)
}

/// Prunes by the gradients of the first step (Lee et al. 2019, SNIP, section 4). Adapters that were dropped for good stay
/// as they are.
#[derive(Debug)]
pub(crate) struct SnipSchedule {
    sparsity: f64,
    /// Of each matrix, from the first step's gradients until the step is made.
    kept: Option<Vec<Vec<bool>>>,
}

impl SnipSchedule {
    pub(crate) fn new(sparsity: f64) -> Self {
        Self {
            sparsity,
            kept: None,
        }
    }
}

impl MethodHooks for SnipSchedule {
    fn before_step(&mut self, step: usize, states: &States, gradients: &mut GradientsParams) {
        if step != 1 {
            return;
        }
        let layers: Vec<&Dense> = used(states).flat_map(layers).collect();
        let scores: Vec<Vec<f32>> = layers
            .iter()
            .map(|layer| {
                let weight = &layer.weight;
                let value = weight.val();
                match gradients.get::<2>(weight.id) {
                    Some(gradient) => values((value.inner() * gradient).abs()),
                    // What no gradient reaches is worth nothing.
                    None => vec![0.0; value.shape().num_elements()],
                }
            })
            .collect();
        let kept = kept(&scores, self.sparsity);
        // Without the others' gradients: an optimizer's moments would move them on when they are 0.
        for (layer, kept) in layers.iter().zip(&kept) {
            if let Some(gradient) = gradients.remove::<2>(layer.weight.id) {
                let gradient = gradient * mask(kept, &layer.weight.val().inner());
                gradients.register(layer.weight.id, gradient);
            }
        }
        self.kept = Some(kept);
    }

    fn after_step(&mut self, _step: usize, states: &mut States) {
        let Some(kept) = self.kept.take() else {
            return;
        };
        let mut kept = kept.into_iter();
        states.edit::<Bottleneck>(|_, state| {
            if state.skip.always {
                return;
            }
            for layer in layers_mut(state) {
                if let Some(kept) = kept.next() {
                    prune(layer, &kept);
                }
            }
        });
    }
}
