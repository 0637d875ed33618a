//! MTL-LoRA: one LoRA for several tasks, with a matrix of each task between A and several B.

use burn::module::{Module, Param};
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use peft_core::method::{
    Adapter, BaseLinear, Bias, Common, Layout, Method, MethodConfig as _, Plan, Promises,
    TargetLayer, WeightAdapter, adapt_each, linear_targets, method_config,
};
use peft_core::nn::AdaptedForward;
use peft_core::{Result, Targets};
use serde::{Deserialize, Serialize};

use crate::mixture::by_task::ByTask;
use crate::mixture::mtl_adapterhub::AdapterHubMtl;

/// What each task has between A and the B.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskSpecificMatrix {
    /// A factor for each of the r features.
    #[default]
    SingularValues,
    /// A matrix `[r, r]`.
    Linear,
}

/// Yang et al. 2024, section 3: `y = xW + s·Σᵢ softmax(w(t) / τ)ᵢ (drop(x) A Λ(t)) Bᵢ`, t the task of the row.
#[derive(Module, Adapter, Debug)]
pub struct MtlLoraLinear {
    /// A, `[in, r]`, of all tasks.
    #[tensor("mtl_lora_A.weight", transposed)]
    pub lora_a: Param<Tensor<2>>,
    /// The Bᵢ, `[n, r, out]`, of all tasks.
    #[tensor("mtl_lora_B")]
    pub lora_b: Param<Tensor<3>>,
    /// Λ of each task, `[tasks, r]` (its diagonal) or `[tasks, r · r]`.
    #[tensor("mtl_lora_task_specific")]
    pub task_specific: Param<Tensor<2>>,
    /// w of each task, `[tasks, n]`.
    #[tensor("mtl_lora_weights")]
    pub weights: Param<Tensor<2>>,
    /// τ.
    pub sharpness: f64,
    /// s: alpha / r.
    pub scale: f64,
    /// On A's input; on the activation side only.
    pub dropout: Dropout,
}

impl WeightAdapter for MtlLoraLinear {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "MTL-LoRA differs from task to task, so no weight says what it does: call the layer through \
             `peft_core::nn::AdaptedForward`, and attach no method above it that needs the weight"
        )
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let [ups, rank, d_out] = self.lora_b.dims();
        let tasks = self.weights.dims()[0];
        let by_task = ByTask::of(base.context(), tasks, "MTL-LoRA", &input);
        let rows = by_task.rows();
        let down = self
            .dropout
            .adapted(input.clone())
            .matmul(self.lora_a.val());
        let down = by_task.by_rows(down);
        let of_task = by_task.select(self.task_specific.val());
        let between = if of_task.dims()[1] == rank {
            down * of_task.unsqueeze_dim(1)
        } else {
            down.matmul(of_task.reshape([rows, rank, rank]))
        };
        let shares = softmax(by_task.select(self.weights.val()) / self.sharpness, 1);
        let all = self.lora_b.val().reshape([ups, rank * d_out]);
        let up = shares.matmul(all).reshape([rows, rank, d_out]);
        base.forward(input) + by_task.flat(between.matmul(up)) * self.scale
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    fn num_tasks(&self) -> Option<usize> {
        Some(self.weights.dims()[0])
    }
}

/// MTL-LoRA's configuration. Fields are called as in AdapterHub's `MTLLoRAConfig`, but for `n_tasks`: there each task has
/// an adapter, and these share A and B.
///
/// Batches say the task of each row: [`ForwardContext::with_tasks`](peft_core::nn::ForwardContext::with_tasks). With one
/// task they need not.
#[method_config(
    MTL_LORA, peft_type = "MTL_LORA", title = "MTL-LoRA", family = Reparameterization, identity_at_init,
    new(r, n_tasks),
    reference = "Yang et al. 2024, MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning, section 3",
    parse = MtlLoraConfig::PARSE, recognises = MtlLoraConfig::RECOGNISES, to_json = MtlLoraConfig::json
)]
pub struct MtlLoraConfig {
    /// Rank. Default: 8. At least 1.
    #[field(default = 8, at_least = 1)]
    pub r: usize,
    /// Scaling numerator. Default: 8.
    #[field(default = 8.0, finite)]
    pub alpha: f64,
    /// Number of tasks. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub n_tasks: usize,
    /// Number n of the Bᵢ. Default: 1. At least 1.
    #[field(default = 1, at_least = 1)]
    pub n_up_projection: usize,
    /// What Λ is. Default: `singular_values`, a diagonal.
    pub task_specific_matrix_type: TaskSpecificMatrix,
    /// τ: the smaller, the more of one Bᵢ a task has. Default: 0.05. Above 0.
    #[field(default = 0.05, positive)]
    pub weights_sharpness: f64,
    /// Dropout probability on A's input, in [0, 1). Default: 0. It acts on the activation side only.
    #[field(probability)]
    pub dropout: f64,
    /// Biases to train. Default: none.
    pub bias: Bias,
    /// Reads and writes AdapterHub's layout, and adapts the layers that these fields of its name. The adapter is of one task.
    /// Default: none.
    #[field(skip)]
    pub adapterhub: Option<AdapterHubMtl>,
    /// Layers to adapt. Default: `all-linear`.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl MtlLoraConfig {
    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> MtlLoraLinear {
        let (rank, ups, tasks) = (self.r, self.n_up_projection, self.n_tasks);
        let like = target.like();
        let task_specific = match self.task_specific_matrix_type {
            TaskSpecificMatrix::SingularValues => plan.init().ones([tasks, rank], like),
            TaskSpecificMatrix::Linear => {
                let zeros = plan.init().zeros([tasks, rank * rank], like);
                if plan.is_new() {
                    zeros.map(|zeros| {
                        let one = Tensor::<2>::eye(rank, &zeros.device()).cast(zeros.dtype());
                        let all = one.reshape([1, rank * rank]).repeat_dim(0, tasks);
                        all.set_require_grad(zeros.is_require_grad())
                    })
                } else {
                    zeros
                }
            }
        };
        let init = plan.init();
        MtlLoraLinear {
            lora_a: init.kaiming_uniform([target.d_in, rank], target.d_in, like),
            lora_b: init.zeros([ups, rank, target.d_out], like),
            task_specific,
            // With equal weights all Bᵢ would get one gradient, and stay equal.
            weights: init.uniform([tasks, ups], self.weights_sharpness, like),
            sharpness: self.weights_sharpness,
            scale: self.alpha / rank as f64,
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

impl Method for MtlLoraConfig {
    fn promises(&self) -> Promises {
        self.kept()
    }

    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check_layout()
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if let Some(fields) = &self.adapterhub {
            return self.plan_adapterhub(fields, layout, plan);
        }
        let targets = linear_targets(self, layout, plan)?;
        adapt_each(self, &targets, layout, plan, |target, plan| {
            Ok(self.on_linear(target, plan))
        })
    }

    fn max_rank(&self) -> Option<usize> {
        Some(self.r)
    }
}
