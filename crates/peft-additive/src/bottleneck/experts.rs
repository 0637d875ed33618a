//! AdaMix: several pairs of projections, of which training takes some at random.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use peft_core::method::{CheckpointKey, Init};
use peft_core::ops::linear;

use super::fields::{BottleneckInit, ExpertSharing};
use super::projection::Dense;

/// What one more expert has of its own; the other projection is the first expert's.
#[derive(Module, Debug)]
pub struct Expert {
    /// Down.
    pub down: Option<Dense>,
    /// Up.
    pub up: Option<Dense>,
}

impl Expert {
    pub(crate) fn new(
        shapes: [[usize; 2]; 2],
        sharing: ExpertSharing,
        how: BottleneckInit,
        init: &mut Init,
        like: (&Device, DType),
    ) -> Self {
        let [down, up] = shapes;
        let own = |shared| sharing != shared;
        Self {
            down: own(ExpertSharing::Down)
                .then(|| Dense::of_bottleneck(down, how, false, init, like)),
            up: own(ExpertSharing::Up).then(|| Dense::of_bottleneck(up, how, true, init, like)),
        }
    }

    /// The tensors of the expert with this index behind the first.
    pub(crate) fn tensors(&self, index: usize, down: &str) -> Vec<CheckpointKey> {
        let number = index + 1;
        let of = |part: Option<&Dense>, field: &str, key: &str| {
            let field = format!("experts.{index}.{field}");
            let tensors = part.map(|_| Dense::tensors(&field, &format!("experts.{number}.{key}")));
            tensors.unwrap_or_default()
        };
        let mut tensors = of(self.down.as_ref(), "down", down);
        tensors.extend(of(self.up.as_ref(), "up", "adapter_up"));
        tensors
    }
}

/// A layer that is computed from several.
pub(crate) struct Mixed {
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Mixed {
    pub(crate) fn forward(self, x: Tensor<3>) -> Tensor<3> {
        linear(x, self.weight, Some(self.bias), None)
    }

    pub(crate) fn into_dense(self) -> Dense {
        Dense {
            weight: Param::from_tensor(self.weight),
            bias: Param::from_tensor(self.bias),
        }
    }
}

/// One of some layers, at random, on an autodiff device; the average of all elsewhere.
///
/// It is a sum with factors of 1 and 0, so that no value comes to the host, and every layer has a gradient.
fn mix(layers: &[&Dense]) -> Mixed {
    let [first, ..] = layers else {
        unreachable!("there is a first expert")
    };
    if layers.len() == 1 {
        return Mixed {
            weight: first.weight.val(),
            bias: first.bias.val(),
        };
    }
    let weight = first.weight.val();
    let (device, dtype, count) = (weight.device(), weight.dtype(), layers.len());
    let factors: Tensor<1> = if weight.is_autodiff() {
        let plain = device.clone().without_autodiff();
        let range = Distribution::Uniform(0.0, count as f64);
        let drawn = Tensor::<1>::random([1], range, (&plain, DType::F32));
        let places = Tensor::<1, Int>::arange(0..count as i64, &plain).float();
        // Below 1 above its place; a number that was rounded up to the last place's end is the last's.
        let drawn = drawn.clamp_max(count as f64 - 0.5 / 1024.0);
        let above = drawn - places;
        let chosen = above.clone().greater_equal_elem(0.0).float() * above.lower_elem(1.0).float();
        Tensor::from_inner(chosen)
    } else {
        Tensor::full([count], 1.0 / count as f64, (&device, DType::F32))
    };
    let factors = factors.cast(dtype);
    let parts = layers.iter().enumerate().map(|(index, layer)| {
        let factor = factors.clone().narrow(0, index, 1);
        Mixed {
            weight: layer.weight.val() * factor.clone().unsqueeze(),
            bias: layer.bias.val() * factor,
        }
    });
    let sum = parts.reduce(|sum, part| Mixed {
        weight: sum.weight + part.weight,
        bias: sum.bias + part.bias,
    });
    sum.expect("there is a first expert")
}

/// Down and Up of this forward pass (Wang et al. 2022, sections 3.1 and 3.4).
pub(crate) fn mixed(down: &Dense, up: &Dense, experts: &[Expert]) -> [Mixed; 2] {
    let downs = experts.iter().filter_map(|expert| expert.down.as_ref());
    let ups = experts.iter().filter_map(|expert| expert.up.as_ref());
    [
        mix(&std::iter::once(down).chain(downs).collect::<Vec<_>>()),
        mix(&std::iter::once(up).chain(ups).collect::<Vec<_>>()),
    ]
}
