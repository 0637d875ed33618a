//! What LoRA adds to a linear layer, an embedding table and a bias.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor};
use peft_core::method::{Adapter, BaseEmbedding, BaseLinear, CheckpointKey, WeightAdapter};
use peft_core::nn::dropout_rate;
use peft_core::ops::{LowRank, add_low_rank};

use crate::lora::dora::{self, Magnitude};

/// Hu et al. 2021, section 4.1: `y = xW + s·(drop(x) A) B`.
#[derive(Module, Adapter, Debug)]
pub struct LoraLinear {
    /// Down-projection A, `[in, r]`.
    #[tensor("lora_A.weight", transposed, adapterhub = "loras.{adapter}.lora_A")]
    pub lora_a: Param<Tensor<2>>,
    /// Up-projection B, `[r, out]`.
    #[tensor("lora_B.weight", transposed, adapterhub = "loras.{adapter}.lora_B")]
    pub lora_b: Param<Tensor<2>>,
    /// s: alpha / r, or alpha / sqrt(r).
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
    /// The factors that the base is without: those that the trained ones began as, where these were
    /// taken out of the base (PiSSA, OLoRA). Frozen.
    #[nested]
    pub removed: Option<InitialFactors>,
    /// DoRA's magnitude of each output, `[out]`.
    #[nested]
    pub magnitude: Option<Magnitude<1>>,
    /// β, `[out]`: what `lora_bias` adds to the output, times the scale, of a layer that has no bias itself
    /// ([`LoraBias`] is for one that has).
    #[tensor("lora_B.bias")]
    pub added_bias: Option<Param<Tensor<1>>>,
}

/// Factors whose product, times the scale, is subtracted from the base.
#[derive(Module, Adapter, Debug)]
pub struct InitialFactors {
    /// `[in, r]`.
    #[unsaved]
    pub a: Param<Tensor<2>>,
    /// `[r, out]`.
    #[unsaved]
    pub b: Param<Tensor<2>>,
}

impl LoraLinear {
    /// A, B and s.
    fn factors(&self) -> LowRank {
        LowRank {
            down: self.lora_a.val(),
            up: self.lora_b.val(),
            scale: self.scale,
            dropout: dropout_rate(&self.dropout),
        }
    }

    /// What is subtracted from the base.
    fn removed(&self) -> Option<LowRank> {
        self.removed.as_ref().map(|removed| LowRank {
            down: removed.a.val(),
            up: removed.b.val(),
            scale: -self.scale,
            dropout: 0.0,
        })
    }

    /// Both, as one.
    pub(crate) fn change(&self) -> LowRank {
        let factors = self.factors();
        match &self.removed {
            None => factors,
            Some(removed) => LowRank {
                down: Tensor::cat(vec![factors.down, removed.a.val()], 1),
                up: Tensor::cat(vec![factors.up, -removed.b.val()], 0),
                scale: self.scale,
                dropout: 0.0,
            },
        }
    }

    /// The change of the weight, `[in, out]`, before DoRA's normalisation.
    pub fn delta(&self) -> Tensor<2> {
        self.change().product()
    }

    fn drops(&self) -> bool {
        dropout_rate(&self.dropout) > 0.0 && self.lora_a.val().is_autodiff()
    }
}

impl WeightAdapter for LoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let change = self.change().cast(weight.dtype());
        let delta = change.product();
        let Some(magnitude) = &self.magnitude else {
            return weight + delta.reshape(shape);
        };
        let weight: Tensor<2> = weight.reshape([self.lora_a.dims()[0], self.lora_b.dims()[1]]);
        let factor = magnitude.over(dora::norms(weight.clone(), &change));
        ((weight + delta) * factor.unsqueeze()).reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        let plain = self.magnitude.is_none() && self.added_bias.is_none();
        // What PiSSA removed sees all of the input.
        let one = self.removed.is_none() || !self.drops();
        (plain && one).then(|| self.change())
    }

    fn is_mergeable(&self) -> bool {
        self.added_bias.is_none()
    }

    // DoRA's norms are of the matrix.
    fn needs_weight(&self) -> bool {
        self.magnitude.is_some()
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let Some(magnitude) = &self.magnitude else {
            let output = match self.removed() {
                Some(removed) => inner.forward_with(input.clone(), removed),
                None => inner.forward(input.clone()),
            };
            let output = add_low_rank(output, input, self.factors());
            return match &self.added_bias {
                Some(bias) => output + (bias.val() * self.scale).unsqueeze(),
                None => output,
            };
        };
        let change = self.change().cast(input.dtype());
        let factor = magnitude.over(dora::norms_below(inner, &change));
        let output = inner.product(input.clone());
        let output = if self.drops() {
            let output = match self.removed() {
                Some(removed) => add_low_rank(output, input.clone(), removed),
                None => output,
            };
            add_low_rank(output, input, self.factors())
        } else {
            add_low_rank(output, input, self.change())
        };
        inner.with_bias(output * factor.unsqueeze())
    }
}

/// LoRA on an embedding table: row i changes by `s·A[i] B`. No dropout, as upstream.
#[derive(Module, Debug)]
pub struct LoraEmbedding {
    /// A, `[vocabulary, r]`.
    pub lora_a: Param<Tensor<2>>,
    /// B, `[r, d]`.
    pub lora_b: Param<Tensor<2>>,
    /// s.
    pub scale: f64,
    /// DoRA's magnitude of each feature, `[d]`.
    pub magnitude: Option<Magnitude<1>>,
    /// The head that is the table and has the same factors (`ensure_weight_tying`).
    pub head: Option<Follower>,
}

/// A tied head that follows the LoRA of its table: logits change by `s·(drop(h) Bᵀ) Aᵀ`.
#[derive(Module, Debug)]
pub struct Follower {
    /// Upstream's name of the head.
    #[module(skip)]
    pub name: String,
    /// On what the head's factors see; on the activation side only.
    pub dropout: Dropout,
}

impl LoraEmbedding {
    fn change(&self) -> LowRank {
        LowRank {
            down: self.lora_a.val(),
            up: self.lora_b.val(),
            scale: self.scale,
            dropout: 0.0,
        }
    }

    /// The change of the table, `[vocabulary, d]`, before DoRA's normalisation.
    pub fn delta(&self) -> Tensor<2> {
        self.lora_a.val().matmul(self.lora_b.val() * self.scale)
    }
}

impl Adapter for LoraEmbedding {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let spec = |field: &str, key: &str, of_head: &str| {
            let spec = CheckpointKey::layer(field, key).transposed();
            match &self.head {
                // Transposed once more: what comes in at the table comes out at the head.
                Some(head) => spec.twin(CheckpointKey::named(
                    field,
                    &format!("{}.{of_head}", head.name),
                )),
                None => spec,
            }
        };
        vec![
            spec("lora_a", "lora_embedding_A", "lora_B.weight"),
            spec("lora_b", "lora_embedding_B", "lora_A.weight"),
            CheckpointKey::layer("magnitude.value", "lora_magnitude_vector"),
        ]
    }
}

impl WeightAdapter for LoraEmbedding {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let weight: Tensor<2> = weight.reshape([self.lora_a.dims()[0], self.lora_b.dims()[1]]);
        let table = weight.clone() + self.delta();
        match &self.magnitude {
            None => table,
            Some(magnitude) => {
                let factor = magnitude.over(dora::norms(weight, &self.change()));
                table * factor.unsqueeze()
            }
        }
        .reshape(shape)
    }

    fn embedding(&self, ids: Tensor<2, Int>, inner: &dyn BaseEmbedding) -> Tensor<3> {
        let down = embedding(self.lora_a.val(), ids.clone());
        let up = (self.lora_b.val() * self.scale).unsqueeze();
        let rows = inner.forward(ids) + down.matmul(up);
        match &self.magnitude {
            None => rows,
            Some(magnitude) => {
                let factor = magnitude.over(dora::norms(inner.weight(), &self.change()));
                rows * factor.unsqueeze()
            }
        }
    }

    // DoRA's norms are of the whole table.
    fn needs_weight(&self) -> bool {
        self.magnitude.is_some()
    }

    fn keeps_weight(&self) -> bool {
        self.magnitude.is_some()
    }

    fn affects_tied_head(&self) -> bool {
        self.head.is_some()
    }

    fn tied_low_rank(&self) -> Option<LowRank> {
        let head = self.head.as_ref().filter(|_| self.magnitude.is_none())?;
        Some(LowRank {
            down: self.lora_b.val().transpose(),
            up: self.lora_a.val().transpose(),
            scale: self.scale,
            dropout: dropout_rate(&head.dropout),
        })
    }
}

/// What `lora_bias` adds to a layer's bias: `b + s·β`, as if B had a bias.
#[derive(Module, Adapter, Debug)]
pub struct LoraBias {
    /// β, `[out]`.
    #[tensor("lora_B.bias")]
    pub lora_b: Param<Tensor<1>>,
    /// s.
    pub scale: f64,
}

impl WeightAdapter for LoraBias {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + (self.lora_b.val() * self.scale).reshape(shape)
    }
}
