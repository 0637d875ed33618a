//! OFT: the inputs of a layer are rotated, in blocks.

use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::module::conv2d;
use peft_core::method::LINEAR_EMBEDDING_AND_CONV;
use peft_core::method::prelude::*;

use crate::orthogonal::one_of_two;
use crate::orthogonal::rotation::{
    Triangles, cayley, drop_blocks, neumann, rotate_inputs, rotate_rows,
};

/// `W' = diag(R₁, R₂, …)·W`: the layer sees rotated inputs, `(x·diag(R₁, R₂, …)) W + b`. Of a convolution W is the kernel's
/// [matrix](peft_core::method::matrix_of), so that each output's patch is what is rotated.
#[derive(Module, Adapter, Debug)]
pub struct OftLinear {
    /// Strictly upper triangles of skew-symmetric matrices, row by row: `[blocks, size·(size − 1) / 2]`,
    /// or one row where all blocks are one.
    #[tensor("oft_R.weight")]
    pub oft_r: Param<Tensor<2>>,
    #[no_tensor]
    triangles: Triangles,
    /// Blocks along the diagonal.
    pub blocks: usize,
    /// Terms of the series that stands in for an inverse; `None` for the inverse.
    pub terms: Option<usize>,
    /// COFT's ε; `None` for OFT.
    pub eps: Option<f64>,
    /// Of blocks; on the activation side only.
    pub dropout: Dropout,
}

impl OftLinear {
    /// The rotations, `[blocks, size, size]`; one where all blocks are one.
    pub fn rotations(&self) -> Tensor<3> {
        let weight = match self.eps {
            Some(eps) => projected(self.oft_r.val(), eps),
            None => self.oft_r.val(),
        };
        let skew = self.triangles.skew(weight);
        match self.terms {
            Some(terms) => neumann(skew, terms),
            None => cayley(skew),
        }
    }

    /// One rotation for each block.
    fn of_blocks(&self, rotations: Tensor<3>) -> Tensor<3> {
        let [rows, _, _] = rotations.dims();
        rotations.repeat_dim(0, self.blocks / rows)
    }
}

/// COFT's constraint: every row's skew-symmetric matrix is drawn back into the ball of radius ε / √rows.
///
/// Gradients pass as if nothing had happened: they are taken at the point in the ball, as upstream
/// does, which moves the parameter itself there.
fn projected(weight: Tensor<2>, eps: f64) -> Tensor<2> {
    let dtype = weight.dtype();
    // The ball is too small for f16.
    let fixed = weight.clone().without_autodiff().cast(DType::F32);
    let [rows, _] = fixed.dims();
    let radius = eps / (rows as f64).sqrt();
    // Of the whole matrix, which has every element twice.
    let norms = (fixed.clone().powi_scalar(2).sum_dim(1) * 2.0).sqrt();
    let inside = fixed.clone() * (norms.clamp_min(radius).recip() * radius);
    // Of the parameter's own value, so that what is added has a gradient and no value.
    let own = weight.clone().without_autodiff();
    inside.cast(dtype) + (weight - own)
}

impl WeightAdapter for OftLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let blocks = self.of_blocks(self.rotations());
        from_matrix(rotate_rows(matrix_of(weight), blocks), shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let rotations = drop_blocks(self.rotations().unsqueeze_dim(0), &self.dropout);
        let blocks = self.of_blocks(rotations.squeeze_dim(0));
        inner.forward(rotate_inputs(input, blocks))
    }

    // Overlapping patches are no tensor that could be rotated: the kernel is, which is small.
    fn conv2d(&self, input: Tensor<4>, inner: &dyn BaseConv2d) -> Tensor<4> {
        let rotations = drop_blocks(self.rotations().unsqueeze_dim(0), &self.dropout);
        let blocks = self.of_blocks(rotations.squeeze_dim(0));
        let kernel = inner.weight();
        let shape = kernel.shape();
        let kernel = from_matrix(rotate_rows(matrix_of(kernel), blocks), shape);
        conv2d(input, kernel, None, inner.options())
    }
}

/// OFT on an embedding table: rows are rotated when they are looked up, `W' = W·diag(R₁, R₂, …)`. No dropout, as upstream.
#[derive(Module, Debug)]
pub struct OftEmbedding {
    /// What is done to a linear layer's inputs.
    pub rotation: OftLinear,
}

impl Adapter for OftEmbedding {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = CheckpointKey::layer("oft_r", "oft_embedding_R.weight");
        vec![key.within("rotation")]
    }
}

impl WeightAdapter for OftEmbedding {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let blocks = self.rotation.of_blocks(self.rotation.rotations());
        from_matrix(rotate_inputs(matrix_of(weight), blocks), shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    // Only the rows that are looked up.
    fn embedding(&self, ids: Tensor<2, Int>, inner: &dyn BaseEmbedding) -> Tensor<3> {
        let rows = inner.forward(ids);
        let [batch, seq, width] = rows.dims();
        let blocks = self.rotation.of_blocks(self.rotation.rotations());
        rotate_inputs(rows.reshape([batch * seq, width]), blocks).reshape([batch, seq, width])
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// OFT's configuration. Fields are called and behave as in Hugging Face PEFT's `OFTConfig`.
#[method_config(
    OFT, peft_type = "OFT", title = "OFT", family = Reparameterization, identity_at_init, mergeable, new(oft_block_size),
    reference = "Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning, section 3",
    unsupported("fan_in_fan_out")
)]
pub struct OftConfig {
    /// Number of blocks; 0 where [`oft_block_size`](Self::oft_block_size) is given.
    #[field(any)]
    pub r: usize,
    /// Features of a block; 0 where [`r`](Self::r) is given. What does not divide a layer's inputs is replaced by the
    /// divisor next to it, the lower one of two.
    #[field(default = 32, any)]
    pub oft_block_size: usize,
    /// Share of the blocks that do nothing in a pass in training, drawn anew each time and rounded down to whole
    /// blocks. On the activation side only.
    #[field(probability)]
    pub module_dropout: f64,
    pub bias: Bias,
    /// Whether a fresh adapter changes nothing; else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    /// COFT: rotations stay close to none.
    pub coft: bool,
    /// How close, for COFT: a bound of the matrices that rotations are made of, above 0.
    #[field(default = 6e-5, finite)]
    pub eps: f64,
    /// Whether all blocks of a layer are one.
    pub block_share: bool,
    /// A series in place of an inverse, which makes rotations approximate and cheap (Qiu et al. 2025,
    /// Orthogonal Finetuning Made Scalable).
    #[field(default = true)]
    pub use_cayley_neumann: bool,
    /// Terms of the series, from 2 to 100.
    #[field(default = 5, any)]
    pub num_cayley_neumann_terms: usize,
    pub targets: Targets,
    pub common: Common,
}

impl OftConfig {
    /// Features of a block for a layer of `width` inputs.
    fn block_size(&self, width: usize) -> usize {
        if self.r == 0 {
            nearest_divisor(width, self.oft_block_size)
        } else {
            width / nearest_divisor(width, self.r)
        }
    }
}

/// The divisor of `width` that is next to `wanted`, the lower one of two.
fn nearest_divisor(width: usize, wanted: usize) -> usize {
    if wanted >= width {
        return width;
    }
    let divides = |number: &usize| width.is_multiple_of(*number);
    let lower = (1..=wanted).rev().find(divides).unwrap_or(1);
    let higher = (wanted..=width).find(divides).unwrap_or(width);
    if wanted - lower <= higher - wanted {
        lower
    } else {
        higher
    }
}

impl Method for OftConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        one_of_two(&OFT, "r, oft_block_size", [self.r, self.oft_block_size])?;
        if self.coft && self.eps <= 0.0 {
            return Err(OFT.refusal("eps", self.eps, "above 0"));
        }
        let terms = self.num_cayley_neumann_terms;
        if self.use_cayley_neumann && !(2..=100).contains(&terms) {
            let expected = "from 2 to 100: one term rotates nothing";
            return Err(OFT.refusal("num_cayley_neumann_terms", terms, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = layer_targets(self, layout, plan, LINEAR_EMBEDDING_AND_CONV)?;
        let is_table = |target: &TargetLayer<'_>| target.layer.kind == LayerKind::Embedding;
        let (tables, others): (Vec<_>, Vec<_>) = targets.into_iter().partition(is_table);
        adapt_each(self, &others, layout, plan, |target, plan| {
            self.rotation(target, target.d_in, plan)
        })?;
        for table in &tables {
            let rotation = self.rotation(table, table.d_out, plan)?;
            plan.adapt_weight(table.weight, OftEmbedding { rotation });
        }
        Ok(())
    }
}

impl OftConfig {
    /// The rotation of `width` features of a layer.
    fn rotation(
        &self,
        target: &TargetLayer<'_>,
        width: usize,
        plan: &mut Plan,
    ) -> Result<OftLinear> {
        let like = target.like();
        let size = self.block_size(width);
        if size < 2 {
            let (field, value) = match self.r {
                0 => ("oft_block_size", self.oft_block_size),
                blocks => ("r", blocks),
            };
            let expected = format!(
                "`{}` has {width} features to rotate, and a block needs two or more of them",
                target.name()
            );
            return Err(Error::config(OFT.title, field, value, expected));
        }
        let blocks = width / size;
        let rows = if self.block_share { 1 } else { blocks };
        let shape = [rows, size * (size - 1) / 2];
        let oft_r = plan
            .init()
            .zeros_or_normal(self.init_weights, shape, 0.1, like);
        let key = ("triangles", size, like.0.clone());
        Ok(OftLinear {
            oft_r,
            triangles: plan.in_common(key, || Triangles::new(size, like.0)),
            blocks,
            terms: self
                .use_cayley_neumann
                .then_some(self.num_cayley_neumann_terms),
            eps: self.coft.then_some(self.eps),
            dropout: DropoutConfig::new(self.module_dropout).init(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};
    use peft_core::device::cpu_devices;

    #[test]
    fn block_sizes_are_upstreams() {
        for (width, wanted, expected) in [
            (384, 32, 32),
            (32, 7, 8),
            (36, 5, 4),
            (36, 8, 9),
            (37, 20, 37),
            (37, 5, 1),
            (36, 100, 36),
        ] {
            assert_eq!(OftConfig::new(wanted).block_size(width), expected);
        }
        assert_eq!(
            OftConfig::new(32)
                .with_r(5)
                .with_oft_block_size(0)
                .block_size(48),
            12
        );
        assert_eq!(
            OftConfig::new(32)
                .with_r(99)
                .with_oft_block_size(0)
                .block_size(48),
            1
        );
    }

    #[test]
    fn the_constraint_draws_back_what_is_outside_and_lets_gradients_pass() {
        for (_, device) in cpu_devices() {
            let device = device.autodiff();
            // Norms of the matrices are 5·√2 and √2 / 10; the radius is 2 / √2.
            let rows = Tensor::<2>::from_data([[3.0, 4.0], [0.0, 0.1]], &device).require_grad();
            let inside = projected(rows.clone(), 2.0);
            let expected = TensorData::from([[0.6_f32, 0.8], [0.0, 0.1]]);
            let tolerance = Tolerance::<f32>::relative(1e-5).set_absolute(1e-6);
            inside
                .clone()
                .into_data()
                .assert_approx_eq(&expected, tolerance);
            let gradients = inside.sum().backward();
            let ones = TensorData::from([[1.0_f32, 1.0], [1.0, 1.0]]);
            let gradient = rows.grad(&gradients).unwrap().into_data();
            gradient.assert_approx_eq(&ones, tolerance);
        }
    }
}
