//! DoRA's magnitude: Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, section 4.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::device::is_cpu;
use peft_core::method::{Adapter, BaseLinear, CheckpointKey};
use peft_core::ops::{LowRank, column_norms};

/// The trained length of each output's weights: those of `W' = m ⊙ (W + s·AB) / ‖W + s·AB‖`.
#[derive(Module, Debug)]
pub struct Magnitude<const D: usize> {
    /// m: `[out]`, for convolutions `[1, out, 1, 1]`.
    pub value: Param<Tensor<D>>,
}

impl<const D: usize> Adapter for Magnitude<D> {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = CheckpointKey::layer("value", "lora_magnitude_vector");
        if D > 1 {
            return vec![key];
        }
        // AdapterHub has a linear layer of one input there.
        let upright = CheckpointKey::layer("value", "loras.{adapter}.m.weight").upright();
        vec![key.in_adapterhub(upright)]
    }
}

impl<const D: usize> Magnitude<D> {
    /// Magnitude over norm, `[out]`. No gradient goes through the norms (section 4.3).
    pub(crate) fn over(&self, norms: Tensor<1>) -> Tensor<1> {
        self.value.val().reshape([-1]) / norms
    }
}

/// Where the squared norm is a smaller share than this of what it is a sum of, it is computed from the
/// sum of the matrices: below, rounding of the shares would show.
const CANCELLED: f32 = 0.05;

/// Norms of the columns of `W + s·AB`, `[out]`, without a gradient: W is what lies below.
pub(crate) fn norms_below(inner: &dyn BaseLinear, change: &LowRank) -> Tensor<1> {
    let base = has_parts(change).then(|| inner.base_norms()).flatten();
    let product = |rows: Tensor<2>| inner.product(rows);
    base.and_then(|base| norms_by_parts(change, base, product))
        .unwrap_or_else(|| norms(inner.weight(), change))
}

/// Norms of the columns of `W + s·AB`, `[out]`, without a gradient.
pub(crate) fn norms(weight: Tensor<2>, change: &LowRank) -> Tensor<1> {
    let weight = weight.detach();
    let base = has_parts(change).then(|| column_norms(weight.clone()));
    let product = |rows: Tensor<2>| rows.matmul(weight.clone());
    base.and_then(|base| norms_by_parts(change, base, product))
        .unwrap_or_else(|| column_norms(weight.clone() + change.product().detach()))
}

/// Whether [`norms_by_parts`] is less work than a matrix of W's size: not on devices where its question would mean
/// to wait for all that they have to do.
fn has_parts(change: &LowRank) -> bool {
    let ([d_in, rank], [_, d_out]) = (change.down.dims(), change.up.dims());
    rank <= d_in.min(d_out) && is_cpu(&change.down.device())
}

/// Norms of the columns of `W + s·AB` from those of W, and from its product with rows:
/// `‖w‖² + 2s⟨w, Ab⟩ + s²‖Ab‖²` for each column needs no matrix of W's size. `None` where its terms nearly cancel
/// for some column.
fn norms_by_parts(
    change: &LowRank,
    base: Tensor<1>,
    product: impl Fn(Tensor<2>) -> Tensor<2>,
) -> Option<Tensor<1>> {
    let (down, up) = (change.down.clone().detach(), change.up.clone().detach());
    let sum = |product: Tensor<2>| product.sum_dim(0).reshape([-1]);
    let across: Tensor<1> = sum(product(down.clone().transpose()).detach() * up.clone());
    let gram = down.clone().transpose().matmul(down);
    let of_change: Tensor<1> = sum(gram.matmul(up.clone()) * up);
    let parts = base.powi_scalar(2) + of_change * (change.scale * change.scale);
    let squares = parts.clone() + across * (2.0 * change.scale);
    let share: f32 = (squares.clone() / parts).min().into_scalar();
    // Not where a share is no number, either.
    (share > CANCELLED).then(|| squares.sqrt())
}

/// Norms of the rows of a matrix, `[rows]`.
pub(crate) fn norms_of_rows(matrix: Tensor<2>) -> Tensor<1> {
    column_norms(matrix.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn norms_are_those_of_the_sum_also_where_it_cancels() {
        for (_, device) in peft_core::device::cpu_devices() {
            let random =
                |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
            let (down, up) = (random([40, 3]), random([3, 20]));
            for weight in [
                random([40, 20]),
                // The sum is a hundredth of its parts.
                down.clone().matmul(up.clone()) * -2.0 + random([40, 20]) * 0.01,
            ] {
                let change = LowRank {
                    down: down.clone(),
                    up: up.clone(),
                    scale: 2.0,
                    dropout: 0.0,
                };
                let sum = weight.clone() + down.clone().matmul(up.clone()) * 2.0;
                let direct = sum.powi_scalar(2).sum_dim(0).sqrt().reshape([20]);
                let direct: Tensor<1> = direct;
                norms(weight, &change)
                    .into_data()
                    .assert_approx_eq(&direct.into_data(), Tolerance::<f32>::relative(2e-5));
            }
        }
    }
}
