//! The largest of several scores.

use burn::tensor::{Bool, Int, Tensor};

/// Which of the scores `[.., .., experts]` are among the `k` largest of their token. Of equal ones the first.
pub(crate) fn largest(scores: &Tensor<3>, k: usize) -> Tensor<3, Bool> {
    let [batch, seq, experts] = scores.dims();
    let device = scores.device();
    if k >= experts {
        return Tensor::full([batch, seq, experts], true, &device);
    }
    let chosen = scores.clone().argtopk(k, 2).unsqueeze_dim::<4>(3);
    let all = Tensor::<1, Int>::arange(0..experts as i64, &device);
    let all = all
        .reshape([1, 1, 1, experts])
        .expand([batch, seq, k, experts]);
    let equal = chosen.expand([batch, seq, k, experts]).equal(all);
    equal.any_dim(2).reshape([batch, seq, experts])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_are_asked_for() {
        for (_, device) in peft_core::device::cpu_devices() {
            let scores =
                Tensor::from_data([[[0.3, 0.9, -1.0, 0.5], [2.0, 1.0, 3.0, 0.0]]], &device);
            let of = |k| -> Vec<bool> { largest(&scores, k).into_data().iter::<bool>().collect() };
            assert_eq!(
                of(1),
                [false, true, false, false, false, false, true, false]
            );
            assert_eq!(of(2), [false, true, false, true, true, false, true, false]);
            assert!(of(4).into_iter().all(|kept| kept));
        }
    }
}
