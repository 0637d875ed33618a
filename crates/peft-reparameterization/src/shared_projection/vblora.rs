//! VB-LoRA: low-rank factors put together from the vectors of one bank that all layers share.

use burn::module::ParamId;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::IntDType;
use burn::tensor::activation::softmax;
use peft_core::method::prelude::*;

use crate::shared_projection::projections::{first_like, fits};

/// Li et al. 2024, section 3: `y = xW + (drop(x) A) B`. Columns of A and rows of B are cut into pieces
/// of the length b of the bank's h vectors; every piece is a mixture of the k vectors with the largest
/// logits.
#[derive(Module, Debug)]
pub struct VbLoraLinear {
    /// Logits of A's pieces, `[r, in / b, h]`. Where [`chosen_a`](Self::chosen_a) is there, the weights of all but the last of
    /// these instead, `[r, in / b, k − 1]`; that of the last is what is missing to 1.
    pub vblora_logits_a: Param<Tensor<3>>,
    /// Likewise of B's pieces, `[out / b, r, h]` or `[out / b, r, k − 1]`.
    pub vblora_logits_b: Param<Tensor<3>>,
    /// Which vectors A's pieces are of, `[r, in / b, k]`: of a file without logits.
    pub chosen_a: Option<Param<Tensor<3, Int>>>,
    /// Likewise of B's pieces, `[out / b, r, k]`.
    pub chosen_b: Option<Param<Tensor<3, Int>>>,
    /// The vectors, `[h, b]`: those of all layers, and trained.
    pub vblora_vector_bank: Shared<2>,
    /// h.
    pub num_vectors: usize,
    /// k.
    pub topk: usize,
    /// Whether the file has the chosen weights only.
    pub save_only_topk_weights: bool,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

impl VbLoraLinear {
    /// A's pieces, `[r, in / b, b]`, and B's, `[out / b, r, b]`.
    fn all_pieces(&self) -> [Tensor<3>; 2] {
        let of_a = (&self.vblora_logits_a, &self.chosen_a);
        let of_b = (&self.vblora_logits_b, &self.chosen_b);
        [of_a, of_b].map(|(logits, chosen)| match chosen {
            Some(chosen) => self.mixtures(logits.val(), chosen.val()),
            None if self.save_only_topk_weights => {
                let (weights, chosen) = self.choices(logits.val());
                self.mixtures(weights, chosen)
            }
            None => self.pieces(logits.val()),
        })
    }

    /// What logits `[.., .., h]` choose: the vectors, `[.., .., k]`, and the weights of all but the last of them,
    /// `[.., .., k − 1]`.
    fn choices(&self, logits: Tensor<3>) -> (Tensor<3>, Tensor<3, Int>) {
        let chosen = if self.topk < self.num_vectors {
            logits.clone().argtopk(self.topk, 2)
        } else {
            logits.clone().argsort_descending(2)
        };
        let weights = softmax(logits.gather(2, chosen.clone()), 2);
        (weights.narrow(2, 0, self.topk - 1), chosen)
    }

    /// Mixtures `[.., .., b]` of the vectors `chosen`, with these weights, and for the last of them what is missing to 1.
    fn mixtures(&self, weights: Tensor<3>, chosen: Tensor<3, Int>) -> Tensor<3> {
        let [rows, columns, count] = chosen.dims();
        let bank = self.vblora_vector_bank.val();
        let [_, length] = bank.dims();
        let pieces = rows * columns;
        let last = weights.clone().sum_dim(2).neg() + 1.0;
        let weights = Tensor::cat(vec![weights, last], 2).reshape([pieces, count, 1]);
        // Files have smaller formats than backends select by.
        let chosen = chosen.cast(IntDType::I32).reshape([pieces * count]);
        let vectors = bank.select(0, chosen);
        let mixtures = weights * vectors.reshape([pieces, count, length]);
        mixtures.sum_dim(1).reshape([rows, columns, length])
    }

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

impl Adapter for VbLoraLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let bank = CheckpointKey::root("vblora_vector_bank", "base_model.vblora_vector_bank");
        let (key_a, key_b) = ("vblora_logits_A", "vblora_logits_B");
        if self.chosen_a.is_none() {
            let a = CheckpointKey::layer("vblora_logits_a", key_a);
            return vec![a, CheckpointKey::layer("vblora_logits_b", key_b), bank];
        }
        let weights =
            |field, key: &str| CheckpointKey::layer(field, &format!("{key}_topk_weights"));
        let chosen = |field, key: &str| {
            CheckpointKey::layer(field, &format!("{key}_topk_indices")).indices(&[self.num_vectors])
        };
        vec![
            weights("vblora_logits_a", key_a),
            weights("vblora_logits_b", key_b),
            chosen("chosen_a", key_a),
            chosen("chosen_b", key_b),
            bank,
        ]
    }

    fn for_checkpoint(&self) -> Self {
        if !self.save_only_topk_weights || self.chosen_a.is_some() {
            return self.clone();
        }
        let state = self.valid();
        let [a, b] = [&state.vblora_logits_a, &state.vblora_logits_b].map(|logits| {
            let (weights, chosen) = state.choices(logits.val());
            let chosen = chosen.cast(index_format(self.num_vectors));
            let chosen = Param::initialized(ParamId::new(), chosen);
            (Param::from_tensor(weights), Some(chosen))
        });
        Self {
            vblora_logits_a: a.0,
            vblora_logits_b: b.0,
            chosen_a: a.1,
            chosen_b: b.1,
            ..state
        }
    }
}

/// The number format of upstream's files for indices below `vectors`.
fn index_format(vectors: usize) -> IntDType {
    match vectors {
        0..0x100 => IntDType::U8,
        0x100..0x8000 => IntDType::I16,
        _ => IntDType::I32,
    }
}

impl LowRankAdapter for VbLoraLinear {
    fn factors(&self) -> LowRank {
        let [a, b] = self.all_pieces();
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
    /// Whether the checkpoint holds, in the place of logits, which vectors are chosen and their weights. A file is then
    /// smaller; what is loaded from it trains bank and weights, and chooses no more. Needs `topk` of at least 2.
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
            return Err(VBLORA.refusal("topk", self.topk, "from 1 to num_vectors"));
        }
        if self.save_only_topk_weights && self.topk < 2 {
            let expected = "false where topk is 1: the only weight is 1, and there is none to save";
            return Err(VBLORA.refusal("save_only_topk_weights", true, expected));
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
        let loaded = self.save_only_topk_weights && !plan.is_new();
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
            let init = plan.init();
            let (logits, chosen) = if loaded {
                let chosen = [of_a, of_b].map(|[rows, columns, _]| {
                    let like = (target.like().0, index_format(vectors).into());
                    // A file has them.
                    Some(init.integers([rows, columns, self.topk], like, |_| Vec::new()))
                });
                let weights = [of_a, of_b].map(|[rows, columns, _]| {
                    init.zeros([rows, columns, self.topk - 1], target.like())
                });
                (weights, chosen)
            } else {
                let logits = [of_a, of_b].map(|shape| init.normal(shape, std, target.like()));
                (logits, [None, None])
            };
            let ([a, b], [chosen_a, chosen_b]) = (logits, chosen);
            Ok(VbLoraLinear {
                vblora_logits_a: a,
                vblora_logits_b: b,
                chosen_a,
                chosen_b,
                vblora_vector_bank: handles.next().expect("a handle for each target"),
                num_vectors: vectors,
                topk: self.topk,
                save_only_topk_weights: self.save_only_topk_weights,
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
            chosen_a: None,
            chosen_b: None,
            num_vectors: 3,
            save_only_topk_weights: false,
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
    fn what_a_file_holds_computes_the_same() {
        for (_, device) in peft_core::device::cpu_devices() {
            for topk in [2, 3] {
                let zeros = Tensor::<2>::zeros([2, 2], &device);
                let expected = state(topk, &device).compose(zeros.clone());
                let trained = VbLoraLinear {
                    save_only_topk_weights: true,
                    ..state(topk, &device)
                };
                let stored = trained.for_checkpoint();
                assert_eq!(stored.vblora_logits_a.dims(), [1, 1, topk - 1]);
                let chosen = stored.chosen_a.as_ref().expect("which vectors").val();
                assert_eq!((chosen.dims(), chosen.dtype()), ([1, 1, topk], DType::U8));
                let [same, near] = [&trained, &stored].map(|state| state.compose(zeros.clone()));
                assert_eq!(near.to_data(), same.to_data());
                let distance = (near - expected).abs().max().into_scalar::<f32>();
                assert!(distance < 1e-5, "{distance}");
            }
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
