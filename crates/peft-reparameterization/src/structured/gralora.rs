//! GraLoRA: a weight is a grid of blocks, and each block has a low-rank change of its own.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;
use peft_core::nn::{AdaptedForward, dropout_rate};

/// `W' = W + s·ΔW`. Block (i, j) of the k × k blocks of ΔW is `A_ij B_ij`, of rank r / k.
///
/// On the activation side x is cut into k parts, and each part is multiplied with its own A. The results are exchanged
/// between the blocks of outputs, and multiplied with their B. That is a LoRA's work at the same r.
#[derive(Module, Adapter, Debug)]
pub struct GraLoraLinear {
    /// `A_i1` to `A_ik` side by side for each block i of inputs, `[k, in / k, r]`.
    #[tensor("gralora_A")]
    pub gralora_a: Param<Tensor<3>>,
    /// `B_1j` to `B_kj` one above the other for each block j of outputs, `[k, r, out / k]`.
    #[tensor("gralora_B")]
    pub gralora_b: Param<Tensor<3>>,
    /// A LoRA of the whole weight besides: the hybrid form.
    #[nested]
    pub general: Option<GraLoraGeneral>,
    /// s: alpha / (r + `hybrid_r`).
    pub scale: f64,
    /// On the layer's input; on the activation side only.
    pub dropout: Dropout,
}

/// The factors of the hybrid form, which see all inputs and all outputs.
#[derive(Module, Adapter, Debug)]
pub struct GraLoraGeneral {
    /// `[in, hybrid_r]`.
    #[tensor("gralora_A_general.weight", transposed)]
    pub a: Param<Tensor<2>>,
    /// `[hybrid_r, out]`.
    #[tensor("gralora_B_general.weight", transposed)]
    pub b: Param<Tensor<2>>,
}

impl GraLoraLinear {
    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        let ([k, width, rank], [_, _, out]) = (self.gralora_a.dims(), self.gralora_b.dims());
        let share = rank / k;
        // Both as i, j and then a small matrix.
        let a = self.gralora_a.val().reshape([k, width, k, share]);
        let b = self.gralora_b.val().reshape([k, k, share, out]);
        let a = a.permute([0, 2, 1, 3]).reshape([k * k, width, share]);
        let b = b.permute([1, 0, 2, 3]).reshape([k * k, share, out]);
        let blocks = (a * self.scale).matmul(b).reshape([k, k, width, out]);
        let delta = blocks.permute([0, 2, 1, 3]).reshape([k * width, k * out]);
        match self.general(0.0) {
            Some(general) => delta + general.product(),
            None => delta,
        }
    }

    fn general(&self, dropout: f64) -> Option<LowRank> {
        let general = self.general.as_ref()?;
        Some(LowRank {
            down: general.a.val(),
            up: general.b.val(),
            scale: self.scale,
            dropout,
        })
    }

    /// What the blocks add to the output for `input` `[tokens, in]`: `[tokens, out]`.
    fn of_blocks(&self, input: Tensor<2>) -> Tensor<2> {
        let ([k, width, rank], [_, _, out]) = (self.gralora_a.dims(), self.gralora_b.dims());
        let [tokens, _] = input.dims();
        let parts = input.reshape([tokens, k, width]).swap_dims(0, 1);
        let down = parts.matmul(self.gralora_a.val());
        // For each block of inputs a part for each block of outputs: the other way round.
        let down = down.reshape([k, tokens, k, rank / k]);
        let exchanged = down.permute([2, 1, 0, 3]).reshape([k, tokens, rank]);
        let up = exchanged.matmul(self.gralora_b.val() * self.scale);
        up.swap_dims(0, 1).reshape([tokens, k * out])
    }
}

impl WeightAdapter for GraLoraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + self.delta().reshape(shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // No `low_rank`: as factors of the whole weight the blocks have rank k r, which costs k times as much.
    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let output = match self.general(dropout_rate(&self.dropout)) {
            Some(general) => inner.forward_with(input.clone(), general),
            None => inner.forward(input.clone()),
        };
        output + self.of_blocks(self.dropout.adapted(input))
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// GraLoRA's configuration. Fields are called and behave as in Hugging Face PEFT's `GraloraConfig`.
#[method_config(
    GRALORA, name = "gralora", peft_type = "GRALORA", title = "GraLoRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Jung et al. 2025, GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning, section 3",
    unsupported("fan_in_fan_out")
)]
pub struct GraLoraConfig {
    /// Rank of all blocks of a row or of a column together: a multiple of `gralora_k`, and at most the layer's smaller
    /// side. The number of parameters is that of a LoRA of this rank.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// Rank of a plain LoRA of the whole weight besides the blocks (the hybrid form), at most the layer's smaller side.
    /// 0: none.
    #[field(any)]
    pub hybrid_r: usize,
    /// Scaling numerator: the change is scaled by alpha / (r + `hybrid_r`).
    #[field(default = 64.0, finite)]
    pub alpha: f64,
    /// Dropout probability on the layer's input where the change is computed, on the activation side only.
    #[field(probability)]
    pub gralora_dropout: f64,
    /// Blocks along each side of the weight, k: a divisor of `r` and of the layer's inputs and outputs.
    #[field(default = 2, at_least = 1)]
    pub gralora_k: usize,
    /// Whether a fresh adapter changes nothing: all B are zero. Else they are random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl GraLoraConfig {
    fn refuse<T>(&self, field: &'static str, value: usize, expected: String) -> Result<T> {
        Err(Error::config(self.info().title, field, value, expected))
    }
}

impl LinearMethod for GraLoraConfig {
    type State = GraLoraLinear;

    fn check(&self) -> Result<()> {
        let k = self.gralora_k;
        if self.r.is_multiple_of(k) {
            return Ok(());
        }
        self.refuse(
            "r",
            self.r,
            format!("a multiple of gralora_k, which is {k}"),
        )
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<GraLoraLinear> {
        let (name, d_in, out, like) = (target.name(), target.d_in, target.d_out, target.like());
        let (rank, hybrid, k) = (self.r, self.hybrid_r, self.gralora_k);
        if !(d_in.is_multiple_of(k) && out.is_multiple_of(k)) {
            let expected = format!("`{name}` is {d_in} × {out}, so a divisor of both");
            return self.refuse("gralora_k", k, expected);
        }
        let most = d_in.min(out);
        for (field, rank) in [("r", rank), ("hybrid_r", hybrid)] {
            if plan.is_new() && rank > most {
                let expected = format!("`{name}` is {d_in} × {out}, so at most {most}");
                return self.refuse(field, rank, expected);
            }
        }
        let (width, height) = (d_in / k, out / k);
        let init = plan.init();
        let gralora_a = init.kaiming_uniform([k, width, rank], width, like);
        let gralora_b =
            init.zeros_or_kaiming_uniform(self.init_weights, [k, rank, height], rank, like);
        let general = (hybrid > 0).then(|| GraLoraGeneral {
            a: init.kaiming_uniform([d_in, hybrid], d_in, like),
            b: init.zeros_or_kaiming_uniform(self.init_weights, [hybrid, out], hybrid, like),
        });
        Ok(GraLoraLinear {
            gralora_a,
            gralora_b,
            general,
            scale: self.alpha / (rank as f64 + hybrid as f64),
            dropout: DropoutConfig::new(self.gralora_dropout).init(),
        })
    }

    fn max_rank(&self) -> Option<usize> {
        let of_blocks = self.r.checked_mul(self.gralora_k)?;
        of_blocks.checked_add(self.hybrid_r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    fn adapter(k: usize, [d_in, out]: [usize; 2], rank: usize, device: &Device) -> GraLoraLinear {
        let mut init = Init::new(5);
        let like = (device, DType::F32);
        GraLoraLinear {
            gralora_a: init.normal([k, d_in / k, rank], 1.0, like),
            gralora_b: init.normal([k, rank, out / k], 1.0, like),
            general: Some(GraLoraGeneral {
                a: init.normal([d_in, 2], 1.0, like),
                b: init.normal([2, out], 1.0, like),
            }),
            scale: 0.7,
            dropout: DropoutConfig::new(0.0).init(),
        }
    }

    #[test]
    fn every_block_is_a_product_of_its_own_factors() {
        for (_, device) in peft_core::device::cpu_devices() {
            for (k, d_in, out, rank) in [(1, 4, 6, 2), (2, 4, 6, 4), (3, 9, 6, 3)] {
                let adapter = adapter(k, [d_in, out], rank, &device);
                let numbers =
                    |tensor: Tensor<1>| -> Vec<f32> { tensor.into_data().iter().collect() };
                let a = numbers(adapter.gralora_a.val().reshape([-1]));
                let b = numbers(adapter.gralora_b.val().reshape([-1]));
                let general = adapter.general.as_ref().unwrap();
                let general = numbers(general.a.val().matmul(general.b.val()).reshape([-1]));
                let delta = numbers(adapter.delta().reshape([-1]));
                let (width, height, share) = (d_in / k, out / k, rank / k);
                for row in 0..d_in {
                    for column in 0..out {
                        let (i, j) = (row / width, column / height);
                        let (row_in, column_in) = (row % width, column % height);
                        let sum: f32 = (0..share)
                            .map(|at| {
                                let a = a[(i * width + row_in) * rank + j * share + at];
                                let b = b[(j * rank + i * share + at) * height + column_in];
                                a * b
                            })
                            .sum();
                        let expected = 0.7 * (sum + general[row * out + column]);
                        let found = delta[row * out + column];
                        assert!((found - expected).abs() < 1e-5, "{k}: {found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn exchanged_parts_give_what_the_change_of_the_weight_gives() {
        for (_, device) in peft_core::device::cpu_devices() {
            for (k, d_in, out, rank) in [(1, 4, 6, 2), (2, 8, 6, 4), (4, 8, 16, 4)] {
                let adapter = adapter(k, [d_in, out], rank, &device);
                let adapter = GraLoraLinear {
                    general: None,
                    ..adapter
                };
                let input = Init::new(6).normal([5, d_in], 1.0, (&device, DType::F32));
                let input = input.val();
                let direct = input.clone().matmul(adapter.delta());
                adapter
                    .of_blocks(input)
                    .into_data()
                    .assert_approx_eq(&direct.into_data(), Tolerance::<f32>::rel_abs(1e-4, 1e-5));
            }
        }
    }
}
