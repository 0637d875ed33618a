//! AdaMSS's configuration, and what it puts on a layer.

use faer::Mat;
use peft_core::method::prelude::*;
use peft_core::method::{MethodHooks, States};
use serde::{Deserialize, Deserializer};

use crate::math::of_weight::beginning_as;
use crate::spectral::adamss::schedule::{AdamssSchedule, Allocation};
use crate::spectral::adamss::start::Decomposition;
use crate::spectral::adamss::state::{AdamssBias, AdamssLinear, AdamssSubspaces};

/// AdaMSS's configuration. Fields are called and behave as in Hugging Face PEFT's `AdamssConfig`.
#[method_config(
    ADAMSS, peft_type = "ADAMSS", title = "AdaMSS", family = Reparameterization, identity_at_init, mergeable,
    new(r, num_subspaces, subspace_rank),
    reference = "Zheng et al. 2025, AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning",
    to_json = AdamssConfig::json
)]
pub struct AdamssConfig {
    /// How many of the weight's largest singular values span the subspace; all of them where there are no more.
    #[field(default = 100, at_least = 1)]
    pub r: usize,
    /// Into how many groups outputs are divided; as many as there are outputs, where there are no more.
    #[field(default = 5, at_least = 1)]
    pub num_subspaces: usize,
    /// Rank of each group's factors; as many as it has outputs, or r, where there are no more.
    #[field(default = 1, at_least = 1)]
    pub subspace_rank: usize,
    /// Whether a fresh adapter changes nothing, upstream's `"orthogonal"`: the Bₖ are zero. Else they are random, for
    /// tests, upstream's `null`.
    #[field(default = true, deserialize_with = "orthogonal_or_null")]
    pub init_weights: bool,
    /// Whether groups that matter little are no longer trained, by a schedule in the training loop.
    pub use_asa: bool,
    /// How many groups of all layers are trained at the schedule's end; at least 1.
    #[field(default = 50, any)]
    pub asa_target_subspaces: usize,
    /// Steps before the schedule begins, below `final_warmup`.
    #[field(default = 50, any)]
    pub init_warmup: usize,
    /// Step at which the schedule ends.
    #[field(default = 1000, any)]
    pub final_warmup: usize,
    /// Steps from one choice of groups to the next; at least 1.
    #[field(default = 100, any)]
    pub mask_interval: usize,
    /// Smoothing of importances.
    #[field(default = 0.85, at_least = 0.0, below = 1.0)]
    pub asa_importance_beta: f64,
    /// Smoothing of their uncertainties.
    #[field(default = 0.85, at_least = 0.0, below = 1.0)]
    pub asa_uncertainty_beta: f64,
    /// By which power of the time that is left the number of groups falls; above 0.
    #[field(default = 3.0, finite)]
    pub asa_schedule_exponent: f64,
    /// Whether a group has a smaller rank than `subspace_rank` where its outputs have fewer directions.
    pub use_dynamic_rank: bool,
    /// Which share of a group's largest eigenvalue a direction needs, with `use_dynamic_rank`.
    #[field(default = 0.1, at_least = 0.0)]
    pub svd_threshold: f64,
    /// Seed of the random numbers from which singular vectors are computed, for torch's generator.
    #[field(any)]
    pub random_seed: i64,
    pub targets: Targets,
    pub common: Common,
}

/// Upstream's names for the beginning: `"orthogonal"`, and null or false for a random one.
fn orthogonal_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(false),
        Value::Bool(whether) => Ok(whether),
        Value::String(name) if name == "orthogonal" => Ok(true),
        other => Err(serde::de::Error::custom(format!(
            "`init_weights` is {other}; \"orthogonal\", or null for random values"
        ))),
    }
}

/// The weight, and the bias as one more column, as torch has them: `[out, in]` or `[out, in + 1]`.
fn matrix(target: &TargetLayer<'_>) -> Mat<f64> {
    let (d_in, d_out) = (target.d_in, target.d_out);
    let weight = target.weight.value::<2>().into_data();
    let weight: Vec<f64> = weight.iter::<f64>().collect();
    let bias = target.bias.map(|bias| bias.value::<1>().into_data());
    let bias: Vec<f64> = bias.iter().flat_map(|bias| bias.iter::<f64>()).collect();
    let columns = d_in + usize::from(target.bias.is_some());
    Mat::from_fn(d_out, columns, |output, input| {
        if input < d_in {
            weight[input * d_out + output]
        } else {
            bias[output]
        }
    })
}

/// A parameter with these values.
fn computed(values: &Mat<f64>, (device, dtype): (&Device, DType)) -> Param<Tensor<2>> {
    let shape = [values.nrows(), values.ncols()];
    let numbers = (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |column| (row, column)));
    let numbers: Vec<f32> = numbers.map(|at| values[at] as f32).collect();
    let value = Tensor::<2>::from_data(TensorData::new(numbers, shape), (device, DType::F32));
    beginning_as(value.cast(dtype))
}

impl AdamssConfig {
    /// With upstream's names for the beginning.
    fn json(&self) -> Value {
        let mut json = upstream_json(self);
        json["init_weights"] = if self.init_weights {
            "orthogonal".into()
        } else {
            Value::Null
        };
        json
    }

    fn decomposition(&self, target: &TargetLayer<'_>) -> Result<Decomposition> {
        let matrix = matrix(target);
        let r = self.r.min(matrix.nrows()).min(matrix.ncols());
        let name = target.name();
        let found = Decomposition::of(&matrix, (r, self.num_subspaces, self.random_seed));
        let Some(found) = found else {
            let (field, value) = ("target_modules", &self.targets.target_modules);
            let expected = format!("layers with finite weights: `{name}` has others");
            return Err(Error::config(ADAMSS.title, field, value, expected));
        };
        let empty = found.groups.iter().filter(|group| group.is_empty());
        match empty.count() {
            0 => Ok(found),
            empty => {
                let most = found.groups.len() - empty;
                let expected =
                    format!("at most {most}: outputs of `{name}` that are equal are in one group");
                let value = self.num_subspaces;
                Err(Error::config(
                    ADAMSS.title,
                    "num_subspaces",
                    value,
                    expected,
                ))
            }
        }
    }

    /// Refuses a file whose groups have other sizes: it was trained on another base.
    fn check_sizes(&self, target: &TargetLayer<'_>, sizes: &[usize], plan: &Plan) -> Result<()> {
        let stored = |group: usize| {
            let shape = plan.stored_shape(target.layer, &format!("adamss_B.{group}"));
            shape.and_then(|shape| shape.first().copied())
        };
        let stored: Vec<Option<usize>> = (0..sizes.len()).map(stored).collect();
        let differs = |(size, stored): (&usize, &Option<usize>)| stored.is_some_and(|n| n != *size);
        if !sizes.iter().zip(&stored).any(differs) {
            return Ok(());
        }
        let stored: Vec<usize> = stored.into_iter().flatten().collect();
        let expected = format!(
            "a file that was trained on this base: the outputs of `{}` are groups of {sizes:?}, and the file has groups of \
             {stored:?}",
            target.name()
        );
        let value = self.num_subspaces;
        Err(Error::config(
            ADAMSS.title,
            "num_subspaces",
            value,
            expected,
        ))
    }

    /// The rank of each group.
    fn ranks(
        &self,
        target: &TargetLayer<'_>,
        found: &Decomposition,
        plan: &Plan,
    ) -> Option<Vec<usize>> {
        let r = found.inputs.ncols();
        let rank = |group: usize| {
            let most = self.subspace_rank.min(found.groups[group].len()).min(r);
            if !self.use_dynamic_rank {
                return Some(most);
            }
            // Where a file has decided, rounding does not decide again.
            let stored = plan.stored_shape(target.layer, &format!("adamss_A.{group}"));
            match stored {
                Some([rank, _]) => Some((*rank).clamp(1, most)),
                _ => found.rank(group, most, self.svd_threshold),
            }
        };
        (0..found.groups.len()).map(rank).collect()
    }

    /// The factors of a layer, as many times as it has parameters that they change.
    fn on_layer(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Vec<AdamssSubspaces>> {
        let found = self.decomposition(target)?;
        let sizes: Vec<usize> = found.groups.iter().map(Vec::len).collect();
        self.check_sizes(target, &sizes, plan)?;
        let failed = || {
            let expected = format!("a weight with singular values, not `{}`", target.name());
            let value = &self.targets.target_modules;
            Error::config(ADAMSS.title, "target_modules", value, expected)
        };
        let ranks = self.ranks(target, &found, plan).ok_or_else(failed)?;
        let like = (target.like().0, target.weight.value::<2>().dtype());
        let (rows, r) = (found.inputs.nrows(), found.inputs.ncols());
        let is_new = plan.is_new();
        let init = plan.init();
        let mut factors = Vec::with_capacity(sizes.len());
        for (group, (&rank, &size)) in ranks.iter().zip(&sizes).enumerate() {
            let a = if is_new {
                let directions = found.directions(group, rank).ok_or_else(failed)?;
                computed(&directions, like)
            } else {
                init.zeros([r, rank], like)
            };
            let b = if self.init_weights {
                init.zeros([rank, size], like)
            } else {
                init.normal([rank, size], 0.01, like)
            };
            factors.push([a, b]);
        }
        let projection = if is_new {
            computed(&found.inputs, like)
        } else {
            init.zeros([rows, r], like)
        };
        let mut places = vec![0_i64; target.d_out];
        for (place, output) in found.groups.concat().into_iter().enumerate() {
            places[output] = place as i64;
        }
        let places = Tensor::<1, Int>::from_data(
            TensorData::new(places, [target.d_out]),
            (like.0, DType::I64),
        );
        Ok(AdamssSubspaces::shared(
            projection.set_require_grad(false),
            factors,
            Param::initialized(burn::module::ParamId::new(), places),
            1 + usize::from(target.bias.is_some()),
        ))
    }
}

impl Method for AdamssConfig {
    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        if !self.use_asa {
            return Ok(());
        }
        let refuse = |field, value: Value, expected: &str| {
            Err(Error::config(ADAMSS.title, field, value, expected))
        };
        if self.mask_interval == 0 {
            return refuse("mask_interval", 0.into(), "at least 1");
        }
        if self.asa_target_subspaces == 0 {
            return refuse("asa_target_subspaces", 0.into(), "at least 1");
        }
        if self.init_warmup >= self.final_warmup {
            let expected = format!("below `final_warmup`, which is {}", self.final_warmup);
            return refuse("init_warmup", self.init_warmup.into(), &expected);
        }
        if self.asa_schedule_exponent <= 0.0 {
            let value = self.asa_schedule_exponent.into();
            return refuse("asa_schedule_exponent", value, "above 0");
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        for target in &linear_targets(self, layout, plan)? {
            let d_in = target.d_in;
            let mut handles = self.on_layer(target, plan)?.into_iter();
            if let Some(subspaces) = handles.next() {
                plan.adapt_weight(target.weight, AdamssLinear { subspaces, d_in });
            }
            if let (Some(bias), Some(subspaces)) = (target.bias, handles.next()) {
                plan.adapt_weight(bias, AdamssBias { subspaces, d_in });
            }
        }
        Ok(())
    }

    fn schedule(&self, _steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        if !self.use_asa {
            return Ok(None);
        }
        let allocation = Allocation {
            asa_target_subspaces: self.asa_target_subspaces,
            init_warmup: self.init_warmup,
            final_warmup: self.final_warmup,
            mask_interval: self.mask_interval,
            asa_importance_beta: self.asa_importance_beta,
            asa_uncertainty_beta: self.asa_uncertainty_beta,
            asa_schedule_exponent: self.asa_schedule_exponent,
        };
        Ok(Some(Box::new(AdamssSchedule::new(allocation, states))))
    }
}
