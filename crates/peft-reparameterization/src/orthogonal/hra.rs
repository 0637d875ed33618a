//! HRA: a weight is multiplied by a chain of Householder reflections.

use peft_core::method::LINEAR_AND_CONV;
use peft_core::method::prelude::*;
use peft_core::ops::add_low_rank;

/// `W' = H_r ⋯ H₁ W` with `H_i = I − 2 u_i u_iᵀ / ‖u_i‖²`; of a convolution W is the kernel's
/// [matrix](peft_core::method::matrix_of).
///
/// The product is `I − U C` with U of r columns and C of r rows, so the layer's input is changed by a
/// low-rank addition, and no matrix of the weight's size is made.
#[derive(Module, Adapter, Debug)]
pub struct HraLinear {
    /// u as columns, of any length, `[in, r]`; of a convolution `[in / groups · h · w, r]`.
    #[tensor("hra_u")]
    pub hra_u: Param<Tensor<2>>,
    /// Whether the reflections are at the vectors that Gram and Schmidt's method makes of u, which
    /// are orthogonal.
    pub apply_gs: bool,
}

impl HraLinear {
    /// U, `[in, r]`, and C, `[r, in]`: the product of the reflections is `I − U C`.
    fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let u = self.hra_u.val();
        let dtype = u.dtype();
        // Products of lengths are beyond what f16 can hold.
        let u = match dtype {
            DType::F16 | DType::BF16 => u.cast(DType::F32),
            _ => u,
        };
        let (u, c) = if self.apply_gs {
            let basis = orthonormal(u);
            (basis.clone(), basis.transpose() * 2.0)
        } else {
            chain(u)
        };
        (u.cast(dtype), c.cast(dtype))
    }
}

/// `[rank, rank]` of ones where `one` says so of row and column, of zeros elsewhere.
fn mask(rank: usize, like: &Tensor<2>, one: impl Fn(usize, usize) -> bool) -> Tensor<2> {
    let values: Vec<f32> = (0..rank * rank)
        .map(|at| f32::from(one(at / rank, at % rank)))
        .collect();
    let data = TensorData::new(values, [rank, rank]);
    Tensor::from_data(data, (&like.device(), like.dtype()))
}

/// U and C of reflections at the columns of `u`, the first column's being applied to a weight first.
///
/// `H₁ ⋯ H_r = I − U T Uᵀ`, U having the columns at length 1 and T being upper triangular (Schreiber and
/// Van Loan 1989, the compact WY form). T of two halves of the chain is
/// `[[T₁, −T₁ U₁ᵀ U₂ T₂], [0, T₂]]`, which makes it of blocks of 1, of 2, of 4 and so on.
fn chain(u: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let [_, rank] = u.dims();
    let identity = mask(rank, &u, |row, column| row == column);
    // Cosines of the products alone: those of equal columns are 1 without rounding, which lets the
    // pairs of a fresh adapter cancel.
    let products = u.clone().transpose().matmul(u.clone());
    let squares = (products.clone() * identity.clone()).sum_dim(0);
    let cosines = products / squares.clone().transpose().matmul(squares.clone()).sqrt();
    let mut t = identity * 2.0;
    let mut block = 1;
    while block < rank {
        let pair = 2 * block;
        let halves = mask(rank, &u, |row, column| {
            row / pair == column / pair && row % pair < block && column % pair >= block
        });
        t = t.clone() - t.clone().matmul(cosines.clone() * halves).matmul(t);
        block = pair;
    }
    let u = u / squares.sqrt();
    // What multiplies the weight is the transpose of upstream's product.
    let c = t.transpose().matmul(u.clone().transpose());
    (u, c)
}

/// The columns of `u`, made orthogonal in their order and of length 1.
fn orthonormal(u: Tensor<2>) -> Tensor<2> {
    let [_, rank] = u.dims();
    let mut basis = Vec::with_capacity(rank);
    let mut rest = u;
    for left in (0..rank).rev() {
        let first = rest.clone().narrow(1, 0, 1);
        let first = first.clone() / first.square().sum_dim(0).sqrt();
        if left > 0 {
            rest = rest.narrow(1, 1, left);
            let along = first.clone().transpose().matmul(rest.clone());
            rest = rest - first.clone().matmul(along);
        }
        basis.push(first);
    }
    Tensor::cat(basis, 1)
}

impl WeightAdapter for HraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let matrix = matrix_of(weight);
        let (u, c) = self.factors();
        from_matrix(matrix.clone() - u.matmul(c.matmul(matrix)), shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, inner: &dyn BaseLinear) -> Tensor<2> {
        let (down, up) = self.factors();
        let change = LowRank::new(down, up, -1.0);
        inner.forward(add_low_rank(input.clone(), input, change))
    }
}

/// HRA's configuration. Fields are called and behave as in Hugging Face PEFT's `HRAConfig`.
#[method_config(
    HRA, peft_type = "HRA", title = "HRA", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Yuan et al. 2024, Bridging the Gap between Low-rank and Orthogonal Adaptation via \
                 Householder Reflection Adaptation, section 3.1"
)]
pub struct HraConfig {
    /// Number of reflections, at most the layer's input features; even, if a fresh adapter is to change nothing.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Whether the vectors are made orthogonal to one another in every pass. A fresh adapter then does change outputs.
    #[field(rename = "apply_GS")]
    pub apply_gs: bool,
    /// Whether the reflections of a fresh adapter are equal in pairs, which cancel. Else all are
    /// random, as they are with an odd `r` and with `apply_gs`.
    #[field(default = true)]
    pub init_weights: bool,
    pub bias: Bias,
    pub targets: Targets,
    pub common: Common,
}

impl LinearMethod for HraConfig {
    type State = HraLinear;

    const LAYERS: &'static [LayerKind] = LINEAR_AND_CONV;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<HraLinear> {
        let (d_in, r, like) = (target.d_in, self.r, target.like());
        // From a file, too, within reason: reflections are held against one another.
        if r > d_in && (plan.is_new() || r > 4 * d_in) {
            let expected = format!("`{}` has {d_in} inputs, so at most that", target.name());
            return Err(Error::config(HRA.title, "r", r, expected));
        }
        // Of equal columns, Gram and Schmidt's method makes nothing but rounding errors.
        let pairs = self.init_weights && !self.apply_gs && r.is_multiple_of(2);
        let hra_u = if pairs && plan.is_new() {
            let drawn = plan
                .init()
                .kaiming_uniform([d_in, r / 2], r / 2, like)
                .val();
            let doubled = drawn.reshape([d_in, r / 2, 1]).repeat_dim(2, 2);
            Param::from_tensor(doubled.reshape([d_in, r]).detach())
        } else {
            plan.init().kaiming_uniform([d_in, r], r, like)
        };
        Ok(HraLinear {
            hra_u,
            apply_gs: self.apply_gs,
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, Tolerance};
    use peft_core::method::Init;

    fn drawn(shape: [usize; 2], device: &Device) -> Tensor<2> {
        Init::new(11).normal(shape, 1.0, (device, DType::F32)).val()
    }

    fn assert_close(ours: Tensor<2>, theirs: Tensor<2>) {
        ours.into_data()
            .assert_approx_eq(&theirs.into_data(), Tolerance::<f32>::rel_abs(1e-4, 1e-5));
    }

    #[test]
    fn a_chain_is_its_reflections_one_after_the_other() {
        for (_, device) in peft_core::device::cpu_devices() {
            for rank in [1, 2, 3, 6, 8, 13] {
                let u = drawn([16, rank], &device);
                let weight = drawn([16, 5], &device);
                let mut reflected = weight.clone();
                for index in 0..rank {
                    let column = u.clone().narrow(1, index, 1);
                    let column = column.clone() / column.square().sum_dim(0).sqrt();
                    let along = column.clone().transpose().matmul(reflected.clone());
                    reflected = reflected - column.matmul(along) * 2.0;
                }
                let adapter = HraLinear {
                    hra_u: Param::from_tensor(u),
                    apply_gs: false,
                };
                assert_close(adapter.compose(weight), reflected);
            }
        }
    }

    #[test]
    fn equal_pairs_cancel() {
        for (_, device) in peft_core::device::cpu_devices() {
            let half = drawn([16, 3], &device);
            let pairs = half.reshape([16, 3, 1]).repeat_dim(2, 2).reshape([16, 6]);
            let (u, c) = chain(pairs);
            let change = u.matmul(c).abs().max().into_scalar::<f32>();
            assert!(change < 1e-6, "{change}");
        }
    }

    #[test]
    fn orthogonal_vectors_are_orthogonal() {
        for (_, device) in peft_core::device::cpu_devices() {
            let u = drawn([16, 5], &device);
            let basis = orthonormal(u.clone());
            let products = basis.clone().transpose().matmul(basis.clone());
            let identity = mask(5, &u, |row, column| row == column);
            assert_close(products, identity);
            // The span is kept: the columns of u are their own projections.
            let projected = basis.clone().matmul(basis.transpose().matmul(u.clone()));
            assert_close(projected, u);
        }
    }
}
