//! OSF: the small singular directions of a weight are trained, and the large ones kept.

use peft_core::method::LayerValue;
use peft_core::method::prelude::*;
use peft_core::ops::add_product;
use serde::{Deserialize, Deserializer, Serialize};

use crate::math::linalg::svd;
use crate::math::of_weight::{beginning_as, of_weight};

/// W' = W + V diag(s) U − V₀ diag(s₀) U₀: V₀, s₀, U₀ are W's smallest singular values and their vectors, and what the
/// trained ones begin as.
///
/// In training, gradients of U and V are projected to what is orthogonal to the vectors that are kept.
#[derive(Module, Adapter, Debug)]
pub struct OsfLinear {
    /// U: vectors of the outputs, `[low, out]`.
    #[tensor("osf_svd_params.U_low", transposed)]
    pub u_low: Param<Tensor<2>>,
    /// s: singular values, `[low]`.
    #[tensor("osf_svd_params.S_low")]
    pub s_low: Param<Tensor<1>>,
    /// V: vectors of the inputs, `[in, low]`.
    #[tensor("osf_svd_params.V_low", transposed)]
    pub v_low: Param<Tensor<2>>,
    /// U₀, `[low, out]`.
    #[unsaved]
    pub u_init: Param<Tensor<2>>,
    /// s₀, `[1, low]`.
    #[unsaved]
    pub s_init: Param<Tensor<2>>,
    /// V₀, `[in, low]`.
    #[unsaved]
    pub v_init: Param<Tensor<2>>,
    /// The outputs' vectors that are kept, `[effective_rank, out]`, where there are more outputs than inputs; else U₀
    /// spans all that is orthogonal to them.
    #[unsaved]
    pub u_high: Option<Param<Tensor<2>>>,
    /// The inputs' vectors that are kept, `[in, effective_rank]`, where there are more inputs than outputs.
    #[unsaved]
    pub v_high: Option<Param<Tensor<2>>>,
}

/// `value`, whose gradient goes through `project`.
fn with_gradient(value: Tensor<2>, project: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    if !value.is_require_grad() && !value.is_autodiff() {
        return value;
    }
    let fixed = value.clone().detach();
    // Zero, with a gradient.
    let moved = value - fixed.clone();
    fixed + project(moved)
}

/// What of the rows of `moved` is orthogonal to the rows `kept`; without these, what lies in the span of the rows `free`.
fn orthogonal_part(
    moved: Tensor<2>,
    kept: Option<Tensor<2>>,
    free: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    let within = |rows: Tensor<2>| moved.clone().matmul(rows.clone().transpose()).matmul(rows);
    if let Some(kept) = kept {
        moved.clone() - within(kept)
    } else {
        within(free())
    }
}

impl OsfLinear {
    /// U.
    fn outputs(&self) -> Tensor<2> {
        let kept = self.u_high.as_ref().map(Param::val);
        with_gradient(self.u_low.val(), |moved| {
            orthogonal_part(moved, kept, || self.u_init.val())
        })
    }

    /// V.
    fn inputs(&self) -> Tensor<2> {
        let kept = self.v_high.as_ref().map(|kept| kept.val().transpose());
        with_gradient(self.v_low.val(), |moved| {
            orthogonal_part(moved.transpose(), kept, || self.v_init.val().transpose()).transpose()
        })
    }

    /// The change of the weight, `[in, out]`.
    pub fn delta(&self) -> Tensor<2> {
        let ([_, out], [d_in, _]) = (self.u_low.dims(), self.v_low.dims());
        let like = (&self.u_low.device(), self.u_low.val().dtype());
        self.added(Tensor::zeros([d_in, out], like))
    }

    /// `weight` `[in, out]` and the change.
    fn added(&self, weight: Tensor<2>) -> Tensor<2> {
        let trained = self.inputs() * self.s_low.val().unsqueeze();
        let weight = add_product(weight, LowRank::new(trained, self.outputs(), 1.0));
        let initial = self.v_init.val() * self.s_init.val();
        add_product(weight, LowRank::new(initial, self.u_init.val(), -1.0))
    }
}

impl WeightAdapter for OsfLinear {
    // Composed in layers, too: its rank is near the weight's own, so its factors would cost more.
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let (shape, matrix) = (weight.shape(), matrix_of(weight));
        from_matrix(self.added(matrix), shape)
    }
}

/// How many singular values are kept: a number, or a share of all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OsfRank {
    /// So many.
    Count(usize),
    /// This share of the layer's smaller side, rounded down; in (0, 1].
    Share(f64),
}

impl Default for OsfRank {
    /// Half of them.
    fn default() -> Self {
        Self::Share(0.5)
    }
}

impl From<usize> for OsfRank {
    fn from(count: usize) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for OsfRank {
    fn from(share: f64) -> Self {
        Self::Share(share)
    }
}

impl From<OsfRank> for Value {
    fn from(rank: OsfRank) -> Self {
        match rank {
            OsfRank::Count(count) => count.into(),
            OsfRank::Share(share) => share.into(),
        }
    }
}

impl LayerValue for OsfRank {
    fn read(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }
}

impl OsfRank {
    fn fits(self) -> bool {
        match self {
            Self::Count(count) => count > 0,
            Self::Share(share) => share > 0.0 && share <= 1.0,
        }
    }

    /// Of a layer whose smaller side is `side`.
    fn of(self, side: usize) -> usize {
        match self {
            Self::Count(count) => count.min(side),
            Self::Share(share) => (side as f64 * share) as usize,
        }
    }
}

/// What a rank must be.
const RANK: &str = "a whole number above 0, or a share in (0, 1]";

/// OSF's configuration. Fields are called and behave as in Hugging Face PEFT's `OSFConfig`.
#[method_config(
    OSF, peft_type = "OSF", title = "OSF", family = Reparameterization, identity_at_init, mergeable, new(),
    reference = "Nayak et al. 2025, Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning, section 3"
)]
pub struct OsfConfig {
    /// How many of the largest singular values are kept; the others are trained, at least one. Default: half of them.
    pub effective_rank: Option<OsfRank>,
    /// Other ranks for some layers: the key is a regular expression for the end of the name.
    #[field(deserialize_with = "null_is_none", no_builder)]
    pub rank_pattern: ByLayer<OsfRank>,
    /// Whether a fresh adapter changes nothing; else it is random, for tests.
    #[field(default = true)]
    pub init_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

/// Upstream writes null where there are no patterns.
fn null_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByLayer<OsfRank>, D::Error> {
    let found = Option::<ByLayer<OsfRank>>::deserialize(deserializer)?;
    Ok(found.unwrap_or_default())
}

impl OsfConfig {
    /// Gives layers whose name ends in `pattern`, a regular expression, this [`effective_rank`](Self::effective_rank).
    #[must_use]
    pub fn with_rank_pattern(mut self, pattern: &str, rank: impl Into<OsfRank>) -> Self {
        self.rank_pattern.insert(pattern, rank.into());
        self
    }

    /// How many singular values of a layer are trained.
    fn trained(&self, target: &TargetLayer<'_>, plan: &Plan) -> Result<usize> {
        let side = target.d_in.min(target.d_out);
        // Upstream looks for its patterns anywhere in the name: a file's own ranks count.
        if let Some([stored]) = plan.stored_shape(target.layer, "osf_svd_params.S_low") {
            return Ok((*stored).clamp(1, side));
        }
        let default = self.effective_rank.unwrap_or_default();
        let rank = self.rank_pattern.of(target.name(), default)?;
        let kept = rank.of(side);
        if kept == 0 || kept >= side {
            let name = target.name();
            let expected = format!(
                "`{name}` has {side} singular values, of which {kept} would be kept: from 1 to {}",
                side - 1
            );
            return Err(Error::config(OSF.title, "effective_rank", rank, expected));
        }
        Ok(side - kept)
    }

    fn on_layer(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<OsfLinear> {
        let (d_in, d_out, like) = (target.d_in, target.d_out, target.like());
        let side = d_in.min(d_out);
        let low = self.trained(target, plan)?;
        let high = side - low;
        let shapes = [
            [low, d_out],
            [1, low],
            [d_in, low],
            [high, d_out],
            [d_in, high],
        ];
        let parts = of_weight(target.weight, shapes, move |weight| {
            let whole = svd(weight)?;
            let rows = |from, count| whole.vt.clone().narrow(0, from, count);
            let columns = |from, count| whole.u.clone().narrow(1, from, count);
            let s = whole.s.clone().narrow(0, high, low).unsqueeze();
            Some([
                rows(high, low),
                s,
                columns(high, low),
                rows(0, high),
                columns(0, high),
            ])
        });
        let [u_init, s_init, v_init, u_high, v_high] = parts;
        let init = plan.init();
        let [mut u_low, mut v_low] = [[low, d_out], [d_in, low]]
            .map(|shape| init.zeros_or_normal(self.init_weights, shape, 1.0, like));
        let mut s_low = init.normal([low], 1.0, like);
        if plan.is_new() && self.init_weights {
            u_low = beginning_as(u_init.val());
            v_low = beginning_as(v_init.val());
            s_low = beginning_as(s_init.val().reshape([low]));
        }
        Ok(OsfLinear {
            u_low,
            s_low,
            v_low,
            u_init,
            s_init,
            v_init,
            u_high: (d_out > d_in).then_some(u_high),
            v_high: (d_in > d_out).then_some(v_high),
        })
    }
}

impl Method for OsfConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if let Some(rank) = self.effective_rank.filter(|rank| !rank.fits()) {
            return Err(Error::config(OSF.title, "effective_rank", rank, RANK));
        }
        self.rank_pattern
            .check(&OSF, "rank_pattern", RANK, OsfRank::fits)
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let targets = linear_targets(self, layout, plan)?;
        if plan.is_new() {
            let names: Vec<&str> = targets.iter().map(TargetLayer::name).collect();
            self.rank_pattern
                .refuse_unused(&OSF, "rank_pattern", &names)?;
        }
        adapt_each(self, &targets, layout, plan, |target, plan| {
            self.on_layer(target, plan)
        })
    }
}
