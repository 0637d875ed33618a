//! What DEFT adds to a linear layer, and takes from it.

use burn::nn::Dropout;
use burn::tensor::activation::relu;
use peft_core::method::prelude::*;
use peft_core::nn::dropout_rate;
use peft_core::ops::add_low_rank;
use serde::{Deserialize, Serialize};

use crate::math::qr::orthonormal_basis;

/// How the subspace is made of P.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeftDecomposition {
    /// Q = P, and `W relu(P) Pᵀ` is taken from W: no projection.
    #[default]
    Relu,
    /// Q is an orthonormal basis of P's columns, and `W Q Qᵀ` is taken from W: the projection of the outputs on them.
    Qr,
}

/// `W' = W − W N Qᵀ + s·R Qᵀ`, with Q and N made of P: both an orthonormal basis of its columns, or P and relu(P).
///
/// Without R it is PaRa. On the activation side `x W` is the layer's own product, and the rest are products of rank r.
#[derive(Module, Adapter, Debug)]
pub struct DeftLinear {
    /// P, `[out, r]`.
    #[tensor("deft_P")]
    pub deft_p: Param<Tensor<2>>,
    /// R, `[in, r]`. None in PaRa.
    #[tensor("deft_R", transposed)]
    pub deft_r: Option<Param<Tensor<2>>>,
    /// How Q and N are made of P.
    #[module(skip)]
    pub decomposition: DeftDecomposition,
    /// s: alpha / r, or 1.
    pub scale: f64,
    /// On the input of R; on the activation side only.
    pub dropout: Dropout,
}

/// N `[out, r]` and Qᵀ `[r, out]`, in the format of P.
pub(crate) fn projection(p: Tensor<2>, decomposition: DeftDecomposition) -> (Tensor<2>, Tensor<2>) {
    match decomposition {
        DeftDecomposition::Relu => (relu(p.clone()), p.transpose()),
        DeftDecomposition::Qr => {
            let dtype = p.dtype();
            let q = orthonormal_basis(p).cast(dtype);
            (q.clone(), q.transpose())
        }
    }
}

impl WeightAdapter for DeftLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let matrix: Tensor<2> = weight.reshape([shape[0], shape[1]]);
        let (taken, basis) = projection(self.deft_p.val(), self.decomposition);
        let taken = matrix.clone().matmul(taken);
        let change = match &self.deft_r {
            Some(r) => r.val() * self.scale - taken,
            None => -taken,
        };
        (matrix + change.matmul(basis)).reshape(shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let (taken, basis) = projection(self.deft_p.val(), self.decomposition);
        let output = inner.product(input.clone());
        let removal = LowRank::new(taken, basis.clone(), -1.0);
        let rest = add_low_rank(output.clone(), output, removal);
        let output = match &self.deft_r {
            None => rest,
            Some(r) => {
                let injection = LowRank {
                    down: r.val(),
                    up: basis,
                    scale: self.scale,
                    dropout: dropout_rate(&self.dropout),
                };
                add_low_rank(rest, input, injection)
            }
        };
        inner.with_bias(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::DropoutConfig;
    use burn::tensor::{Device, Tolerance};

    fn drawn(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
        let drawn = Init::new(seed).normal(shape, 1.0, (device, DType::F32));
        drawn.val()
    }

    fn adapter(decomposition: DeftDecomposition, para: bool, device: &Device) -> DeftLinear {
        let param = |shape, seed| Param::from_tensor(drawn(shape, seed, device));
        DeftLinear {
            deft_p: param([5, 2], 1),
            deft_r: (!para).then(|| param([6, 2], 2)),
            decomposition,
            scale: 0.4,
            dropout: DropoutConfig::new(0.0).init(),
        }
    }

    fn assert_close(found: Tensor<2>, expected: Tensor<2>) {
        let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-5);
        found
            .into_data()
            .assert_approx_eq(&expected.into_data(), tolerance);
    }

    #[test]
    fn what_is_left_of_a_weight_has_nothing_in_the_subspace() {
        for (_, device) in peft_core::device::cpu_devices() {
            let adapter = adapter(DeftDecomposition::Qr, true, &device);
            let weight = drawn([6, 5], 3, &device);
            let left = adapter.compose(weight.clone());
            let p = adapter.deft_p.val();
            assert_close(
                left.clone().matmul(p.clone()),
                Tensor::zeros([6, 2], &device),
            );
            // Nothing else is taken: what is missing is a combination of P's columns.
            let missing = weight - left.clone();
            assert_close(
                adapter.compose(missing.clone()),
                Tensor::zeros([6, 5], &device),
            );
            assert_close(adapter.compose(left.clone()), left);
        }
    }

    #[test]
    fn the_subspace_holds_what_is_put_there() {
        for (_, device) in peft_core::device::cpu_devices() {
            let adapter = adapter(DeftDecomposition::Qr, false, &device);
            let weight = drawn([6, 5], 3, &device);
            let q = orthonormal_basis(adapter.deft_p.val());
            let inside = adapter.compose(weight).matmul(q);
            assert_close(inside, adapter.deft_r.as_ref().unwrap().val() * 0.4);
        }
    }

    #[test]
    fn without_a_projection_it_is_the_formula() {
        for (_, device) in peft_core::device::cpu_devices() {
            let adapter = adapter(DeftDecomposition::Relu, false, &device);
            let weight = drawn([6, 5], 3, &device);
            let p = adapter.deft_p.val();
            let positive = p.clone().mask_fill(p.clone().lower_elem(0.0), 0.0);
            let kept = Tensor::eye(5, &device) - positive.matmul(p.clone().transpose());
            let r = adapter.deft_r.as_ref().unwrap().val();
            let expected = weight.clone().matmul(kept) + r.matmul(p.transpose()) * 0.4;
            assert_close(adapter.compose(weight), expected);
        }
    }
}
