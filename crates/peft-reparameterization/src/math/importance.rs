//! How much a loss depends on the elements of a parameter, over the steps of a training.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};

/// How much the loss depends on the elements of one parameter: Zhang et al. 2023, section 3.2.
#[derive(Debug)]
pub(crate) struct Importance {
    /// Smoothed sensitivity.
    mean: Tensor<2>,
    /// Smoothed distance of the sensitivity from that: its uncertainty.
    deviation: Tensor<2>,
}

impl Importance {
    /// Of nothing seen yet.
    pub(crate) fn none(like: &Tensor<2>) -> Self {
        Self {
            mean: like.zeros_like(),
            deviation: like.zeros_like(),
        }
    }

    /// With the sensitivity of another step; its uncertainty is the distance from the new mean.
    pub(crate) fn after(self, sensitivity: Tensor<2>, [beta1, beta2]: [f64; 2]) -> Self {
        let mean = self.mean * beta1 + sensitivity.clone() * (1.0 - beta1);
        let distance = (sensitivity - mean.clone()).abs();
        Self {
            deviation: self.deviation * beta2 + distance * (1.0 - beta2),
            mean,
        }
    }

    /// The same, but the uncertainty is the distance from the mean before.
    pub(crate) fn after_by_old_mean(
        self,
        sensitivity: Tensor<2>,
        [beta1, beta2]: [f64; 2],
    ) -> Self {
        let distance = (sensitivity.clone() - self.mean.clone()).abs();
        Self {
            deviation: self.deviation * beta2 + distance * (1.0 - beta2),
            mean: self.mean * beta1 + sensitivity * (1.0 - beta1),
        }
    }

    /// What an element is worth.
    pub(crate) fn score(&self) -> Tensor<2> {
        self.mean.clone() * self.deviation.clone()
    }

    /// Under `<key>.mean` and `<key>.deviation`.
    pub(crate) fn store(&self, key: &str, tensors: &mut BTreeMap<String, TensorData>) {
        tensors.insert(format!("{key}.mean"), self.mean.to_data());
        tensors.insert(format!("{key}.deviation"), self.deviation.to_data());
    }

    /// What [`store`](Self::store) has put there, of the shape and on the device of `like`.
    pub(crate) fn stored(
        key: &str,
        tensors: &mut BTreeMap<String, TensorData>,
        like: &Tensor<2>,
    ) -> Result<Self, String> {
        let mut take = |part: &str| -> Result<Tensor<2>, String> {
            let key = format!("{key}.{part}");
            let data = tensors
                .remove(&key)
                .ok_or_else(|| format!("tensor `{key}` is missing"))?;
            let (found, expected) = (data.shape().to_vec(), like.dims());
            if found != expected {
                return Err(format!(
                    "tensor `{key}` has shape {found:?}, the model needs {expected:?}"
                ));
            }
            Ok(Tensor::from_data(data, (&like.device(), like.dtype())))
        };
        Ok(Self {
            mean: take("mean")?,
            deviation: take("deviation")?,
        })
    }
}
