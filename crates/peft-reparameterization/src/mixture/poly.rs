//! Poly: an inventory of low-rank changes, mixed by task; with several splits multi-head routing.

use burn::module::{Module, Param};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Distribution, Tensor};
use peft_core::method::{
    Adapter, BaseLinear, Common, LinearMethod, Plan, TargetLayer, WeightAdapter, method_config,
};
use peft_core::{Error, Result, Targets};

use crate::mixture::by_task::ByTask;

/// Ponti et al. 2022, section 2, and with several splits Caccia et al. 2022, section 3:
/// `y = xW + x A(t) B(t) / r`, where split q of A(t) is `Σₛ α(t)[q, s] A[q, s]`, B(t) is put together in the same way,
/// and α(t) are the shares of the skills in the task t of the row.
#[derive(Module, Adapter, Debug)]
pub struct PolyLinear {
    /// A of every split and skill, `[splits, skills, in / splits, r]`.
    #[tensor("poly_lora_A")]
    pub poly_lora_a: Param<Tensor<4>>,
    /// B, `[splits, skills, r, out / splits]`.
    #[tensor("poly_lora_B")]
    pub poly_lora_b: Param<Tensor<4>>,
    /// The router's logits, `[tasks, splits · skills]`.
    #[tensor("poly_router.module_logits")]
    pub module_logits: Param<Tensor<2>>,
    /// Whether the shares are the sigmoids of the logits in training, too, and not drawn around them.
    pub deterministic_router: bool,
}

/// Added to the sum of a split's shares.
const EPSILON: f64 = 1e-12;

/// Uniform numbers are kept so far from 0 and 1, as their logits are infinite there.
const EDGE: f64 = 1e-6;

impl PolyLinear {
    /// The shares of the skills for logits `[rows, splits · skills]`: `[splits, rows, skills]`.
    ///
    /// While the router is trained they are drawn from a relaxed Bernoulli distribution of temperature 1.
    fn shares(&self, logits: Tensor<2>) -> Tensor<3> {
        let [splits, skills, _, _] = self.poly_lora_a.dims();
        let rows = logits.dims()[0];
        let draws = logits.is_autodiff() && self.module_logits.is_require_grad();
        let logits = if draws && !self.deterministic_router {
            let uniform = logits.random_like(Distribution::Uniform(EDGE, 1.0 - EDGE));
            logits + uniform.clone().log() - (-uniform + 1.0).log()
        } else {
            logits
        };
        let shares = sigmoid(logits).reshape([rows, splits, skills]);
        let sum = shares.clone().sum_dim(2) + EPSILON;
        (shares / sum).swap_dims(0, 1)
    }
}

impl WeightAdapter for PolyLinear {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "Poly differs from task to task, so no weight says what it does: call the layer through \
             `peft_core::nn::AdaptedForward`, and attach no method above it that needs the weight"
        )
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let ([splits, skills, part_in, rank], [_, _, _, part_out]) =
            (self.poly_lora_a.dims(), self.poly_lora_b.dims());
        let tasks = self.module_logits.dims()[0];
        let by_task = ByTask::of(base.context(), tasks, "Poly", &input);
        let rows = by_task.rows();
        let shares = self.shares(by_task.select(self.module_logits.val()));
        // [splits, rows, skills] times [splits, skills, …].
        let a = self
            .poly_lora_a
            .val()
            .reshape([splits, skills, part_in * rank]);
        let a = shares
            .clone()
            .matmul(a)
            .reshape([splits, rows, part_in, rank]);
        let a = a.swap_dims(0, 1).reshape([rows, splits * part_in, rank]);
        let b = self
            .poly_lora_b
            .val()
            .reshape([splits, skills, rank * part_out]);
        let b = shares.matmul(b).reshape([splits, rows, rank, part_out]);
        let b = b
            .permute([1, 2, 0, 3])
            .reshape([rows, rank, splits * part_out]);
        let change = by_task.by_rows(input.clone()).matmul(a).matmul(b) / rank as f64;
        base.forward(input) + by_task.flat(change)
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    fn num_tasks(&self) -> Option<usize> {
        Some(self.module_logits.dims()[0])
    }
}

/// Poly's configuration. Fields are called and behave as in Hugging Face PEFT's `PolyConfig`.
///
/// Batches say the task of each row: [`ForwardContext::with_tasks`](peft_core::nn::ForwardContext::with_tasks). With one
/// task they need not.
#[method_config(
    POLY, peft_type = "POLY", title = "Poly", family = Reparameterization, identity_at_init, new(r, n_tasks),
    reference = "Ponti et al. 2022, Combining Modular Skills in Multitask Learning, section 2; Caccia et al. 2022, \
                 Multi-Head Adapter Routing for Cross-Task Generalization, section 3"
)]
pub struct PolyConfig {
    /// Rank of each skill. Default: 8. At least 1.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Number of tasks. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub n_tasks: usize,
    /// Number of skills. Default: 4. At least 1.
    #[field(default = 4, at_least = 1)]
    pub n_skills: usize,
    /// Number of splits that are routed by themselves. Default: 1. It must divide both widths of every adapted layer.
    #[field(default = 1, at_least = 1)]
    pub n_splits: usize,
    /// Kind of router. Default: `poly`, which is the only one.
    #[field(default = "poly".to_string())]
    pub poly_type: String,
    /// Whether the router draws no shares while it is trained, but takes the sigmoids of its logits as it does
    /// afterwards. Default: false. Upstream has no such field.
    #[field(skip_false)]
    pub deterministic_router: bool,
    /// Whether a fresh adapter changes nothing: B is zero. Otherwise it is random, for tests. Default: true.
    #[field(default = true)]
    pub init_weights: bool,
    /// Layers to adapt. Default: `all-linear`.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl LinearMethod for PolyConfig {
    type State = PolyLinear;

    fn check(&self) -> Result<()> {
        if self.poly_type == "poly" {
            return Ok(());
        }
        let expected = "\"poly\" is the only one there is";
        Err(Error::config(
            POLY.title,
            "poly_type",
            &self.poly_type,
            expected,
        ))
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<PolyLinear> {
        let (d_in, d_out, splits) = (target.d_in, target.d_out, self.n_splits);
        if !(d_in.is_multiple_of(splits) && d_out.is_multiple_of(splits)) {
            let expected = format!(
                "a divisor of {d_in} and {d_out}, the widths of `{}`",
                target.name()
            );
            return Err(Error::config(POLY.title, "n_splits", splits, expected));
        }
        let (rank, skills) = (self.r, self.n_skills);
        let (part_in, part_out) = (d_in / splits, d_out / splits);
        let of_b = [splits, skills, rank, part_out];
        let init = plan.init();
        Ok(PolyLinear {
            poly_lora_a: init.kaiming_uniform(
                [splits, skills, part_in, rank],
                part_in,
                target.like(),
            ),
            poly_lora_b: init.zeros_or_kaiming_uniform(
                self.init_weights,
                of_b,
                rank,
                target.like(),
            ),
            module_logits: init.uniform([self.n_tasks, splits * skills], 1e-3, target.like()),
            deterministic_router: self.deterministic_router,
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}
