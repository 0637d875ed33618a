//! BOFT: the inputs of a layer are rotated by a butterfly of blocks, and its outputs scaled.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::module::conv2d;
use peft_core::method::LINEAR_AND_CONV;
use peft_core::method::prelude::*;
use peft_core::ops::scale_columns;

use crate::orthogonal::one_of_two;
use crate::orthogonal::rotation::{cayley, drop_blocks, rotate_inputs, rotate_rows};

/// `W' = B_(m−1) … B₁ B₀ W · diag(s)` with factors `B_i = P_i·diag(R_i1, R_i2, …)·P_iᵀ`: rotations in
/// blocks, of features that a permutation has put side by side.
///
/// Of a convolution W is the kernel's [matrix](peft_core::method::matrix_of).
#[derive(Module, Debug)]
pub struct BoftLinear {
    /// What the rotations are made of, by the skew-symmetric part of each matrix:
    /// `[factors, blocks, size, size]`.
    pub boft_r: Param<Tensor<4>>,
    /// s, `[out, 1]`.
    pub boft_s: Param<Tensor<2>>,
    /// Of blocks; on the activation side only.
    pub dropout: Dropout,
    /// Whether the layer is a convolution: a file then has s as `[1, out]`.
    pub of_kernel: bool,
}

impl Adapter for BoftLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let s = CheckpointKey::layer("boft_s", "boft_s");
        let s = if self.of_kernel { s.transposed() } else { s };
        vec![CheckpointKey::layer("boft_r", "boft_R"), s]
    }
}

impl BoftLinear {
    /// The rotations, `[factors, blocks, size, size]`.
    pub fn rotations(&self) -> Tensor<4> {
        let shape = self.boft_r.dims();
        let [factors, count, size, _] = shape;
        let matrices: Tensor<3> = self.boft_r.val().reshape([factors * count, size, size]);
        let skew = (matrices.clone() - matrices.swap_dims(1, 2)) * 0.5;
        cayley(skew).reshape(shape)
    }

    /// The matrix `[in, out]` behind all factors, its outputs scaled.
    fn rotated(&self, mut matrix: Tensor<2>, rotations: &Tensor<4>) -> Tensor<2> {
        for factor in 0..rotations.dims()[0] {
            matrix = turned(matrix, Side::Rows, rotations, factor);
        }
        matrix * self.scale()
    }

    /// s as a row.
    fn scale(&self) -> Tensor<2> {
        self.boft_s.val().reshape([1, -1])
    }
}

/// Which side of a matrix is rotated.
#[derive(Clone, Copy)]
enum Side {
    /// Its rows: `B·M`.
    Rows,
    /// Its columns: `M·B`.
    Columns,
}

/// `B_factor·M` or `M·B_factor`.
fn turned(matrix: Tensor<2>, side: Side, rotations: &Tensor<4>, factor: usize) -> Tensor<2> {
    let [_, count, size, _] = rotations.dims();
    let blocks = rotations.clone().narrow(0, factor, 1);
    let blocks = blocks.reshape([count, size, size]);
    let rotated = |matrix: Tensor<2>| match side {
        Side::Rows => rotate_rows(matrix, blocks),
        Side::Columns => rotate_inputs(matrix, blocks),
    };
    if factor == 0 {
        return rotated(matrix);
    }
    // Halves of blocks that are 2^factor halves apart come together, and go back.
    let apart = 1 << factor;
    let together = exchanged(matrix, side, [2, apart], size / 2);
    exchanged(rotated(together), side, [apart, 2], size / 2)
}

/// Views one side of a matrix as `[…, sizes[0], sizes[1], unit]`, and exchanges the two in the middle.
fn exchanged(matrix: Tensor<2>, side: Side, sizes: [usize; 2], unit: usize) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let (before, width, after) = match side {
        Side::Rows => (1, rows, columns),
        Side::Columns => (rows, columns, 1),
    };
    let groups = width / (sizes[0] * sizes[1] * unit);
    let parts = matrix.reshape([before * groups, sizes[0], sizes[1], unit * after]);
    parts.swap_dims(1, 2).reshape([rows, columns])
}

impl WeightAdapter for BoftLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        from_matrix(self.rotated(matrix_of(weight), &self.rotations()), shape)
    }

    // The kernel is small: it is rotated, not its patches.
    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let rotations = drop_blocks(self.rotations(), &self.dropout);
        let kernel = inner.weight();
        let shape = kernel.shape();
        let kernel = from_matrix(self.rotated(matrix_of(kernel), &rotations), shape);
        conv2d(input, kernel, None, inner.options())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let rotations = drop_blocks(self.rotations(), &self.dropout);
        let mut input = input;
        for factor in (0..rotations.dims()[0]).rev() {
            input = turned(input, Side::Columns, &rotations, factor);
        }
        let scale = self.boft_s.val().reshape([-1]);
        scale_columns(inner.product(input), scale, inner.bias())
    }
}

/// BOFT's configuration. Fields are called and behave as in Hugging Face PEFT's `BOFTConfig`.
#[method_config(
    BOFT, peft_type = "BOFT", title = "BOFT", family = Reparameterization, identity_at_init, mergeable, new(boft_block_size),
    reference = "Liu et al. 2024, Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, section 4",
    unsupported("fan_in_fan_out")
)]
pub struct BoftConfig {
    /// Features of a block; 0 where [`boft_block_num`](Self::boft_block_num) is given.
    #[field(default = 4, any)]
    pub boft_block_size: usize,
    /// Blocks of a factor; 0 where [`boft_block_size`](Self::boft_block_size) is given.
    #[field(any)]
    pub boft_block_num: usize,
    /// Butterfly factors, m. One is rotations in blocks as in OFT. Each factor more doubles the number of inputs that a
    /// rotated feature is made of. `size · 2^(m − 1)` must divide a layer's inputs, and with two or more factors sizes
    /// of blocks are even.
    ///
    /// A file may hold one factor and say more here: upstream makes one where its CUDA extension cannot
    /// be built. Then it is one.
    #[field(default = 1, at_least = 1)]
    pub boft_n_butterfly_factor: usize,
    /// Share of the blocks of one factor, drawn like these anew each time, that do nothing in a pass in training.
    /// Rounded down to whole blocks. On the activation side only.
    #[field(probability)]
    pub boft_dropout: f64,
    pub bias: Bias,
    /// Whether a fresh adapter changes nothing; else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl BoftConfig {
    /// Blocks of a factor and their size, for a layer with `width` inputs.
    fn blocks(&self, layer: &str, width: usize, factors: usize) -> Result<[usize; 2]> {
        let (field, value) = match self.boft_block_size {
            0 => ("boft_block_num", self.boft_block_num),
            size => ("boft_block_size", size),
        };
        if !width.is_multiple_of(value) {
            let expected = format!("`{layer}` has {width} inputs, so a divisor of that");
            return Err(Error::config(BOFT.title, field, value, expected));
        }
        let other = width / value;
        let blocks = match self.boft_block_size {
            0 => [value, other],
            size => [other, size],
        };
        if factors == 1 {
            return Ok(blocks);
        }
        let [count, size] = blocks;
        let span = u32::try_from(factors - 1)
            .ok()
            .and_then(|doublings| 2_usize.checked_pow(doublings));
        if size % 2 == 0 && span.is_some_and(|span| count.is_multiple_of(span)) {
            return Ok(blocks);
        }
        let field = "boft_n_butterfly_factor";
        let expected = format!(
            "m factors need blocks of even size and 2^(m − 1) to divide their number; `{layer}` has {count} \
             blocks of {size}"
        );
        Err(Error::config(BOFT.title, field, factors, expected))
    }
}

impl LinearMethod for BoftConfig {
    type State = BoftLinear;

    const LAYERS: &'static [LayerKind] = LINEAR_AND_CONV;

    fn check(&self) -> Result<()> {
        let sizes = [self.boft_block_size, self.boft_block_num];
        one_of_two(&BOFT, "boft_block_size, boft_block_num", sizes)
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<BoftLinear> {
        let factors = match plan.stored_shape(target.layer, "boft_R") {
            Some([1, _, _, _]) => 1,
            _ => self.boft_n_butterfly_factor,
        };
        let [count, size] = self.blocks(target.name(), target.d_in, factors)?;
        let (shape, out, like) = ([factors, count, size, size], target.d_out, target.like());
        let init = plan.init();
        let (boft_r, boft_s) = if self.init_weights {
            (init.zeros(shape, like), init.zeros([out, 1], like))
        } else {
            let boft_r = init.normal(shape, 0.1, like);
            (boft_r, init.normal([out, 1], 0.1, like))
        };
        // Around 1; a file has its own.
        let boft_s = if plan.is_new() {
            Param::from_tensor((boft_s.val() + 1.0).detach())
        } else {
            boft_s
        };
        Ok(BoftLinear {
            boft_r,
            boft_s,
            dropout: DropoutConfig::new(self.boft_dropout).init(),
            of_kernel: target.layer.kind != LayerKind::Linear,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};
    use peft_core::device::cpu_devices;

    #[test]
    fn three_factors_are_upstreams() {
        for (_, device) in cpu_devices() {
            let numbers = |count: usize| (0..count).map(|at| (at as f32 * 0.9).sin());
            let numbers: Vec<f32> = numbers(3 * 4 * 2 * 2).collect();
            let data = TensorData::new(numbers, [3, 4, 2, 2]);
            let adapter = BoftLinear {
                boft_r: Param::from_tensor(Tensor::from_data(data, &device)),
                boft_s: Param::from_tensor(Tensor::ones([8, 1], &device) * 2.0),
                dropout: DropoutConfig::new(0.0).init(),
                of_kernel: false,
            };
            let one = Tensor::<2>::eye(8, &device);
            let matrix = adapter.compose(one.clone());
            // Rows 0 and 5 of twice the matrix that upstream builds.
            let expected: [[f32; 8]; 2] = [
                [
                    1.29510, 0.24900, -1.38384, -0.28636, 0.38774, -0.23451, -0.17553, -0.16591,
                ],
                [
                    -0.15531, 0.80779, -0.14891, 0.71962, 0.85579, 1.41496, -0.15179, 0.16060,
                ],
            ];
            let rows = Tensor::cat(
                vec![
                    matrix.clone().narrow(0, 0, 1),
                    matrix.clone().narrow(0, 5, 1),
                ],
                0,
            );
            let tolerance = Tolerance::<f32>::relative(1e-5).set_absolute(1e-5);
            rows.into_data()
                .assert_approx_eq(&TensorData::from(expected), tolerance);
            // The activation side multiplies by the same matrix.
            let rotations = adapter.rotations();
            let mut rotated = one;
            for factor in [2, 1, 0] {
                rotated = turned(rotated, Side::Columns, &rotations, factor);
            }
            (rotated * 2.0)
                .into_data()
                .assert_approx_eq(&matrix.into_data(), tolerance);
        }
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        let blocks = |config: BoftConfig, factors| config.blocks("layer", 48, factors).ok();
        assert_eq!(blocks(BoftConfig::new(4), 1), Some([12, 4]));
        assert_eq!(blocks(BoftConfig::new(4), 3), Some([12, 4]));
        assert_eq!(
            blocks(
                BoftConfig::new(4)
                    .with_boft_block_num(8)
                    .with_boft_block_size(0),
                4
            ),
            Some([8, 6])
        );
        assert_eq!(blocks(BoftConfig::new(3), 1), Some([16, 3]));
        assert_eq!(blocks(BoftConfig::new(3), 2), None);
        assert_eq!(blocks(BoftConfig::new(5), 1), None);
        assert_eq!(blocks(BoftConfig::new(4), 4), None);
        assert_eq!(blocks(BoftConfig::new(4), usize::MAX), None);
    }
}
