//! PSOFT: the largest singular directions of a weight are rotated among themselves.

use burn::nn::{Dropout, DropoutConfig};
use peft_core::method::LowRankAdapter;
use peft_core::method::prelude::*;
use serde::{Deserialize, Serialize};

use crate::math::linalg::{Svd, svd};
use crate::math::of_weight::{beginning_as, of_weight};
use crate::math::signs::as_torch;
use crate::orthogonal::rotation::{Triangles, cayley, neumann};

/// W' = W + s·A (R − I)ᵀ B, where s·A B is the part of W with the largest r singular values.
#[derive(Module, Adapter, Debug)]
pub struct PsoftLinear {
    /// The strictly upper triangle of a skew-symmetric Q, row by row, `[r·(r − 1) / 2]`, where R is a rotation.
    #[tensor("psoft_R.weight")]
    pub triangle: Option<Param<Tensor<1>>>,
    /// R itself, `[r, r]`, where it is free.
    #[tensor("psoft_R.weight")]
    pub free: Option<Param<Tensor<2>>>,
    /// What R's rows are multiplied with, `[r]`.
    #[tensor("psoft_R.vector_b")]
    pub vector_b: Option<Param<Tensor<1>>>,
    /// What R's columns are multiplied with, `[r]`.
    #[tensor("psoft_R.vector_a")]
    pub vector_a: Option<Param<Tensor<1>>>,
    /// A, `[in, r]`: frozen, of the weight.
    #[unsaved]
    pub a: Param<Tensor<2>>,
    /// B, `[r, out]`: frozen, of the weight.
    #[unsaved]
    pub b: Param<Tensor<2>>,
    #[no_tensor]
    triangles: Triangles,
    /// Terms of the series that stands in for an inverse; `None` for the inverse.
    pub terms: Option<usize>,
    /// Bound of Q's Frobenius norm, for the series.
    pub eps: Option<f64>,
    /// s.
    pub scale: f64,
    /// On the input of A; on the activation side only.
    pub dropout: Dropout,
}

/// `skew` `[1, r, r]`, made smaller where its norm is above `eps`.
fn bounded(skew: Tensor<3>, eps: f64) -> Tensor<3> {
    // Before the root, which has no derivative at 0.
    let square = skew.clone().square().sum().clamp_min(eps * eps);
    skew * (square.sqrt().recip() * eps).unsqueeze()
}

impl PsoftLinear {
    /// R, `[r, r]`, scales and all, in `f32`: few numbers, of which 16 bits would lose the rotation.
    pub fn matrix(&self) -> Tensor<2> {
        let wide = |vector: &Param<Tensor<1>>| vector.val().cast(DType::F32);
        let mut matrix: Tensor<2> = match (&self.triangle, &self.free) {
            (Some(triangle), _) => {
                let skew = self.triangles.skew(wide(triangle).unsqueeze());
                let rotation = match self.terms {
                    Some(terms) => {
                        let skew = match self.eps {
                            Some(eps) => bounded(skew, eps),
                            None => skew,
                        };
                        neumann(skew, terms)
                    }
                    // (I + Q)(I − Q)⁻¹.
                    None => cayley(-skew),
                };
                rotation.squeeze_dim(0)
            }
            (None, Some(free)) => free.val().cast(DType::F32),
            (None, None) => Tensor::eye(self.b.dims()[0], &self.b.device()),
        };
        if let Some(vector) = &self.vector_b {
            matrix = matrix * wide(vector).unsqueeze_dim(1);
        }
        if let Some(vector) = &self.vector_a {
            matrix = matrix * wide(vector).unsqueeze();
        }
        matrix
    }
}

impl LowRankAdapter for PsoftLinear {
    fn factors(&self) -> LowRank {
        let (down, base) = (self.a.val(), self.b.val());
        let matrix = self.matrix();
        let turned = matrix.clone() - Tensor::eye(matrix.dims()[0], &matrix.device());
        LowRank {
            down,
            up: turned.transpose().cast(base.dtype()).matmul(base),
            scale: self.scale,
            dropout: 0.0,
        }
    }

    fn dropout(&self) -> Option<&Dropout> {
        Some(&self.dropout)
    }

    // An inverse, or a series in its place.
    fn computes_factors(&self) -> bool {
        self.triangle.is_some()
    }
}

/// How the part of the weight is divided among A and B.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PsoftFactors {
    /// A has orthonormal columns, and B the singular values: R then rotates without distortion.
    #[default]
    PsoftInit,
    /// The root of the singular values in each.
    PissaInit,
}

/// How singular values are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PsoftSvd {
    /// All of them, exactly.
    #[default]
    Full,
    /// The largest r, by an iteration that begins with random numbers; refused, as its signs are those of the numbers.
    Lowrank,
}

/// PSOFT's configuration. Fields are called and behave as in Hugging Face PEFT's `PsoftConfig`.
#[method_config(
    PSOFT, peft_type = "PSOFT", title = "PSOFT", family = Reparameterization, identity_at_init, mergeable, new(r),
    reference = "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation (ICLR 2026), section 4",
    unsupported("fan_in_fan_out")
)]
pub struct PsoftConfig {
    /// How many singular directions are rotated; at most the layer's smaller side.
    #[field(default = 32, at_least = 1)]
    pub r: usize,
    /// s = `psoft_alpha` / r. It cancels out: B is divided by it.
    #[field(default = 32.0, above = 0.0)]
    pub psoft_alpha: f64,
    /// Dropout probability on the change's input, on the activation side only.
    #[field(probability)]
    pub psoft_dropout: f64,
    /// How the part of the weight is divided among A and B.
    pub ab_svd_init: PsoftFactors,
    /// How singular values are computed: `full` only.
    pub psoft_svd: PsoftSvd,
    /// Whether R is a rotation; else it is any matrix.
    #[field(default = true)]
    pub psoft_orth: bool,
    /// Whether R's rows have trained scales.
    #[field(default = true)]
    pub psoft_mag_b: bool,
    /// Whether R's columns have trained scales.
    #[field(default = true)]
    pub psoft_mag_a: bool,
    /// A series in place of an inverse, which makes the rotation approximate and cheap.
    pub use_cayley_neumann: bool,
    /// Terms of the series, from 2 to 100.
    #[field(default = 5, any)]
    pub num_cayley_neumann_terms: usize,
    /// Bound of Q's Frobenius norm, for the series, in (0, 1). Default: none.
    #[field(above = 0.0, below = 1.0)]
    pub cayley_neumann_eps: Option<f64>,
    /// Whether a fresh adapter changes nothing; else R is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl PsoftConfig {
    /// A `[in, r]` and B `[r, out]`, frozen.
    fn frozen(&self, weight: &LayoutParam, scale: f64) -> [Param<Tensor<2>>; 2] {
        let shape = weight.shape();
        let (r, factors) = (self.r, self.ab_svd_init);
        of_weight(weight, [[shape[0], r], [r, shape[1]]], move |weight| {
            let largest = svd(weight.clone())?.truncated(r);
            // R turns each direction towards others, so it matters which way they point.
            let Svd { u, s, vt } = as_torch(&weight, largest);
            let s = s / scale;
            Some(match factors {
                PsoftFactors::PsoftInit => [u, vt * s.unsqueeze_dim(1)],
                PsoftFactors::PissaInit => {
                    let root = s.sqrt();
                    [u * root.clone().unsqueeze(), vt * root.unsqueeze_dim(1)]
                }
            })
        })
    }
}

impl LinearMethod for PsoftConfig {
    type State = PsoftLinear;

    fn check(&self) -> Result<()> {
        if self.psoft_svd == PsoftSvd::Lowrank {
            let expected = "`full`: what was trained on an iteration's vectors cannot be read without their signs";
            return Err(Error::config(
                PSOFT.title,
                "psoft_svd",
                self.psoft_svd,
                expected,
            ));
        }
        let terms = self.num_cayley_neumann_terms;
        if self.use_cayley_neumann && !(2..=100).contains(&terms) {
            let (field, expected) = (
                "num_cayley_neumann_terms",
                "from 2 to 100: one term rotates nothing",
            );
            return Err(Error::config(PSOFT.title, field, terms, expected));
        }
        Ok(())
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<PsoftLinear> {
        let (r, like) = (self.r, target.like());
        let most = target.d_in.min(target.d_out);
        if r > most {
            let expected = format!("`{}` has {most} singular values", target.name());
            return Err(Error::config(PSOFT.title, "r", r, expected));
        }
        let scale = self.psoft_alpha / r as f64;
        let [a, b] = self.frozen(target.weight, scale);
        let triangles = plan.in_common(("triangles", r, like.0.clone()), || {
            Triangles::new(r, like.0)
        });
        let is_new = plan.is_new();
        let init = plan.init();
        let triangle = self.psoft_orth.then(|| {
            let shape = [r * (r - 1) / 2];
            init.zeros_or_normal(self.init_weights, shape, 0.1, like)
        });
        let free = (!self.psoft_orth).then(|| {
            let std = if self.init_weights { 0.0 } else { 0.1 };
            let near = init.normal([r, r], std, like);
            if !is_new {
                return near;
            }
            let one = Tensor::<2>::eye(r, like.0).cast(near.dtype());
            beginning_as(near.val() + one)
        });
        Ok(PsoftLinear {
            triangle,
            free,
            vector_b: self.psoft_mag_b.then(|| init.ones([r], like)),
            vector_a: self.psoft_mag_a.then(|| init.ones([r], like)),
            a,
            b,
            triangles,
            terms: self
                .use_cayley_neumann
                .then_some(self.num_cayley_neumann_terms),
            eps: self.cayley_neumann_eps,
            scale,
            dropout: DropoutConfig::new(self.psoft_dropout).init(),
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}
