//! What AdaLoRA adds to a weight.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::module::conv2d;
use burn::tensor::{Int, Shape, Tensor, TensorData};
use peft_core::method::{Adapter, BaseConv2d, BaseLinear, WeightAdapter};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{LowRank, add_low_rank};

/// Zhang et al. 2023, section 3.1: W' = W + s · A diag(E) B.
///
/// A rank of 0 is allowed: upstream writes it for layers that lost all their singular values.
#[derive(Module, Adapter, Debug)]
pub struct AdaLora {
    /// A, `[in, r]`; of a convolution `[in / groups · h · w, r]`.
    #[tensor("lora_A", transposed)]
    pub lora_a: Param<Tensor<2>>,
    /// E, the singular values, `[r, 1]`.
    #[tensor("lora_E")]
    pub lora_e: Param<Tensor<2>>,
    /// B, `[r, out]`.
    #[tensor("lora_B", transposed)]
    pub lora_b: Param<Tensor<2>>,
    /// s: alpha / (init_r + 1e-5), whatever of the rank is left.
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// Which singular values the schedule has left for good; `None` as long as it has not decided.
    #[module(skip)]
    pub kept: Option<Vec<bool>>,
}

impl AdaLora {
    /// How many singular values there are, zero or not.
    pub fn rank(&self) -> usize {
        self.lora_e.dims()[0]
    }

    fn drops(&self) -> bool {
        dropout_rate(&self.dropout) > 0.0 && self.lora_a.val().is_autodiff()
    }

    fn factors(&self) -> LowRank {
        let up = self.lora_b.val() * self.lora_e.val();
        LowRank::new(self.lora_a.val(), up, self.scale)
    }

    /// The change of a weight of this shape.
    fn delta<const D: usize>(&self, shape: Shape) -> Tensor<D> {
        let LowRank {
            down, up, scale, ..
        } = self.factors();
        let delta = (down * scale).matmul(up);
        // Kernels have the outputs first.
        let delta = if D == 2 { delta } else { delta.transpose() };
        delta.reshape(shape)
    }

    /// Sets to zero the singular values that are not `kept`.
    pub(crate) fn mask(&mut self, kept: &[bool]) {
        let mask: Vec<f32> = kept.iter().map(|&kept| f32::from(u8::from(kept))).collect();
        let mask = TensorData::new(mask, [kept.len(), 1]);
        self.lora_e = self.lora_e.clone().map(|e| {
            let trained = e.is_require_grad();
            let mask = Tensor::<2>::from_data(mask, (&e.device(), e.dtype()));
            // A new leaf, which remembers no graph.
            (e.detach() * mask).detach().set_require_grad(trained)
        });
    }

    /// Which singular values a file needs, if the schedule has decided: those that it left, and those that
    /// training has brought back since. At least one, as backends need not know empty tensors.
    pub(crate) fn needed(&self) -> Option<Vec<bool>> {
        let kept = self.kept.as_ref()?;
        let values = self.lora_e.val().into_data();
        let mut needed: Vec<bool> = kept
            .iter()
            .zip(values.iter::<f32>())
            .map(|(kept, value)| *kept || value != 0.0)
            .collect();
        if !needed.contains(&true) {
            *needed.first_mut()? = true;
        }
        Some(needed)
    }

    /// Drops the singular values that are not `kept`, and their vectors.
    pub(crate) fn shrink(&mut self, kept: &[bool]) {
        let places = kept.iter().enumerate().filter(|(_, kept)| **kept);
        let places: Vec<i64> = places.map(|(place, _)| place as i64).collect();
        let device = self.lora_e.device();
        let places = Tensor::<1, Int>::from_data(places.as_slice(), &device);
        let part = |param: &Param<Tensor<2>>, axis: usize| {
            let places = places.clone();
            param.clone().map(|value| {
                let trained = value.is_require_grad();
                let part = value.detach().select(axis, places);
                part.detach().set_require_grad(trained)
            })
        };
        self.lora_a = part(&self.lora_a, 1);
        self.lora_e = part(&self.lora_e, 0);
        self.lora_b = part(&self.lora_b, 0);
        self.kept = None;
    }
}

impl WeightAdapter for AdaLora {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        if self.rank() == 0 {
            return weight;
        }
        let shape = weight.shape();
        weight + self.delta::<D>(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        (self.rank() > 0 && !self.drops()).then(|| self.factors())
    }

    fn keeps_weight(&self) -> bool {
        self.rank() > 0
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        if self.rank() == 0 {
            return inner.forward(input);
        }
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(inner.forward(input), dropped, self.factors())
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let weight = inner.weight();
        if self.rank() == 0 || !self.drops() {
            return conv2d(input, self.compose(weight), None, inner.options());
        }
        let dropped = self.dropout.adapted(input.clone());
        let change = conv2d(
            dropped,
            self.delta::<4>(weight.shape()),
            None,
            inner.options(),
        );
        inner.forward(input) + change
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::DropoutConfig;

    use super::*;

    #[test]
    fn masking_and_shrinking_agree() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let matrix = |shape: [usize; 2]| {
            let values: Vec<f32> = (0..shape[0] * shape[1])
                .map(|at| (at as f32 * 0.7).sin())
                .collect();
            Param::from_tensor(Tensor::<2>::from_data(
                TensorData::new(values, shape),
                &device,
            ))
        };
        let mut state = AdaLora {
            lora_a: matrix([5, 4]),
            lora_e: matrix([4, 1]),
            lora_b: matrix([4, 3]),
            scale: 2.0,
            dropout: DropoutConfig::new(0.0).init(),
            kept: None,
        };
        let kept = [true, false, false, true];
        let mut small = state.clone();
        state.mask(&kept);
        small.shrink(&kept);
        assert_eq!((state.rank(), small.rank()), (4, 2));
        let weight = Tensor::<2>::zeros([5, 3], &device);
        let (masked, shrunk) = (state.compose(weight.clone()), small.compose(weight));
        let distance = (masked - shrunk).abs().max().into_scalar::<f32>();
        assert!(distance < 1e-6, "{distance}");
        // What training has brought back is needed, whatever the schedule has decided; and one is.
        assert_eq!(state.needed(), None);
        state.kept = Some(vec![false, false, true, false]);
        assert_eq!(state.needed(), Some(vec![false, false, true, true]));
        state.kept = Some(vec![false; 4]);
        state.mask(&[false; 4]);
        assert_eq!(state.needed(), Some(vec![true, false, false, false]));
    }
}
