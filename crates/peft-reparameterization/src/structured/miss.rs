//! MiSS: the rows of a weight, r at a time, all change by the same small matrix.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::prelude::*;
use peft_core::nn::AdaptedForward;

use crate::init_name::InitWeights;

/// `W' = W + E D`: row i changes by row `i mod r` of D, whose columns repeat where there are fewer than
/// the layer's.
///
/// On the activation side the features of x that share a row are added up first, `[tokens, r]`, so
/// that no matrix of the weight's size is made.
#[derive(Module, Adapter, Debug)]
pub struct MissLinear {
    /// D, `[r, out]`; `[r, mini_r]` for the variant `mini`.
    #[tensor("miss_block")]
    pub miss_block: Param<Tensor<2>>,
    /// On the layer's input; on the activation side only.
    pub dropout: Dropout,
}

impl MissLinear {
    /// The change of a weight `[rows, columns]`.
    fn delta(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let [rank, width] = self.miss_block.dims();
        let wide = self.miss_block.val().repeat_dim(1, columns / width);
        wide.repeat_dim(0, rows.div_ceil(rank)).narrow(0, 0, rows)
    }

    /// The change of the output for `input` `[tokens, in]`: `[tokens, out]`, or the `mini_r` columns
    /// that repeat.
    fn product(&self, input: Tensor<2>) -> Tensor<2> {
        let [rank, _] = self.miss_block.dims();
        let [tokens, d_in] = input.dims();
        let blocks = d_in.div_ceil(rank);
        let missing = blocks * rank - d_in;
        let input = if missing == 0 {
            input
        } else {
            let like = (&input.device(), input.dtype());
            let zeros = Tensor::zeros([tokens, missing], like);
            Tensor::cat(vec![input, zeros], 1)
        };
        let sums = input.reshape([tokens, blocks, rank]).sum_dim(1);
        sums.reshape([tokens, rank]).matmul(self.miss_block.val())
    }
}

impl WeightAdapter for MissLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let delta = self.delta([shape[0], shape[1]]);
        weight + delta.reshape(shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let change = self.product(self.dropout.adapted(input.clone()));
        let output = inner.forward(input);
        let ([tokens, out], [_, width]) = (output.dims(), change.dims());
        if width == out {
            return output + change;
        }
        let repeated = output.reshape([tokens, out / width, width]);
        (repeated + change.reshape([tokens, 1, width])).reshape([tokens, out])
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// The variant `bat`: W in blocks `[r, r]`, `W'_{ij} = W_{ij} + B_jᵀ W_{ij} + B_jᵀ`, j being the block's
/// place among the outputs.
///
/// Every block of outputs sees another input, so the weight is composed.
#[derive(Module, Adapter, Debug)]
pub struct MissBat {
    /// B, `[out / r, r, r]`.
    #[tensor("miss_block")]
    pub miss_block: Param<Tensor<3>>,
}

impl WeightAdapter for MissBat {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let [blocks, r, _] = self.miss_block.dims();
        let shape = weight.shape();
        let rows = shape[0] / r;
        // For each block of outputs the transposes of its blocks, one below the other.
        let split = weight.clone().reshape([rows, r, blocks, r]);
        let columns = split.permute([2, 0, 3, 1]).reshape([blocks, rows * r, r]);
        let products = columns.matmul(self.miss_block.val());
        let change = products.reshape([blocks, rows, r, r])
            + self.miss_block.val().reshape([blocks, 1, r, r]);
        weight + change.permute([1, 3, 0, 2]).reshape(shape)
    }
}

const BAT: &str = "bat";
const MINI: &str = "mini";

/// MiSS's configuration. Fields are called and behave as in Hugging Face PEFT's `MissConfig`.
#[method_config(
    MISS, peft_type = "MISS", title = "MiSS", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Kang & Yin 2024, MiSS: Revisiting the Trade-off in LoRA with an Efficient \
                Shard-Sharing Structure"
)]
pub struct MissConfig {
    /// Rows of D, at most the layer's input features; for `bat` a divisor of both the layer's sides.
    #[field(default = 64, at_least = 1)]
    pub r: usize,
    /// Dropout probability on the layer's input where the change is computed, on the activation side only. Not for
    /// `bat`, as upstream.
    #[field(probability)]
    pub miss_dropout: f64,
    /// Columns of D for `mini`: a divisor of the layer's output features.
    #[field(default = 1, any)]
    pub mini_r: usize,
    /// Variant and initial values. Default: true, D is zero. False: random, so that a fresh adapter does change outputs; for
    /// tests. `"bat"`: blocks of W are multiplied as well. `"mini"`: D has `mini_r` columns, which repeat. Both are zero
    /// at first.
    pub init_weights: InitWeights,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl MissConfig {
    /// The variant `bat`, with blocks of `r`.
    pub fn bat(r: usize) -> Self {
        Self::new(r).with_init_weights(BAT)
    }

    /// The variant `mini`, with `r` rows and `mini_r` columns.
    pub fn mini(r: usize, mini_r: usize) -> Self {
        let mini = Self::new(r).with_mini_r(mini_r);
        mini.with_init_weights(MINI)
    }

    fn bat_on(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<MissBat> {
        let (d_in, out, r) = (target.d_in, target.d_out, self.r);
        if !(d_in.is_multiple_of(r) && out.is_multiple_of(r)) {
            return Err(refusal(target, "r", r, "a divisor of both"));
        }
        let miss_block = plan.init().zeros([out / r, r, r], target.like());
        Ok(MissBat { miss_block })
    }

    fn on(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<MissLinear> {
        let (d_in, out) = (target.d_in, target.d_out);
        if plan.is_new() && self.r > d_in {
            return Err(refusal(target, "r", self.r, "at most the inputs"));
        }
        let mini = self.init_weights.is(MINI);
        if mini && !out.is_multiple_of(self.mini_r) {
            let expected = "a divisor of the outputs";
            return Err(refusal(target, "mini_r", self.mini_r, expected));
        }
        let shape = [self.r, if mini { self.mini_r } else { out }];
        let miss_block = if self.init_weights == InitWeights::Default(false) {
            plan.init().kaiming_uniform(shape, out, target.like())
        } else {
            plan.init().zeros(shape, target.like())
        };
        Ok(MissLinear {
            miss_block,
            dropout: DropoutConfig::new(self.miss_dropout).init(),
        })
    }
}

/// What only a layer's shape tells.
fn refusal(target: &TargetLayer<'_>, field: &'static str, value: usize, expected: &str) -> Error {
    let (name, d_in, out) = (target.name(), target.d_in, target.d_out);
    let expected = format!("`{name}` is {d_in} × {out}, so {expected}");
    Error::config(MISS.title, field, value, expected)
}

impl Method for MissConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.init_weights.check(&MISS, &[BAT, MINI])?;
        if self.mini_r == 0 && self.init_weights.is(MINI) {
            return Err(MISS.refusal("mini_r", self.mini_r, "at least 1"));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        if self.init_weights.is(BAT) {
            return adapt_each(self, &targets, layout, plan, |target, plan| {
                self.bat_on(target, plan)
            });
        }
        adapt_each(self, &targets, layout, plan, |target, plan| {
            self.on(target, plan)
        })
    }

    fn max_rank(&self) -> Option<usize> {
        match &self.init_weights {
            InitWeights::Named(name) if name == BAT => None,
            InitWeights::Named(_) => Some(self.r.min(self.mini_r)),
            InitWeights::Default(_) => Some(self.r),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Tolerance};
    use peft_core::method::Init;

    #[test]
    fn summed_inputs_give_what_the_change_of_the_weight_gives() {
        for (_, device) in peft_core::device::cpu_devices() {
            let mut init = Init::new(2);
            let like = (&device, DType::F32);
            for (rank, d_in, width) in [(4, 12, 6), (5, 12, 6), (12, 12, 3), (1, 7, 1)] {
                let adapter = MissLinear {
                    miss_block: init.normal([rank, width], 1.0, like),
                    dropout: DropoutConfig::new(0.0).init(),
                };
                let input = init.normal([3, d_in], 1.0, like).val();
                let direct = input.clone().matmul(adapter.delta([d_in, 6]));
                let repeated = adapter.product(input).repeat_dim(1, 6 / width);
                repeated
                    .into_data()
                    .assert_approx_eq(&direct.into_data(), Tolerance::<f32>::rel_abs(1e-4, 1e-5));
            }
        }
    }

    #[test]
    fn bat_multiplies_and_adds_blocks() {
        for (_, device) in peft_core::device::cpu_devices() {
            let mut init = Init::new(4);
            let like = (&device, DType::F32);
            let adapter = MissBat {
                miss_block: init.normal([3, 2, 2], 1.0, like),
            };
            let weight = init.normal([4, 6], 1.0, like).val();
            let composed = adapter.compose(weight.clone());
            for (i, j) in [(0, 0), (1, 0), (0, 2), (1, 1)] {
                let block =
                    |matrix: &Tensor<2>| matrix.clone().narrow(0, 2 * i, 2).narrow(1, 2 * j, 2);
                let change: Tensor<2> = adapter.miss_block.val().narrow(0, j, 1).reshape([2, 2]);
                let change = change.transpose();
                let expected = block(&weight) + change.clone().matmul(block(&weight)) + change;
                block(&composed)
                    .into_data()
                    .assert_approx_eq(&expected.into_data(), Tolerance::<f32>::rel_abs(1e-4, 1e-5));
            }
        }
    }
}
