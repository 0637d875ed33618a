//! Rules by which several values of one parameter become one.

use burn::tensor::{DType, Tensor, TensorData};
use peft_core::method::Init;

/// How several values of one parameter become one. A density is the share that is kept, in (0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum MergeMethod {
    /// The weighted sum. Upstream's `linear` and `svd`.
    Sum,
    /// The weighted sum of the largest elements of each. Upstream's `magnitude_prune`.
    MagnitudePrune {
        /// Share of the elements that is kept.
        density: f64,
    },
    /// The largest elements of each; of these, at each place, the weighted mean of those that have the
    /// sign of the majority (Yadav et al. 2023, TIES-Merging, section 4). Upstream's `ties`.
    Ties {
        /// Share of the elements that is kept.
        density: f64,
        /// What the majority is of.
        majority: TiesElectSign,
    },
    /// The weighted sum of random elements of each, rescaled (Yu et al. 2024, Language Models are Super
    /// Mario, section 3). Upstream's `dare_linear`.
    DareLinear {
        /// Share of the elements that is kept.
        density: f64,
    },
    /// Random elements of each, rescaled, then as [`MergeMethod::Ties`]. Upstream's `dare_ties`.
    DareTies {
        /// Share of the elements that is kept.
        density: f64,
        /// What the majority is of.
        majority: TiesElectSign,
    },
}

/// What decides on a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TiesElectSign {
    /// The sum of the values, before weights.
    #[default]
    Total,
    /// The number of values of either sign.
    Frequency,
}

impl MergeMethod {
    /// The share that is kept.
    pub(crate) fn density(self) -> f64 {
        match self {
            Self::Sum => 1.0,
            Self::MagnitudePrune { density }
            | Self::Ties { density, .. }
            | Self::DareLinear { density }
            | Self::DareTies { density, .. } => density,
        }
    }

    /// Whether it drops elements at random.
    pub(crate) fn draws(self) -> bool {
        let at_random = matches!(self, Self::DareLinear { .. } | Self::DareTies { .. });
        at_random && self.density() < 1.0
    }

    /// Combines tensors of one shape, on the host.
    pub(crate) fn apply(
        self,
        tensors: &[Tensor<2>],
        weights: &[f64],
        init: &mut Init,
    ) -> Tensor<2> {
        let shape = tensors[0].dims();
        let device = tensors[0].device();
        let values: Vec<Vec<f32>> = tensors
            .iter()
            .map(|tensor| {
                let values = tensor.to_data().iter::<f32>().collect();
                self.prune(values, init)
            })
            .collect();
        let majority = match self {
            Self::Ties { majority, .. } | Self::DareTies { majority, .. } => Some(majority),
            _ => None,
        };
        let combined: Vec<f32> = (0..shape[0] * shape[1])
            .map(|at| {
                let weighted = values.iter().zip(weights);
                let weighted = weighted.map(|(values, weight)| (values[at], *weight));
                match majority {
                    None => weighted
                        .map(|(value, weight)| f64::from(value) * weight)
                        .sum::<f64>() as f32,
                    Some(majority) => elect(majority, weighted),
                }
            })
            .collect();
        Tensor::from_data(TensorData::new(combined, shape), (&device, DType::F32))
    }

    /// Keeps a share of the elements: the largest ones, or random ones, which are rescaled.
    fn prune(self, mut values: Vec<f32>, init: &mut Init) -> Vec<f32> {
        let density = self.density();
        if density >= 1.0 {
            return values;
        }
        if let Self::DareLinear { .. } | Self::DareTies { .. } = self {
            for value in &mut values {
                if init.chance(density) {
                    *value /= density as f32;
                } else {
                    *value = 0.0;
                }
            }
        } else {
            let kept = (density * values.len() as f64) as usize;
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
            for dropped in &order[kept..] {
                values[*dropped] = 0.0;
            }
        }
        values
    }
}

/// The weighted mean of the values that have the majority's sign.
fn elect(majority: TiesElectSign, values: impl Iterator<Item = (f32, f64)> + Clone) -> f32 {
    let sign = |value: f32| i8::from(value > 0.0) - i8::from(value < 0.0);
    let decided: f32 = values
        .clone()
        .map(|(value, _)| match majority {
            TiesElectSign::Total => value,
            TiesElectSign::Frequency => sign(value).into(),
        })
        .sum();
    let wanted = if decided >= 0.0 { 1 } else { -1 };
    let (mut sum, mut count) = (0.0, 0.0);
    for (value, weight) in values {
        if sign(value) == wanted {
            sum += f64::from(value) * weight;
            count += 1.0_f64;
        }
    }
    (sum / count.max(1.0)) as f32
}
