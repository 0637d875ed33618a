//! LoKr: the change of a weight is a Kronecker product; KronA is the form with two whole factors.

use burn::tensor::module::conv2d;
use peft_core::method::LINEAR_AND_CONV;
use peft_core::method::prelude::*;

use crate::init_name::InitWeights;
use crate::lycoris::change_dropout::ChangeDropout;
use crate::lycoris::tucker;

/// One factor of a Kronecker product: a matrix, or the product of two of rank r. Of a convolution the second factor is the
/// matrix of a kernel.
#[derive(Module, Debug)]
pub struct KroneckerFactor {
    /// The matrix, `[in, out]`; where there is a second, `[in, r]`. With a core, `in` is channels alone.
    pub first: Param<Tensor<2>>,
    /// `[r, out]`.
    pub second: Option<Param<Tensor<2>>>,
    /// A core between the two, `[r, r, h, w]`: upstream's `use_effective_conv2d`.
    pub core: Option<Param<Tensor<4>>>,
    /// The kernel's axes, `[h, w]` or `[k]`: a file has the whole matrix as `[out, channels, …]`. Empty for a matrix.
    #[module(skip)]
    pub kernel: Vec<usize>,
}

impl KroneckerFactor {
    /// Values drawn or zero for a factor `[in, out]`; `zero` says it of the first and the second
    /// matrix.
    pub(crate) fn draw(
        init: &mut Init,
        [d_in, out]: [usize; 2],
        rank: Option<usize>,
        zero: [bool; 2],
        like: (&Device, DType),
    ) -> Self {
        let mut draw = |shape: [usize; 2], zero| {
            if zero {
                init.zeros(shape, like)
            } else {
                init.kaiming_uniform(shape, shape[0], like)
            }
        };
        Self {
            first: draw([d_in, rank.unwrap_or(out)], zero[0]),
            second: rank.map(|rank| draw([rank, out], zero[1])),
            core: None,
            kernel: Vec::new(),
        }
    }

    /// The same with a core, of `channels` and outputs.
    fn draw_with_core(
        init: &mut Init,
        [channels, out]: [usize; 2],
        rank: usize,
        zero: bool,
        kernel: &[usize],
        like: (&Device, DType),
    ) -> Self {
        let [height, width] = tucker::size(kernel);
        let core = [rank, rank, height, width];
        Self {
            first: if zero {
                init.zeros([channels, rank], like)
            } else {
                init.kaiming_uniform([channels, rank], channels, like)
            },
            second: Some(init.kaiming_uniform([rank, out], out, like)),
            core: Some(init.kaiming_uniform(core, rank * height * width, like)),
            kernel: kernel.to_vec(),
        }
    }

    /// Input and output features.
    fn sizes(&self) -> [usize; 2] {
        let [rows, columns] = self.first.dims();
        let out = self.second.as_ref().map_or(columns, |up| up.dims()[1]);
        let size = match &self.core {
            Some(_) => self.kernel.iter().product(),
            None => 1,
        };
        [rows * size, out]
    }

    /// Multiplications for one row.
    fn cost(&self) -> usize {
        let [d_in, columns] = self.first.dims();
        let second = self.second.as_ref().map(|up| columns * up.dims()[1]);
        d_in * columns + second.unwrap_or(0)
    }

    /// The matrix, `[in, out]`.
    fn matrix(&self) -> Tensor<2> {
        let first = self.first.val();
        match (&self.second, &self.core) {
            (Some(second), Some(core)) => {
                tucker::kernel(core.val(), second.val(), first.transpose()).transpose()
            }
            (Some(second), None) => first.matmul(second.val()),
            (None, _) => first,
        }
    }

    /// `rows` `[n, in]` times `scale` and the matrix, which is not made: returns `[n, out]`.
    fn apply(&self, rows: Tensor<2>, scale: f64) -> Tensor<2> {
        let rows = rows.matmul(self.first.val() * scale);
        match &self.second {
            Some(second) => rows.matmul(second.val()),
            None => rows,
        }
    }

    /// As upstream calls them: `key`, or `key_b` and `key_a`.
    pub(crate) fn tensors(&self, field: &str, key: &str) -> Vec<CheckpointKey> {
        let spec = |part: &str, end: &str| {
            CheckpointKey::layer(&format!("{field}.{part}"), &format!("{key}{end}")).transposed()
        };
        match (&self.second, &self.core) {
            (Some(_), Some(_)) => {
                let as_it_is =
                    CheckpointKey::layer(&format!("{field}.second"), &format!("{key}_a"));
                vec![spec("first", "_b"), as_it_is]
            }
            (Some(_), None) => vec![spec("first", "_b"), spec("second", "_a")],
            (None, _) if self.kernel.is_empty() => vec![spec("first", "")],
            (None, _) => {
                let [rows, out] = self.first.lazy_shape().dims();
                let size: usize = self.kernel.iter().product();
                let shape = [&[out, rows / size], self.kernel.as_slice()].concat();
                vec![spec("first", "").shaped(&shape)]
            }
        }
    }
}

/// `input` holds `rows` matrices `[a, b]`, one after the other: returns the rows of their transposes,
/// `[rows·b, a]`.
fn swapped(input: Tensor<2>, [rows, a, b]: [usize; 3]) -> Tensor<2> {
    let split = input.reshape([rows, a, b]).swap_dims(1, 2);
    split.reshape([rows * b, a])
}

/// `W' = W + s·(K₁ ⊗ K₂)`, with `[in, out]` of W being `[in₁·in₂, out₁·out₂]`. Of a convolution W is the kernel's
/// [matrix](peft_core::method::matrix_of), K₁ divides its channels, and K₂ has its height and width.
///
/// On the activation side x is a matrix `[in₁, in₂]`, and its change `K₁ᵀ x K₂`: the Kronecker product
/// is never made.
#[derive(Module, Debug)]
pub struct LokrLinear {
    /// K₁, `[in₁, out₁]`: upstream's `lokr_w1`, transposed.
    pub w1: KroneckerFactor,
    /// K₂, `[in₂, out₂]`: upstream's `lokr_w2`, transposed.
    pub w2: KroneckerFactor,
    /// s: alpha / r.
    pub scale: f64,
    /// On the change.
    pub dropout: ChangeDropout,
}

impl LokrLinear {
    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        let ([in_1, out_1], [in_2, out_2]) = (self.w1.sizes(), self.w2.sizes());
        let first = (self.w1.matrix() * self.scale).reshape([in_1, 1, out_1, 1]);
        let second = self.w2.matrix().reshape([1, in_2, 1, out_2]);
        (first * second).reshape([in_1 * in_2, out_1 * out_2])
    }

    /// The change of the output, `[tokens, out]`, for `input` `[tokens, in]`.
    pub(crate) fn product(&self, input: Tensor<2>) -> Tensor<2> {
        let [tokens, _] = input.dims();
        let ([in_1, out_1], [in_2, out_2]) = (self.w1.sizes(), self.w2.sizes());
        let (cost_1, cost_2) = (self.w1.cost(), self.w2.cost());
        let product = if in_1 * cost_2 + out_2 * cost_1 <= in_2 * cost_1 + out_1 * cost_2 {
            let rows = self.w2.apply(input.reshape([tokens * in_1, in_2]), 1.0);
            let rows = self
                .w1
                .apply(swapped(rows, [tokens, in_1, out_2]), self.scale);
            swapped(rows, [tokens, out_2, out_1])
        } else {
            let rows = self
                .w1
                .apply(swapped(input, [tokens, in_1, in_2]), self.scale);
            self.w2.apply(swapped(rows, [tokens, in_2, out_1]), 1.0)
        };
        product.reshape([tokens, out_1 * out_2])
    }
}

impl Adapter for LokrLinear {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut tensors = self.w1.tensors("w1", "lokr_w1");
        tensors.extend(self.w2.tensors("w2", "lokr_w2"));
        if self.w2.core.is_some() {
            tensors.push(CheckpointKey::layer("w2.core", "lokr_t2"));
        }
        tensors
    }
}

impl WeightAdapter for LokrLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        weight + from_matrix(self.delta(), shape)
    }

    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let kernel = inner.weight();
        let change = self
            .dropout
            .of_rows(self.delta().transpose(), &self.w1.first);
        let shape = kernel.shape();
        conv2d(input, kernel + change.reshape(shape), None, inner.options())
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let change = self.product(input.clone());
        let [_, out] = change.dims();
        let change = match self.dropout.factors(out, &self.w1.first) {
            Some(factors) => change * factors,
            None => change,
        };
        inner.forward(input) + change
    }
}

/// The name of LyCORIS's initial values.
const LYCORIS: &str = "lycoris";

/// LoKr's configuration. Fields are called and behave as in Hugging Face PEFT's `LoKrConfig`.
#[method_config(
    LOKR, peft_type = "LOKR", title = "LoKr", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Yeh et al. 2023, LyCORIS, section 3.2; Edalati et al. 2022, KronA"
)]
pub struct LokrConfig {
    /// Rank of a factor that is a product. K₂ is a whole matrix where r is at least half of its larger side.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Scaling numerator: the change is scaled by alpha / r, also where both factors are whole.
    #[field(default = 8.0, finite)]
    pub alpha: f64,
    /// Probability that an output feature of the change is dropped in training, on the activation side only.
    #[field(probability)]
    pub rank_dropout: f64,
    /// Probability that the whole change of a layer is dropped in a pass in training, on the activation side only.
    #[field(probability)]
    pub module_dropout: f64,
    /// Whether K₂ has a core at convolutions whose kernel has more than one element, where it is of rank r. Else its kernel is
    /// taken for a matrix.
    pub use_effective_conv2d: bool,
    /// Whether K₁ is a product of rank r too, where r is below half of its larger side.
    pub decompose_both: bool,
    /// How many of a layer's features, in and out, are K₁'s, where that divides them. Else it is the
    /// largest divisor that is neither above this nor above the square root; -1 is no bound.
    #[field(default = -1, any)]
    pub decompose_factor: i64,
    /// Whether the features that `rank_dropout` leaves grow by the inverse of the share that stayed.
    pub rank_dropout_scale: bool,
    /// KronA's shapes: both factors are whole whatever r is, and K₂ has the sides of K₁ the other way
    /// round, as `[16, 24]` and `[24, 16]` of `[384, 384]`. Not one of upstream's fields, and written
    /// only if it is true.
    #[field(skip_false)]
    pub krona: bool,
    /// Initial values. Default: true, K₁ is zero, K₂ random. False: both random, so that a fresh adapter does change
    /// outputs; for tests. `"lycoris"`: K₂ is zero, K₁ random, as in the LyCORIS library.
    pub init_weights: InitWeights,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(at_least = 1)]
    pub rank_pattern: ByLayer<usize>,
    /// Other alphas for some layers.
    #[field(finite)]
    pub alpha_pattern: ByLayer<f64>,
    pub targets: Targets,
    pub common: Common,
}

impl LokrConfig {
    /// KronA (Edalati et al. 2022), scaled by `scale`.
    pub fn krona(scale: f64) -> Self {
        Self::new(1).with_alpha(scale).with_krona(true)
    }
}

/// `width` as the product of K₁'s features and K₂'s, as upstream splits it.
pub(crate) fn split(width: usize, factor: i64) -> [usize; 2] {
    let most = match usize::try_from(factor) {
        Ok(factor) if factor > 0 && width.is_multiple_of(factor) => {
            return [factor, width / factor];
        }
        Ok(factor) => factor,
        Err(_) if factor == -1 => width,
        Err(_) => 0,
    };
    // The first divisor that is not below its cofactor ends the search.
    let mut pair = [1, width];
    for divisor in 2..=width.min(most) {
        if pair[0] >= pair[1] {
            break;
        }
        if width.is_multiple_of(divisor) {
            pair = [divisor, width / divisor];
        }
    }
    pair.sort_unstable();
    pair
}

impl LinearMethod for LokrConfig {
    type State = LokrLinear;

    const LAYERS: &'static [LayerKind] = LINEAR_AND_CONV;

    fn check(&self) -> Result<()> {
        self.init_weights.check(&LOKR, &[LYCORIS])
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<LokrLinear> {
        let (name, like) = (target.name(), target.like());
        let rank = self.rank_pattern.of(name, self.r)?;
        let alpha = self.alpha_pattern.of(name, self.alpha)?;
        // Of a convolution's inputs, channels are divided and the rest is K₂'s.
        let kernel = target.kernel();
        let size: usize = kernel.iter().product();
        let [in_1, in_2] = split(target.d_in / size, self.decompose_factor);
        let [mut out_1, mut out_2] = split(target.d_out, self.decompose_factor);
        if self.krona {
            (out_1, out_2) = (out_2, out_1);
        }
        // Whether r is below half of the larger side.
        let is_product =
            |sides: [usize; 2]| !self.krona && rank < sides[0].max(sides[1]).div_ceil(2);
        let rank_1 = (self.decompose_both && is_product([in_1, out_1])).then_some(rank);
        let rank_2 = is_product([in_2, out_2]).then_some(rank);
        // Zero is the last matrix of K₁, as upstream has it.
        let zero_1 = self.init_weights == InitWeights::Default(true);
        let zero_1 = [zero_1 && rank_1.is_none(), zero_1];
        let zero_2 = matches!(self.init_weights, InitWeights::Named(_));
        let init = plan.init();
        let w1 = KroneckerFactor::draw(init, [in_1, out_1], rank_1, zero_1, like);
        let with_core = self.use_effective_conv2d && tucker::has_core(&kernel);
        let w2 = match rank_2.filter(|_| with_core) {
            Some(rank) => {
                KroneckerFactor::draw_with_core(init, [in_2, out_2], rank, zero_2, &kernel, like)
            }
            None => KroneckerFactor {
                kernel,
                ..KroneckerFactor::draw(init, [in_2 * size, out_2], rank_2, [zero_2, false], like)
            },
        };
        Ok(LokrLinear {
            w1,
            w2,
            scale: alpha / rank as f64,
            dropout: ChangeDropout::new(
                self.rank_dropout,
                self.module_dropout,
                self.rank_dropout_scale,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn widths_split_as_upstream_splits_them() {
        for (width, factor, expected) in [
            (256, -1, [16, 16]),
            (128, -1, [8, 16]),
            (384, -1, [16, 24]),
            (127, -1, [1, 127]),
            (128, 4, [4, 32]),
            (32, 16, [16, 2]),
            (128, 3, [2, 64]),
            (36, 100, [6, 6]),
            (12, 0, [1, 12]),
            (12, -2, [1, 12]),
            (1, -1, [1, 1]),
        ] {
            assert_eq!(split(width, factor), expected, "{width} by {factor}");
        }
    }

    #[test]
    fn the_product_is_that_with_the_kronecker_product() {
        let shapes = [
            ([4, 3], [5, 6], [None, Some(2)]),
            ([2, 8], [6, 3], [Some(1), None]),
            ([8, 2], [3, 6], [None, None]),
        ];
        for (_, device) in peft_core::device::cpu_devices() {
            let mut init = Init::new(5);
            let like = (&device, DType::F32);
            for (first, second, ranks) in shapes {
                let mut draw =
                    |shape, rank| KroneckerFactor::draw(&mut init, shape, rank, [false; 2], like);
                let adapter = LokrLinear {
                    w1: draw(first, ranks[0]),
                    w2: draw(second, ranks[1]),
                    scale: 0.5,
                    dropout: ChangeDropout::new(0.0, 0.0, false),
                };
                let input = init.normal([7, first[0] * second[0]], 1.0, like).val();
                let direct = input.clone().matmul(adapter.delta());
                adapter
                    .product(input)
                    .into_data()
                    .assert_approx_eq(&direct.into_data(), Tolerance::<f32>::rel_abs(1e-4, 1e-5));
            }
        }
    }
}
