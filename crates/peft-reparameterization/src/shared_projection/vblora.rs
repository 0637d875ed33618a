//! VB-LoRA: low-rank factors put together from the vectors of one bank that all layers share.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::softmax;
use peft_core::method::prelude::*;

use crate::shared_projection::projections::{first_like, fits};

/// Li et al. 2024, section 3: `y = xW + (drop(x) A) B`. Columns of A and rows of B are cut into pieces
/// of the length b of the bank's h vectors; every piece is a mixture of the k vectors with the largest
/// logits.
#[derive(Module, Adapter, Debug)]
pub struct VbLoraLinear {
    /// Logits of A's pieces, `[r, in / b, h]`.
    #[tensor("vblora_logits_A")]
    pub vblora_logits_a: Param<Tensor<3>>,
    /// Logits of B's pieces, `[out / b, r, h]`.
    #[tensor("vblora_logits_B")]
    pub vblora_logits_b: Param<Tensor<3>>,
    /// The vectors, `[h, b]`: those of all layers, and trained.
    #[tensor(root = "base_model.vblora_vector_bank")]
    pub vblora_vector_bank: Shared<2>,
    /// k.
    pub topk: usize,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

impl VbLoraLinear {
    /// The pieces that logits `[.., .., h]` choose: `[.., .., b]`.
    fn pieces(&self, logits: Tensor<3>) -> Tensor<3> {
        let [rows, columns, vectors] = logits.dims();
        let bank = self.vblora_vector_bank.val();
        let [_, length] = bank.dims();
        let (pieces, shape) = (rows * columns, [rows, columns, length]);
        if self.topk >= vectors {
            let weights = softmax(logits, 2).reshape([pieces, vectors]);
            return weights.matmul(bank).reshape(shape);
        }
        let chosen = logits.clone().argtopk(self.topk, 2);
        let weights = softmax(logits.gather(2, chosen.clone()), 2);
        let vectors = bank.select(0, chosen.reshape([pieces * self.topk]));
        let vectors = vectors.reshape([pieces, self.topk, length]);
        let weights = weights.reshape([pieces, self.topk, 1]);
        (weights * vectors).sum_dim(1).reshape(shape)
    }
}

impl LowRankAdapter for VbLoraLinear {
    fn factors(&self) -> LowRank {
        let a = self.pieces(self.vblora_logits_a.val());
        let b = self.pieces(self.vblora_logits_b.val());
        let ([rank, in_pieces, length], [out_pieces, _, _]) = (a.dims(), b.dims());
        let down = a.reshape([rank, in_pieces * length]).swap_dims(0, 1);
        let up = b.swap_dims(0, 1).reshape([rank, out_pieces * length]);
        LowRank::new(down, up, 1.0)
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }
}

/// VB-LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `VBLoRAConfig`.
#[method_config(
    VBLORA, peft_type = "VBLORA", title = "VB-LoRA", family = Reparameterization, mergeable, new(r, num_vectors, vector_length),
    reference = "Li et al. 2024, VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, \
                section 3"
)]
pub struct VbLoraConfig {
    /// Rank.
    #[field(default = 4, at_least = 1)]
    pub r: usize,
    /// Number h of vectors in the bank.
    #[field(default = 256, at_least = 1)]
    pub num_vectors: usize,
    /// Their length b. It must divide both widths of every adapted layer.
    #[field(default = 256, at_least = 1)]
    pub vector_length: usize,
    /// Number k of vectors that are mixed, at most `num_vectors`.
    #[field(default = 2, at_least = 1)]
    pub topk: usize,
    /// Whether the checkpoint holds the chosen logits only. True is not supported.
    pub save_only_topk_weights: bool,
    /// Dropout probability on the factors' input, on the activation side only.
    #[field(probability)]
    pub vblora_dropout: f64,
    /// The vectors start uniform within this bound of zero. With 0 nothing would train.
    #[field(default = 0.02, at_least = 0.0)]
    pub init_vector_bank_bound: f64,
    /// The logits start normal with this standard deviation.
    #[field(default = 0.1, at_least = 0.0)]
    pub init_logits_std: f64,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl Method for VbLoraConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if self.topk > self.num_vectors {
            let expected = "from 1 to num_vectors";
            return Err(Error::config(VBLORA.title, "topk", self.topk, expected));
        }
        if self.save_only_topk_weights {
            let expected = "false: files without the logits are not supported yet";
            let field = "save_only_topk_weights";
            return Err(Error::config(VBLORA.title, field, true, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        let (rank, vectors, length) = (self.r, self.num_vectors, self.vector_length);
        let refuse = |field, value: usize, expected: String| {
            Error::config(VBLORA.title, field, value, expected)
        };
        if !fits(&[vectors, length]) {
            let expected = "so many that they fit into memory".into();
            return Err(refuse("num_vectors", vectors, expected));
        }
        let (device, dtype) = first_like(&targets, layout);
        let (bound, std) = (self.init_vector_bank_bound, self.init_logits_std);
        let bank = plan
            .init()
            .uniform([vectors, length], bound, (&device, dtype));
        let mut handles = Shared::new(bank, targets.len());
        adapt_each(self, &targets, layout, plan, |target, plan| {
            let (name, d_in, d_out) = (target.name(), target.d_in, target.d_out);
            if !(d_in.is_multiple_of(length) && d_out.is_multiple_of(length)) {
                let expected = format!("a divisor of {d_in} and {d_out}, the widths of `{name}`");
                return Err(refuse("vector_length", length, expected));
            }
            let of_a = [rank, d_in / length, vectors];
            let of_b = [d_out / length, rank, vectors];
            if !fits(&of_a) || !fits(&of_b) {
                return Err(refuse(
                    "r",
                    rank,
                    "a rank whose logits fit into memory".into(),
                ));
            }
            Ok(VbLoraLinear {
                vblora_logits_a: plan.init().normal(of_a, std, target.like()),
                vblora_logits_b: plan.init().normal(of_b, std, target.like()),
                vblora_vector_bank: handles.next().expect("a handle for each target"),
                topk: self.topk,
                dropout: DropoutConfig::new(self.vblora_dropout).init(),
            })
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Rank 1, a layer of 2 × 2, vectors of 2: one piece each.
    fn state(topk: usize, device: &Device) -> VbLoraLinear {
        let logits = |values: [f32; 3]| {
            Param::from_tensor(Tensor::<3>::from_data(TensorData::from([[values]]), device))
        };
        let bank = TensorData::from([[1.0_f32, 0.0], [0.0, 1.0], [8.0, 8.0]]);
        let bank = Param::from_tensor(Tensor::<2>::from_data(bank, device));
        VbLoraLinear {
            vblora_logits_a: logits([3.0_f32.ln(), 0.0, -1.0]),
            vblora_logits_b: logits([0.0, -2.0, 0.0]),
            vblora_vector_bank: Shared::new(bank, 1).next().unwrap(),
            topk,
            dropout: DropoutConfig::new(0.0).init(),
        }
    }

    fn is_near(ours: Tensor<2>, expected: [[f32; 2]; 2]) {
        let expected = Tensor::<2>::from_data(TensorData::from(expected), &ours.device());
        let distance = (ours - expected).abs().max().into_scalar::<f32>();
        assert!(distance < 1e-5, "{distance}");
    }

    #[test]
    fn the_largest_logits_choose_and_weigh_the_vectors() {
        for (_, device) in peft_core::device::cpu_devices() {
            let zeros = Tensor::<2>::zeros([2, 2], &device);
            // A is 3/4 of the first vector and 1/4 of the second, B half of the first and the third.
            let change = state(2, &device).compose(zeros.clone());
            is_near(change, [[0.75 * 4.5, 0.75 * 4.0], [0.25 * 4.5, 0.25 * 4.0]]);
            let change = state(1, &device).pieces(state(1, &device).vblora_logits_a.val());
            assert_eq!(
                change.into_data().iter::<f32>().collect::<Vec<_>>(),
                [1.0, 0.0]
            );
        }
    }

    #[test]
    fn all_vectors_can_be_mixed() {
        for (_, device) in peft_core::device::cpu_devices() {
            let zeros = Tensor::<2>::zeros([2, 2], &device);
            let (a, b) = (4.0 + (-1.0_f32).exp(), 2.0 + (-2.0_f32).exp());
            let piece = [3.0 + 8.0 * (-1.0_f32).exp(), 1.0 + 8.0 * (-1.0_f32).exp()].map(|x| x / a);
            let other = [1.0 + 8.0, (-2.0_f32).exp() + 8.0].map(|x| x / b);
            let expected = piece.map(|x| other.map(|y| x * y));
            is_near(state(3, &device).compose(zeros), expected);
        }
    }
}
