//! MonteCLoRA: a LoRA whose A is drawn around its mean while it is trained.

use std::collections::BTreeMap;

use burn::tensor::{TensorData, activation};
use peft_core::method::prelude::*;
use peft_core::method::{MethodHooks, States};
use peft_core::nn::dropout_rate;
use serde::{Deserialize, Serialize};

use crate::lora::state::LoraLinear;
use crate::lora::told::Told;
use crate::lora::values::{on_device, refuse};
use crate::math::gamma::{digamma, ln_gamma};

/// How A is drawn. Upstream's `MontecloraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MontecloraConfig {
    /// How many draws a step's A is the weighted mean of. At least 1. Default: 8.
    pub num_samples: usize,
    /// Whether the sum of the squared weights of the draws is added to the loss. Default: false.
    pub use_entropy: bool,
    /// What the prior of the draws' weights is concentrated by. Above 0. Default: 0.1.
    pub dirichlet_prior: f64,
    /// What a draw's distance from the mean is multiplied with. At least 0. Default: 1e-4.
    pub sample_scaler: f64,
    /// Weight of the distance of the distributions from their priors in the loss. At least 0. Default: 1e-5.
    pub kl_loss_weight: f64,
    /// Upstream's number of draws that are made at once. Without a meaning here. Default: 150.
    pub buffer_size: usize,
}

impl Default for MontecloraConfig {
    fn default() -> Self {
        Self {
            num_samples: 8,
            use_entropy: false,
            dirichlet_prior: 0.1,
            sample_scaler: 1e-4,
            kl_loss_weight: 1e-5,
            buffer_size: 150,
        }
    }
}

impl MontecloraConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let fits = self.num_samples > 0
            && self.dirichlet_prior > 0.0
            && self.dirichlet_prior.is_finite()
            && not_negative(self.sample_scaler)
            && not_negative(self.kl_loss_weight);
        if fits {
            return Ok(());
        }
        let expected = "`num_samples` of at least 1, a finite `dirichlet_prior` above 0, and finite numbers of at least \
                        0 for `sample_scaler` and `kl_loss_weight`";
        refuse("monteclora_config", self, expected)
    }
}

/// The least variance of a draw.
const LEAST_VARIANCE: f64 = 1e-3;

/// The least of what weights are drawn around.
const LEAST: f64 = 1e-6;

/// Sengupta et al. 2025, MonteCLoRA: plain LoRA, but that in a training A is the weighted mean of n draws around it.
///
/// A draw is A plus normal numbers, whose variances are drawn around trained ones, one for each of the r columns. The
/// weights of the draws are drawn around trained ones, too. It draws only in a training that calls the model's training
/// hooks.
#[derive(Module, Adapter, Debug)]
pub struct MontecloraLinear {
    /// The factors.
    #[nested]
    pub lora: LoraLinear,
    /// Logarithms of the deviations of A's columns, `[r]`.
    #[tensor("lora_monteclora_sampler.std_prior")]
    pub std_prior: Param<Tensor<1>>,
    /// Logarithms of what the draws' weights are concentrated by, `[n]`.
    #[tensor("lora_monteclora_sampler.expert_weights_prior")]
    pub expert_weights_prior: Param<Tensor<1>>,
    /// The variances of the last step, on a diagonal, `[r, r]`. Frozen.
    #[tensor("lora_monteclora_sampler.gaussian_var_prior")]
    pub gaussian_var_prior: Param<Tensor<2>>,
    /// The draws' weights in the last step, `[n]`. Frozen.
    #[tensor("lora_monteclora_sampler.expert_weights")]
    pub expert_weights: Param<Tensor<1>>,
    /// What a draw's distance from the mean is multiplied with.
    pub sample_scaler: f64,
    /// Which step is next, counted from 1; nothing outside of a training.
    #[module(skip)]
    step: Told<u64>,
    /// The layer's number, so that each draws for itself.
    #[module(skip)]
    layer: u64,
}

/// What one step draws: from the step and the layer alone.
struct Draw {
    /// Standard normal, `[n, in · r]`.
    normal: Tensor<2>,
    /// χ² of r degrees of freedom, `[r]`: the diagonal of a Wishart matrix.
    chi_squared: Tensor<1>,
    /// Standard normal, `[n]`.
    of_weights: Tensor<1>,
}

impl MontecloraLinear {
    /// Around a fresh LoRA, or around one whose values a file will give; `layer` is its number.
    pub(crate) fn new(
        lora: LoraLinear,
        config: &MontecloraConfig,
        (rank, layer): (usize, usize),
        like: (&Device, DType),
        plan: &mut Plan,
    ) -> Self {
        let count = config.num_samples;
        let (variances, weights) = if plan.is_new() {
            let plain = like.0.clone().without_autodiff();
            let diagonal = Tensor::<2>::eye(rank, &plain).cast(like.1);
            let even = Tensor::<1>::full([count], 1.0 / count as f64, (&plain, like.1));
            (
                Param::from_tensor(on_device(diagonal, like.0)),
                Param::from_tensor(on_device(even, like.0)),
            )
        } else {
            let init = plan.init();
            (init.zeros([rank, rank], like), init.zeros([count], like))
        };
        Self {
            lora,
            std_prior: from_unit_interval(plan, rank, like),
            expert_weights_prior: from_unit_interval(plan, count, like),
            gaussian_var_prior: variances.set_require_grad(false),
            expert_weights: weights.set_require_grad(false),
            sample_scaler: config.sample_scaler,
            step: Told::default(),
            layer: layer as u64,
        }
    }

    /// What the next step draws, if it draws.
    fn draw(&self) -> Option<Draw> {
        let step = self.step.with(|step| *step)?;
        let a = self.lora.lora_a.val();
        if !a.is_autodiff() {
            return None;
        }
        let [d_in, rank] = a.dims();
        let [count] = self.expert_weights.dims();
        let device = a.device();
        let plain = device.clone().without_autodiff();
        let mut init = Init::new((step << 20) ^ self.layer);
        let squares = init.normal([rank, rank], 1.0, (&plain, DType::F32));
        let normal = init.normal([count, d_in * rank], 1.0, (&plain, DType::F32));
        let of_weights = init.normal([count], 1.0, (&plain, DType::F32));
        let squares = squares.val().powi_scalar(2).sum_dim(1).reshape([rank]);
        Some(Draw {
            normal: on_device(normal.val(), &device),
            chi_squared: on_device(squares, &device),
            of_weights: on_device(of_weights.val(), &device),
        })
    }

    /// The variances of a draw's columns, `[r]`.
    fn variances(&self, draw: &Draw) -> Tensor<1> {
        let deviations = self.std_prior.val().cast(DType::F32).exp();
        (deviations.powi_scalar(2) * draw.chi_squared.clone()).clamp_min(LEAST_VARIANCE)
    }

    /// The weights of the draws, `[n]`: a Dirichlet distribution's, by the normal one that is like it.
    fn weights(&self, draw: &Draw) -> Tensor<1> {
        let alpha = self.concentrations().clamp_min(LEAST);
        let count = alpha.dims()[0] as f64;
        let logarithms = alpha.clone().log();
        let means = logarithms.clone() - logarithms.mean();
        let inverse = alpha.recip();
        let variances = inverse.clone() * (1.0 - 2.0 / count) + inverse.sum() / (count * count);
        let deviations = (variances.clamp_min(LEAST) + LEAST).sqrt();
        activation::softmax(deviations * draw.of_weights.clone() + means, 0)
    }

    /// What the draws' weights are concentrated by, `[n]`.
    fn concentrations(&self) -> Tensor<1> {
        self.expert_weights_prior.val().cast(DType::F32).exp()
    }

    /// A, or the mean of its draws.
    fn down(&self) -> Tensor<2> {
        let a = self.lora.lora_a.val();
        let Some(draw) = self.draw() else {
            // Without a draw they have no say, and a gradient of zero.
            let priors = self.std_prior.val().sum() + self.expert_weights_prior.val().sum();
            return a + (priors * 0.0).unsqueeze();
        };
        let [d_in, rank] = a.dims();
        let weights: Tensor<2> = self.weights(&draw).unsqueeze();
        let mean = weights.matmul(draw.normal.clone()).reshape([d_in, rank]);
        let deviations = self.variances(&draw).sqrt() * self.sample_scaler;
        let apart = mean * deviations.unsqueeze();
        let apart = apart.cast(a.dtype());
        a + apart
    }

    fn factors(&self) -> LowRank {
        LowRank {
            dropout: dropout_rate(&self.lora.dropout),
            ..LowRank::new(self.down(), self.lora.lora_b.val(), self.lora.scale)
        }
    }

    /// What the layer adds to the loss, `[1]`.
    fn penalty(&self, config: &MontecloraConfig) -> Tensor<1> {
        let deviations = self.std_prior.val().cast(DType::F32).exp();
        let rank = deviations.dims()[0] as f64;
        let count = config.num_samples as f64;
        let prior = deviations.powi_scalar(2);
        let of_prior = (prior.clone() - prior.log()).sum() * rank - rank * rank;
        let mut distance =
            dirichlet_distance(self.concentrations(), config.dirichlet_prior) + of_prior * 0.5;
        let Some(draw) = self.draw() else {
            return distance * config.kl_loss_weight;
        };
        let variances = self.variances(&draw);
        let of_draws = (variances.clone() - variances.log()).sum() - rank;
        distance = distance + of_draws * (0.5 * count);
        let penalty = distance * config.kl_loss_weight;
        if config.use_entropy {
            penalty + self.weights(&draw).powi_scalar(2).sum()
        } else {
            penalty
        }
    }
}

/// The Kullback-Leibler divergence of the Dirichlet distribution of these concentrations from the one where all are
/// `prior`, `[1]`.
fn dirichlet_distance(alpha: Tensor<1>, prior: f64) -> Tensor<1> {
    let count = alpha.dims()[0];
    let all = Tensor::<1>::full([count], prior, (&alpha.device(), alpha.dtype()));
    let sum = alpha.clone().sum();
    let weighed = (alpha.clone() - prior) * (digamma(alpha.clone()) - digamma(sum.clone()));
    ln_gamma(sum) - ln_gamma(alpha).sum() - ln_gamma(all.clone().sum())
        + ln_gamma(all).sum()
        + weighed.sum()
}

/// Numbers from [0, 1), as upstream draws them.
fn from_unit_interval(plan: &mut Plan, count: usize, like: (&Device, DType)) -> Param<Tensor<1>> {
    let drawn = plan.init().uniform([count], 0.5, like);
    if plan.is_new() {
        Param::from_tensor((drawn.val() + 0.5).detach())
    } else {
        drawn
    }
}

impl WeightAdapter for MontecloraLinear {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let shape = weight.shape();
        let change = self.factors().cast(weight.dtype());
        weight + change.product().reshape(shape)
    }

    fn low_rank(&self) -> Option<LowRank> {
        Some(self.factors())
    }
}

/// Draws in each step anew, and adds the distances from the priors to the loss.
#[derive(Debug)]
struct MontecloraTraining {
    config: MontecloraConfig,
    /// What the states know of the next step.
    told: Vec<Told<u64>>,
    /// Which step is next; none behind the last.
    next: Option<u64>,
    steps: u64,
}

/// The hooks of a training of these states.
pub(crate) fn hooks(
    config: &MontecloraConfig,
    steps: usize,
    states: &States,
) -> Box<dyn MethodHooks> {
    let hooks = MontecloraTraining {
        config: config.clone(),
        told: states
            .of::<MontecloraLinear>()
            .map(|(_, state)| state.step.clone())
            .collect(),
        next: Some(1),
        steps: steps as u64,
    };
    for told in &hooks.told {
        told.begin(1);
    }
    Box::new(hooks)
}

impl MontecloraTraining {
    /// Lets go of what was told.
    fn clear(&mut self) {
        for told in self.told.drain(..) {
            told.end(1);
        }
    }
}

impl MethodHooks for MontecloraTraining {
    /// The mean over the layers.
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let layers = states.of::<MontecloraLinear>();
        let sum = layers
            .map(|(_, state)| state.penalty(&self.config))
            .reduce(|sum, layer| sum + layer)?;
        Some(sum / self.told.len().max(1) as f64)
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        let step = step as u64;
        self.next = (step < self.steps).then_some(step + 1);
        let (next, mut told) = (self.next, Vec::new());
        states.edit::<MontecloraLinear>(|_, state| {
            let draw = state.draw();
            state.step = Told::new(next);
            told.push(state.step.clone());
            let Some(draw) = draw else { return };
            let variances = state.variances(&draw).inner();
            let rank = variances.dims()[0];
            let identity = Tensor::<2>::eye(rank, &variances.device());
            let weights = state.weights(&draw).inner();
            state.gaussian_var_prior =
                replaced(&state.gaussian_var_prior, identity * variances.unsqueeze());
            state.expert_weights = replaced(&state.expert_weights, weights);
        });
        self.clear();
        self.told = told;
    }

    fn tensors(&self) -> BTreeMap<String, TensorData> {
        let step = self.next.unwrap_or_default() as f64;
        let data = TensorData::new(vec![step], [1]);
        BTreeMap::from([("monteclora_step".to_string(), data)])
    }

    fn restore(
        &mut self,
        tensors: &mut BTreeMap<String, TensorData>,
        _states: &States,
    ) -> Result<(), String> {
        let missing = "tensor `monteclora_step` is missing";
        let data = tensors.remove("monteclora_step").ok_or(missing)?;
        let step = data.iter::<f64>().next().unwrap_or_default();
        if !(0.0..=self.steps as f64).contains(&step) || step.fract() != 0.0 {
            return Err(format!(
                "tensor `monteclora_step` must hold a whole number from 0 to {}",
                self.steps
            ));
        }
        self.next = (step > 0.0).then_some(step as u64);
        for told in &self.told {
            told.tell(self.next);
        }
        Ok(())
    }
}

impl Drop for MontecloraTraining {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The frozen parameter with another value.
fn replaced<const D: usize>(param: &Param<Tensor<D>>, value: Tensor<D>) -> Param<Tensor<D>> {
    param.clone().map(|old| {
        let value = value.cast(old.dtype());
        on_device(value, &old.device()).set_require_grad(false)
    })
}
