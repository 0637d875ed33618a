//! VeLoRA: a LoRA whose training keeps few numbers of what goes into A.

use peft_core::method::prelude::*;
use peft_core::method::{MethodHooks, States};
use peft_core::nn::AdaptedForward as _;
use peft_core::ops::linear;
use serde::{Deserialize, Serialize};

use crate::lora::state::LoraLinear;
use crate::lora::told::Told;
use crate::lora::values::{on_device, refuse};

/// Where the direction comes from that a part of an input is projected onto. Upstream's `init_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VeloraInit {
    /// The mean of all parts of the batch, in each step anew.
    #[default]
    BatchAverage,
    /// The mean of all parts of the first batch of a training.
    BatchAverageOnce,
    /// Random, and in the file.
    Random,
}

/// How VeLoRA keeps inputs. Upstream's `VeloraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VeloraConfig {
    /// Into how many parts an input is cut. One number of each part is kept. At least 1. Default: 64.
    pub num_groups: usize,
    /// What restored inputs are multiplied with. Above 0. Default: 1.
    pub scale: f64,
    /// Where the direction comes from. Default: `batch_average`.
    pub init_type: VeloraInit,
}

impl Default for VeloraConfig {
    fn default() -> Self {
        Self {
            num_groups: 64,
            scale: 1.0,
            init_type: VeloraInit::default(),
        }
    }
}

impl VeloraConfig {
    pub(crate) fn check(&self) -> Result<()> {
        if self.num_groups > 0 && self.scale > 0.0 && self.scale.is_finite() {
            return Ok(());
        }
        let expected = "`num_groups` of at least 1, and a finite `scale` above 0";
        refuse("velora_config", self, expected)
    }
}

/// Miles et al. 2024, VeLoRA, section 3: plain LoRA's outputs, and for its backward pass one number of each of G parts
/// of an input, its product with a direction v; the gradient of A is that of the inputs that these numbers give back.
///
/// It keeps so few only in a training that calls the model's training hooks; otherwise all is as in plain LoRA.
#[derive(Module, Adapter, Debug)]
pub struct VeloraLinear {
    /// The factors.
    #[nested]
    pub lora: LoraLinear,
    /// v, `[⌈in / G⌉]`, of length 1 where it is random, and not read otherwise. Frozen.
    #[tensor("lora_velora_embed")]
    pub lora_velora_embed: Param<Tensor<1>>,
    /// G.
    pub num_groups: usize,
    /// What restored inputs are multiplied with.
    pub scale: f64,
    /// Where v comes from.
    #[module(skip)]
    pub init_type: VeloraInit,
    /// Whether a training runs, and the direction of its first batch.
    #[module(skip)]
    training: Told<Option<Tensor<1>>>,
}

impl VeloraLinear {
    /// Around a fresh LoRA of a layer with `d_in` inputs, or around one whose values a file will give.
    pub(crate) fn new(
        lora: LoraLinear,
        config: &VeloraConfig,
        d_in: usize,
        like: (&Device, DType),
        plan: &mut Plan,
    ) -> Self {
        let width = d_in.div_ceil(config.num_groups);
        let random = config.init_type == VeloraInit::Random;
        let embed = if random && plan.is_new() {
            let plain = like.0.clone().without_autodiff();
            let drawn = plan.init().normal([width], 1.0, (&plain, like.1)).val();
            Param::from_tensor(on_device(unit(drawn), like.0))
        } else {
            plan.init().zeros([width], like)
        };
        Self {
            lora,
            lora_velora_embed: embed.set_require_grad(false),
            num_groups: config.num_groups,
            scale: config.scale,
            init_type: config.init_type,
            training: Told::default(),
        }
    }

    fn compresses(&self) -> bool {
        self.training.runs() && self.lora.lora_a.val().is_autodiff()
    }

    /// Inputs `[tokens, in]` in their parts, `[tokens, G, ⌈in / G⌉]`; zeros fill up the last one.
    fn parts(&self, input: Tensor<2>) -> Tensor<3> {
        let [tokens, d_in] = input.dims();
        let width = d_in.div_ceil(self.num_groups);
        let missing = width * self.num_groups - d_in;
        let input = if missing == 0 {
            input
        } else {
            let like = (&input.device(), input.dtype());
            Tensor::cat(vec![input, Tensor::zeros([tokens, missing], like)], 1)
        };
        input.reshape([tokens, self.num_groups, width])
    }

    /// v.
    fn direction(&self, parts: &Tensor<3>) -> Tensor<1> {
        let [tokens, groups, width] = parts.dims();
        let of_batch = || {
            let all = parts.clone().reshape([tokens * groups, width]);
            unit(all.mean_dim(0).reshape([width]))
        };
        match self.init_type {
            VeloraInit::Random => self.lora_velora_embed.val().without_autodiff(),
            VeloraInit::BatchAverage => of_batch(),
            VeloraInit::BatchAverageOnce => {
                let first = |first: &mut Option<_>| first.get_or_insert_with(of_batch).clone();
                let first = self.training.with(first).unwrap_or_else(of_batch);
                first.to_device(&parts.device())
            }
        }
        .cast(parts.dtype())
    }

    /// `x A`, `[tokens, r]`, of which the backward pass keeps one number for each part of x.
    fn down(&self, input: Tensor<2>) -> Tensor<2> {
        let a = self.lora.lora_a.val().cast(input.dtype());
        let [_, rank] = a.dims();
        // A is no parameter here, so nothing of x is kept for it.
        let product = linear(input.clone(), a.clone().detach(), None, None);
        let parts = self.parts(input.without_autodiff());
        let v = self.direction(&parts);
        let [tokens, groups, width] = parts.dims();
        let kept = (parts * v.clone().reshape([1, 1, width])).sum_dim(2);
        let kept = Tensor::from_inner(kept.reshape([tokens, groups]));
        // `x̂ A` for the restored inputs `x̂ = kept ⊗ v`.
        let of_parts = self.parts(a.transpose()).swap_dims(0, 1);
        let v = Tensor::from_inner(v.reshape([1, 1, width]));
        let of_parts = (of_parts * v).sum_dim(2).reshape([groups, rank]);
        let restored = kept.matmul(of_parts) * self.scale;
        // Only its gradient counts.
        product + (restored.clone() - restored.detach())
    }
}

/// A vector of length 1 in this direction; of equal elements for zeros.
fn unit(vector: Tensor<1>) -> Tensor<1> {
    let length: f32 = vector.clone().powi_scalar(2).sum().sqrt().into_scalar();
    if length > 0.0 {
        vector / length
    } else {
        let width = vector.dims()[0] as f64;
        vector.ones_like() / width.sqrt()
    }
}

impl WeightAdapter for VeloraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.lora.compose(weight)
    }

    fn low_rank(&self) -> Option<LowRank> {
        (!self.compresses()).then(|| self.lora.low_rank()).flatten()
    }

    fn needs_weight(&self) -> bool {
        self.lora.needs_weight()
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        if !self.compresses() || !input.is_autodiff() {
            return self.lora.linear(input, base);
        }
        let down = self.down(self.lora.dropout.adapted(input.clone()));
        let up = self.lora.lora_b.val().cast(input.dtype()) * self.lora.scale;
        base.forward(input) + linear(down, up, None, None)
    }
}

/// Tells the states of a model that its training runs.
#[derive(Debug)]
struct VeloraTraining(Vec<Told<Option<Tensor<1>>>>);

/// The hooks of a training of these states.
pub(crate) fn hooks(states: &States) -> Box<dyn MethodHooks> {
    let told: Vec<_> = states
        .of::<VeloraLinear>()
        .map(|(_, state)| state.training.clone())
        .collect();
    for training in &told {
        training.begin(None);
    }
    Box::new(VeloraTraining(told))
}

impl VeloraTraining {
    /// Lets go of what was told.
    fn clear(&mut self) {
        for training in self.0.drain(..) {
            training.end(None);
        }
    }
}

impl MethodHooks for VeloraTraining {
    fn after_step(&mut self, _step: usize, states: &mut States) {
        let mut told = Vec::new();
        states.edit::<VeloraLinear>(|_, state| {
            let first = state.training.with(|first| first.clone());
            state.training = Told::new(Some(first.flatten()));
            told.push(state.training.clone());
        });
        self.clear();
        self.0 = told;
    }
}

impl Drop for VeloraTraining {
    fn drop(&mut self) {
        self.clear();
    }
}
