//! VB-LoRA: low-rank factors put together from the vectors of one bank that all layers share.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use peft_core::method::{
    Adapter, BaseLinear, CheckpointKey, Common, Family, Layout, Method, MethodInfo, Plan, Shared,
    WeightAdapter, by_peft_type, config_from_json,
};
use peft_core::nn::{AdaptedForward, dropout_rate};
use peft_core::ops::{LowRank, add_low_rank};
use peft_core::{Error, Result, Targets};
use serde::{Deserialize, Serialize};

use crate::shared_projection::projections::{first_like, fits};
use peft_core::method::{Bias, LINEAR, select, train_biases};
use peft_core::{common_method, target_builders};

/// VB-LoRA's registration.
pub static VBLORA: MethodInfo = MethodInfo {
    name: "vblora",
    peft_type: "VBLORA",
    title: "VB-LoRA",
    family: Family::Reparameterization,
    reference: "Li et al. 2024, VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, \
                section 3",
    identity_at_init: false,
    mergeable: true,
    parse: config_from_json::<VbLoraConfig>,
    recognises: by_peft_type,
};

/// Li et al. 2024, section 3: `y = xW + (drop(x) A) B`. Columns of A and rows of B are cut into pieces
/// of the length b of the bank's h vectors; every piece is a mixture of the k vectors with the largest
/// logits.
#[derive(Module, Debug)]
pub struct VbLoraLinear {
    /// Logits of A's pieces, `[r, in / b, h]`.
    pub vblora_logits_a: Param<Tensor<3>>,
    /// Logits of B's pieces, `[out / b, r, h]`.
    pub vblora_logits_b: Param<Tensor<3>>,
    /// The vectors, `[h, b]`: those of all layers, and trained.
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

    /// A, B and a scale of 1.
    fn factors(&self) -> LowRank {
        let a = self.pieces(self.vblora_logits_a.val());
        let b = self.pieces(self.vblora_logits_b.val());
        let ([rank, in_pieces, length], [out_pieces, _, _]) = (a.dims(), b.dims());
        LowRank {
            down: a.reshape([rank, in_pieces * length]).swap_dims(0, 1),
            up: b.swap_dims(0, 1).reshape([rank, out_pieces * length]),
            scale: 1.0,
            dropout: 0.0,
        }
    }
}

impl Adapter for VbLoraLinear {
    const METHOD: &'static str = "vblora";

    fn tensors(&self) -> Vec<CheckpointKey> {
        vec![
            CheckpointKey::layer("vblora_logits_a", "vblora_logits_A"),
            CheckpointKey::layer("vblora_logits_b", "vblora_logits_B"),
            CheckpointKey::root("vblora_vector_bank", "base_model.vblora_vector_bank"),
        ]
    }
}

impl WeightAdapter for VbLoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let LowRank { down, up, .. } = self.factors();
        let shape = weight.shape();
        weight + down.matmul(up).reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let dropping =
            dropout_rate(&self.dropout) > 0.0 && self.vblora_logits_a.val().is_autodiff();
        (!dropping).then(|| self.factors())
    }

    fn linear(&self, input: Tensor<2>, inner: &BaseLinear<'_>) -> Tensor<2> {
        let dropped = self.dropout.adapted(input.clone());
        add_low_rank(inner.forward(input), dropped, self.factors())
    }
}

/// VB-LoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `VBLoRAConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VbLoraConfig {
    /// Rank. Default: 4. At least 1.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// Number h of vectors in the bank. Default: 256. At least 1.
    #[serde(default = "default_size")]
    pub num_vectors: usize,
    /// Their length b. Default: 256. It must divide both widths of every adapted layer.
    #[serde(default = "default_size")]
    pub vector_length: usize,
    /// Number k of vectors that are mixed. Default: 2. From 1 to `num_vectors`.
    #[serde(default = "default_topk")]
    pub topk: usize,
    /// Whether the checkpoint holds the chosen logits only. Default: false. True is not supported.
    #[serde(default)]
    pub save_only_topk_weights: bool,
    /// Dropout probability on the factors' input, in [0, 1). Default: 0. It acts on the activation
    /// side only.
    #[serde(default)]
    pub vblora_dropout: f64,
    /// The vectors start uniform within this bound of zero. Default: 0.02. With 0 nothing would train.
    #[serde(default = "default_bound")]
    pub init_vector_bank_bound: f64,
    /// The logits start normal with this standard deviation. Default: 0.1.
    #[serde(default = "default_std")]
    pub init_logits_std: f64,
    /// Biases to train. Default: none.
    #[serde(default)]
    pub bias: Bias,
    /// Layers to adapt. Default: `all-linear`.
    #[serde(flatten)]
    pub targets: Targets,
    /// Fields that every method has.
    #[serde(flatten)]
    pub common: Common,
}

fn default_rank() -> usize {
    4
}

fn default_size() -> usize {
    256
}

fn default_topk() -> usize {
    2
}

fn default_bound() -> f64 {
    0.02
}

fn default_std() -> f64 {
    0.1
}

impl Default for VbLoraConfig {
    fn default() -> Self {
        Self::new(default_rank(), default_size(), default_size())
    }
}

impl VbLoraConfig {
    /// VB-LoRA of rank `r`, from a bank of `num_vectors` vectors of `vector_length` elements, on all
    /// linear layers but the output head.
    pub fn new(r: usize, num_vectors: usize, vector_length: usize) -> Self {
        Self {
            r,
            num_vectors,
            vector_length,
            topk: default_topk(),
            save_only_topk_weights: false,
            vblora_dropout: 0.0,
            init_vector_bank_bound: default_bound(),
            init_logits_std: default_std(),
            bias: Bias::None,
            targets: Targets::default(),
            common: Common::default(),
        }
    }

    /// Sets how many vectors are mixed.
    #[must_use]
    pub fn with_topk(mut self, topk: usize) -> Self {
        self.topk = topk;
        self
    }

    /// Sets the dropout probability.
    #[must_use]
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.vblora_dropout = dropout;
        self
    }

    /// Sets the bound of the vectors' and the standard deviation of the logits' initial values.
    #[must_use]
    pub fn with_init(mut self, vector_bank_bound: f64, logits_std: f64) -> Self {
        self.init_vector_bank_bound = vector_bank_bound;
        self.init_logits_std = logits_std;
        self
    }

    /// Sets which biases are trained.
    #[must_use]
    pub fn with_bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    target_builders!();
}

impl Method for VbLoraConfig {
    common_method!(VBLORA);

    fn validate(&self) -> Result<()> {
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(VBLORA.title, field, value, expected))
        };
        for (field, value) in [
            ("r", self.r),
            ("num_vectors", self.num_vectors),
            ("vector_length", self.vector_length),
        ] {
            if value == 0 {
                return refuse(field, &value, "at least 1");
            }
        }
        if !(1..=self.num_vectors).contains(&self.topk) {
            return refuse("topk", &self.topk, "from 1 to num_vectors");
        }
        if self.save_only_topk_weights {
            let expected = "false: files without the logits are not supported yet";
            return refuse("save_only_topk_weights", &true, expected);
        }
        if !(0.0..1.0).contains(&self.vblora_dropout) {
            return refuse("vblora_dropout", &self.vblora_dropout, "in [0, 1)");
        }
        for (field, value) in [
            ("init_vector_bank_bound", self.init_vector_bank_bound),
            ("init_logits_std", self.init_logits_std),
        ] {
            if !(0.0..f64::INFINITY).contains(&value) {
                return refuse(field, &value, "a finite number of at least 0");
            }
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = select(&self.targets, layout, plan, &VBLORA, LINEAR)?;
        let (rank, vectors, length) = (self.r, self.num_vectors, self.vector_length);
        if !fits(&[vectors, length]) {
            let expected = "so many that they fit into memory";
            return Err(Error::config(
                VBLORA.title,
                "num_vectors",
                vectors,
                expected,
            ));
        }
        let (device, dtype) = first_like(&targets, layout);
        let bound = self.init_vector_bank_bound;
        let bank = plan
            .init()
            .uniform([vectors, length], bound, (&device, dtype));
        let handles = Shared::new(bank, targets.len());
        for (&(layer, weight), vblora_vector_bank) in targets.iter().zip(handles) {
            let [d_in, d_out] = [weight.shape()[0], weight.shape()[1]];
            if d_in % length != 0 || d_out % length != 0 {
                let expected = format!(
                    "a divisor of {d_in} and {d_out}, the widths of `{}`",
                    layer.name
                );
                return Err(Error::config(
                    VBLORA.title,
                    "vector_length",
                    length,
                    expected,
                ));
            }
            let shapes = [
                [rank, d_in / length, vectors],
                [d_out / length, rank, vectors],
            ];
            if !shapes.iter().all(|shape| fits(shape)) {
                let expected = "a rank whose logits fit into memory";
                return Err(Error::config(VBLORA.title, "r", rank, expected));
            }
            let like = (&weight.device(), weight.dtype());
            let std = self.init_logits_std;
            let [logits_a, logits_b] = shapes.map(|shape| plan.init().normal(shape, std, like));
            let state = VbLoraLinear {
                vblora_logits_a: logits_a,
                vblora_logits_b: logits_b,
                vblora_vector_bank,
                topk: self.topk,
                dropout: DropoutConfig::new(self.vblora_dropout).init(),
            };
            plan.adapt_weight(weight, state);
        }
        train_biases(self.bias, layout, &targets, plan);
        Ok(())
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
