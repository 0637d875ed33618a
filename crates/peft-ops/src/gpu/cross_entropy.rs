//! Cross entropy under a head, with the logits of some rows at a time.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::Placed;

/// Numbers of logits that are there at once: 128 MiB of `f32`, and a few times that while their gradients are computed.
const LOGITS: usize = 1 << 25;

/// The sum of the cross entropies of `hidden` `[rows, d]` under a head `[classes, d]`: `[1]`. `added` is `[rows, r]` and
/// `[r, classes]`, whose product is added to the logits.
///
/// Gradients are computed with the loss, and kept instead of logits.
pub(crate) fn cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    added: Option<[Tensor<2>; 2]>,
    targets: &[i64],
) -> Tensor<1> {
    let [classes, _] = head.dims();
    let chunk = (LOGITS / classes.max(1)).max(1);
    in_chunks(hidden, head, added, targets, chunk)
}

/// A packed head, for this operation only.
pub(crate) fn decoded(placed: &Placed, hidden: &Tensor<2>) -> Tensor<2> {
    let plain = hidden.device().without_autodiff();
    placed.decode(&Tensor::empty([1], (&plain, hidden.dtype())))
}

/// [`cross_entropy`], `chunk` rows at a time.
pub(super) fn in_chunks(
    hidden: Tensor<2>,
    head: Tensor<2>,
    added: Option<[Tensor<2>; 2]>,
    targets: &[i64],
    chunk: usize,
) -> Tensor<1> {
    let dtype = hidden.dtype();
    let wide = match dtype {
        DType::F64 => FloatDType::F64,
        _ => FloatDType::F32,
    };
    let inputs = {
        let [through, up] = match added {
            Some([through, up]) => [Some(through), Some(up)],
            None => [None, None],
        };
        [Some(hidden), Some(head), through, up]
    };
    let wanted = inputs
        .each_ref()
        .map(|input| input.as_ref().is_some_and(Tensor::is_tracked));
    let [hidden, head, through, up] = inputs
        .each_ref()
        .map(|input| input.clone().map(Tensor::inner));
    let (Some(hidden), Some(head)) = (hidden, head) else {
        unreachable!("hidden states and head are there")
    };
    let parts = Parts {
        hidden,
        head,
        added: through.zip(up),
        wanted,
        wide,
    };
    let mut gradients = [const { Vec::new() }; 4];
    let mut losses = Vec::new();
    for (index, targets) in targets.chunks(chunk).enumerate() {
        losses.push(parts.rows(index * chunk, targets, &mut gradients));
    }
    let loss = match losses.len() {
        0 => Tensor::zeros([1], (&parts.hidden.device(), DType::from(wide))),
        _ => Tensor::cat(losses, 0).sum(),
    };
    // A sum whose gradients are those of the loss, less itself.
    let mut total = loss;
    let [hidden, head, through, up] = gradients;
    let whole = [
        concatenated(hidden),
        summed(head),
        concatenated(through),
        summed(up),
    ];
    for (input, gradient) in inputs.into_iter().zip(whole) {
        if let (Some(input), Some(gradient)) = (input, gradient) {
            let sum = (input.cast(wide) * gradient).sum();
            total = sum.clone() - sum.detach() + total;
        }
    }
    total.cast(dtype)
}

fn concatenated(parts: Vec<Tensor<2>>) -> Option<Tensor<2>> {
    (!parts.is_empty()).then(|| Tensor::cat(parts, 0))
}

fn summed(parts: Vec<Tensor<2>>) -> Option<Tensor<2>> {
    parts.into_iter().reduce(|sum, part| sum + part)
}

/// The inputs without autodiff.
struct Parts {
    hidden: Tensor<2>,
    head: Tensor<2>,
    added: Option<(Tensor<2>, Tensor<2>)>,
    /// Whose gradients are: of the hidden states, of the head, of both factors.
    wanted: [bool; 4],
    /// What losses and gradients are in.
    wide: FloatDType,
}

impl Parts {
    /// The loss of the rows from `first` on, `[1]`; gradients are added to the lists.
    fn rows(
        &self,
        first: usize,
        targets: &[i64],
        gradients: &mut [Vec<Tensor<2>>; 4],
    ) -> Tensor<1> {
        let rows = targets.len();
        let device = self.hidden.device();
        let dtype = self.hidden.dtype();
        let hidden = self.hidden.clone().narrow(0, first, rows);
        let through =
            |(through, _): &(Tensor<2>, Tensor<2>)| through.clone().narrow(0, first, rows);
        let mut logits = hidden.clone().matmul(self.head.clone().transpose());
        if let Some(added) = &self.added {
            logits = logits + through(added).matmul(added.1.clone());
        }
        let classes: Vec<i64> = targets.iter().map(|target| *target.max(&0)).collect();
        let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [rows, 1]), &device);
        let counts: Vec<f32> = targets
            .iter()
            .map(|target| if *target < 0 { 0.0 } else { 1.0 })
            .collect();
        let counts = TensorData::new(counts, [rows, 1]);
        let counts = Tensor::<2>::from_data(counts, (&device, DType::F32)).cast(self.wide);
        let likelihoods = log_softmax(logits.cast(self.wide), 1);
        let of_targets = likelihoods.clone().gather(1, classes.clone());
        let loss = (of_targets * counts.clone()).sum().neg();
        if !self.wanted.contains(&true) {
            return loss;
        }
        let ones = counts.ones_like().neg();
        let of_logits = likelihoods
            .exp()
            .scatter(1, classes, ones, IndexingUpdateOp::Add)
            * counts;
        let of_logits = of_logits.cast(dtype);
        let mut add = |index: usize, gradient: &dyn Fn() -> Tensor<2>| {
            if self.wanted[index] {
                gradients[index].push(gradient().cast(self.wide));
            }
        };
        add(0, &|| of_logits.clone().matmul(self.head.clone()));
        add(1, &|| of_logits.clone().transpose().matmul(hidden.clone()));
        if let Some(added) = &self.added {
            add(2, &|| of_logits.clone().matmul(added.1.clone().transpose()));
            add(3, &|| through(added).transpose().matmul(of_logits.clone()));
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::device;
    use crate::reference;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn some_rows_at_a_time_are_the_reference() {
        let device = device();
        let targets = [3, -1, 0, 10, 7, -5, 2];
        let random =
            |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let values = [[7, 6], [11, 6], [7, 2], [2, 11]].map(random);
        for trained in [
            [true; 4],
            [true, false, true, false],
            [false, true, false, true],
            [false; 4],
        ] {
            for chunk in [1, 3, 7, 100] {
                let inputs = || {
                    let mut inputs = values.clone().map(Tensor::autodiff);
                    for (input, trained) in inputs.iter_mut().zip(trained) {
                        *input = input.clone().set_require_grad(trained);
                    }
                    inputs
                };
                let of = |inputs: [Tensor<2>; 4], loss: Tensor<1>| {
                    let mut found = vec![loss.clone().into_data()];
                    if trained.contains(&true) {
                        let gradients = (loss * 0.5).backward();
                        found.extend(
                            inputs
                                .iter()
                                .filter_map(|input| Some(input.grad(&gradients)?.into_data())),
                        );
                    }
                    found
                };
                let ours = inputs();
                let [hidden, head, through, up] = ours.clone();
                let loss = in_chunks(hidden, head, Some([through, up]), &targets, chunk);
                let found = of(ours, loss);
                let theirs = inputs();
                let [hidden, head, through, up] = theirs.clone();
                let logits = hidden.matmul(head.transpose()) + through.matmul(up);
                let expected = of(theirs, reference::cross_entropy(logits, &targets));
                assert_eq!(
                    found.len(),
                    1 + trained.iter().filter(|trained| **trained).count()
                );
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    found.assert_approx_eq(expected, Tolerance::<f32>::rel_abs(1e-5, 1e-5));
                }
            }
        }
    }
}
