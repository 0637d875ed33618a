//! `DiffPruning`: all parameters get a difference and a gate that is open or closed; the gates are pruned by an L0 penalty,
//! and in the end the largest differences stay.

use burn::module::{Module, Param};
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Device, Int, Tensor};
use peft_core::method::{
    Adapter, BaseEmbedding, BaseLinear, CheckpointKey, Common, Init, Layout, LayoutParam, Method,
    MethodHooks, Plan, SparseDelta, States, Targets, WeightAdapter, method_config,
};
use peft_core::{Error, Result};

use crate::elements::{Place, candidates, is_stored, share, stored_count};
use crate::ranking::largest_of_all;

/// Keys of what is trained while the gates are, after the parameter's own name.
const DIFFERENCE: &str = "diff";
const ALPHA: &str = "diff_alpha";
const GROUP: &str = "diff_alpha_group";
const SEED: &str = "diff_seed";

/// Seeds are below this.
const SEEDS: i64 = 1 << 30;

/// `DiffPruning`'s configuration.
///
/// The gates of weights that are called through [`AdaptedForward`](peft_core::nn::AdaptedForward) are drawn; those of other
/// parameters are as if their noise were 0, and so are all outside of training. They are drawn anew for each step, penalised,
/// and fixed in the end, in a loop that calls [`TrainingHooks`](peft_core::TrainingHooks). In a loop that does not, all
/// differences train, under one draw.
#[method_config(
    DIFF_PRUNING, peft_type = "DIFF_PRUNING", name = "diff-pruning", title = "DiffPruning", family = Selective,
    identity_at_init, mergeable, new(),
    reference = "Guo et al. 2021, Parameter-Efficient Transfer Learning with Diff Pruning, section 3"
)]
pub struct DiffPruningConfig {
    /// Share of all elements that change in the end, rounded down to a whole number of them.
    #[field(default = 0.005, above = 0.0, at_most = 1.0)]
    pub keep_ratio: f64,
    /// Share of the training's steps, the last ones, in which the mask is fixed.
    #[field(default = 0.25, above = 0.0, below = 1.0)]
    pub fixed_ratio: f64,
    /// What the expected number of open gates is multiplied by in the penalty.
    #[field(default = 1.25e-7, at_least = 0.0)]
    pub sparsity_penalty: f64,
    /// Where the gates start.
    #[field(default = 5.0, finite)]
    pub alpha_init: f64,
    /// Lower end of the interval that a gate is stretched to before it is cut off at 0 and 1. Below 0.
    #[field(default = -1.5, finite)]
    pub concrete_lower: f64,
    /// Its upper end. Above 1.
    #[field(default = 1.5, above = 1.0)]
    pub concrete_upper: f64,
    /// Whether each parameter tensor has a gate of its own besides, which its elements' gates are multiplied by.
    #[field(default = true)]
    pub structured: bool,
    /// Layers whose parameters take part, of whatever kind. Default: all but the head.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// `W' = W + z ⊙ w` of one parameter while the gates z are trained, and `W' = W + S` afterwards, where S is 0 but at k
/// places.
#[derive(Module, Debug)]
pub struct DiffPruned {
    /// w, flattened as Burn has the parameter, `[n]`.
    pub diff: Option<Param<Tensor<1>>>,
    /// Of the gates of single elements, `[n]`.
    pub alpha: Option<Param<Tensor<1>>>,
    /// Of the gate of all of them, `[1]`.
    pub group: Option<Param<Tensor<1>>>,
    /// S.
    pub sparse: Option<SparseDelta>,
    #[module(skip)]
    place: Place,
    /// Of the noise of this step, `[1]`.
    pub seed: Option<Param<Tensor<1, Int>>>,
    #[module(skip)]
    interval: [f64; 2],
}

impl DiffPruned {
    /// Gates of `alpha`, `[n]`, in [0, 1]: drawn with noise of this seed, or without noise.
    fn gates(&self, alpha: Tensor<1>, seed: Option<u64>) -> Tensor<1> {
        let [lower, upper] = self.interval;
        let (device, dtype) = (alpha.device(), alpha.dtype());
        let position = match seed {
            Some(seed) => {
                let drawn = Init::new(seed).uniform(alpha.dims(), 0.5, (&device, DType::F32));
                // In (0, 1), and so is its distance from 1.
                let drawn: Tensor<1> = (drawn.val().detach() + 0.5).clamp(1e-6, 1.0 - 1e-6);
                let rest: Tensor<1> = drawn.clone().neg() + 1.0;
                let noise = drawn.log() - rest.log();
                alpha + noise.cast(dtype)
            }
            None => alpha,
        };
        (sigmoid(position) * (upper - lower) + lower).clamp(0.0, 1.0)
    }

    /// z ⊙ w, flattened; none where the mask is fixed.
    fn change(&self, seed: Option<u64>) -> Option<Tensor<1>> {
        let (diff, alpha) = (self.diff.as_ref()?, self.alpha.as_ref()?);
        let gated = diff.val() * self.gates(alpha.val(), seed);
        Some(match &self.group {
            Some(group) => gated * self.gates(group.val(), seed.map(|seed| !seed)),
            None => gated,
        })
    }

    /// The seed of this step's noise.
    fn seed(&self) -> Option<u64> {
        let seed = self.seed.as_ref()?.val().into_data();
        seed.iter::<i64>().next().map(|seed| seed as u64)
    }

    /// Other noise in the next step.
    fn draw_again(&mut self) {
        let seed = self
            .seed()
            .map(|seed| (seed as i64 * 1_103_515_245 + 12_345) % SEEDS);
        let like = self
            .seed
            .as_ref()
            .map(|seed| (seed.val().device(), seed.val().dtype()));
        if let (Some(seed), Some((device, dtype))) = (seed, like) {
            self.seed = Some(Init::new(0).integers([1], (&device, dtype), |_| vec![seed]));
        }
    }

    /// The effective parameter, with gates that are drawn where something is trained.
    fn drawn<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let trains = self.devices().iter().any(Device::is_autodiff);
        match self.change(self.seed().filter(|_| trains)) {
            Some(change) => {
                let shape = weight.shape();
                weight + change.reshape(shape)
            }
            None => weight,
        }
    }

    /// The expected number of gates that are not 0, `[1]`.
    fn expected_open(&self) -> Option<Tensor<1>> {
        let [lower, upper] = self.interval;
        let shift = (-lower / upper).ln();
        let open = |alpha: &Param<Tensor<1>>| sigmoid(alpha.val() - shift);
        let own = open(self.alpha.as_ref()?).sum();
        Some(match &self.group {
            Some(group) => own * open(group),
            None => own,
        })
    }
}

impl Adapter for DiffPruned {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let there = [
            ("diff", DIFFERENCE, self.diff.is_some()),
            ("alpha", ALPHA, self.alpha.is_some()),
            ("group", GROUP, self.group.is_some()),
            ("seed", SEED, self.seed.is_some()),
        ];
        let there = there.into_iter().filter(|(_, _, is_there)| *is_there);
        let mut keys: Vec<CheckpointKey> = there
            .map(|(field, key, _)| {
                CheckpointKey::layer(field, &format!("{}.{key}", self.place.field()))
            })
            .collect();
        if let Some(sparse) = &self.sparse {
            let own = sparse.tensors().into_iter();
            keys.extend(own.map(|key| key.within("sparse")));
        }
        keys
    }
}

impl WeightAdapter for DiffPruned {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        let weight = match self.change(None) {
            Some(change) => {
                let shape = weight.shape();
                weight + change.reshape(shape)
            }
            None => weight,
        };
        match &self.sparse {
            Some(sparse) => sparse.compose(weight),
            None => weight,
        }
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        match (&self.diff, &self.sparse) {
            (None, Some(sparse)) => sparse.linear(input, base),
            (None, None) => base.forward(input),
            (Some(_), _) => {
                let weight = self.drawn(base.weight());
                peft_core::ops::linear(input, weight, base.bias(), None)
            }
        }
    }

    fn embedding(&self, ids: Tensor<2, Int>, base: &dyn BaseEmbedding) -> Tensor<3> {
        match (&self.diff, &self.sparse) {
            (None, Some(sparse)) => sparse.embedding(ids, base),
            (None, None) => base.forward(ids),
            (Some(_), _) => burn::tensor::module::embedding(self.drawn(base.weight()), ids),
        }
    }

    fn affects_tied_head(&self) -> bool {
        self.place.is_head()
    }
}

impl Method for DiffPruningConfig {
    fn validate(&self) -> Result<()> {
        use peft_core::method::MethodConfig as _;
        self.check_fields()?;
        if self.concrete_lower < 0.0 {
            return Ok(());
        }
        let (field, value) = ("concrete_lower", self.concrete_lower);
        Err(Error::config(
            DIFF_PRUNING.title,
            field,
            value,
            "a number below 0",
        ))
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let params = candidates(&self.targets, layout, plan, &DIFF_PRUNING)?;
        if plan.is_new() {
            share(&params, ("keep_ratio", self.keep_ratio), &DIFF_PRUNING)?;
        }
        let keys = [DIFFERENCE, ALPHA];
        let is_gated = |key: &&str| is_stored(&params, key, layout, plan);
        if plan.is_new() || keys.iter().any(is_gated) {
            for param in params {
                let state = self.gated(param, Place::of(layout, param), plan);
                plan.adapt_weight(param, state);
            }
            return Ok(());
        }
        for param in layout.params.iter().filter(|param| !param.is_tied()) {
            if let Some(count) = stored_count(param, layout, plan) {
                let place = Place::of(layout, param);
                let state = DiffPruned {
                    diff: None,
                    alpha: None,
                    group: None,
                    sparse: Some(place.stored(param, count, plan)),
                    place,
                    seed: None,
                    interval: self.interval(),
                };
                plan.adapt_weight(param, state);
            }
        }
        Ok(())
    }

    fn schedule(&self, steps: usize, states: &States) -> Result<Option<Box<dyn MethodHooks>>> {
        let gated = states.of::<DiffPruned>();
        let gated = gated.filter_map(|(_, state)| state.diff.as_ref());
        let all: usize = gated.map(|diff| diff.shape().num_elements()).sum();
        if all == 0 {
            return Ok(None);
        }
        let fixed = (steps as f64 * self.fixed_ratio).round() as usize;
        if fixed == 0 || fixed >= steps {
            let expected = format!("a share that leaves some of {steps} steps to each phase");
            let (title, field) = (DIFF_PRUNING.title, "fixed_ratio");
            return Err(Error::config(title, field, self.fixed_ratio, expected));
        }
        Ok(Some(Box::new(Pruning {
            after: steps - fixed,
            count: (all as f64 * self.keep_ratio) as usize,
            penalty: self.sparsity_penalty,
        })))
    }
}

impl DiffPruningConfig {
    fn interval(&self) -> [f64; 2] {
        [self.concrete_lower, self.concrete_upper]
    }

    /// The state of a parameter while the gates are trained.
    fn gated(&self, param: &LayoutParam, place: Place, plan: &mut Plan) -> DiffPruned {
        let (device, count, init) = (param.device(), param.elements(), plan.init());
        let like = (&device, param.dtype());
        let mut alphas = |count| shifted(init.zeros([count], like), self.alpha_init);
        let alpha = alphas(count);
        let group = self.structured.then(|| alphas(1));
        DiffPruned {
            diff: Some(init.zeros([count], like)),
            alpha: Some(alpha),
            group,
            sparse: None,
            place,
            seed: Some(init.integers([1], (&device, DType::I32), |init| {
                vec![init.indices(1, SEEDS as usize)[0] as i64]
            })),
            interval: self.interval(),
        }
    }
}

/// A parameter with a number added, where it has values already.
fn shifted(param: Param<Tensor<1>>, by: f64) -> Param<Tensor<1>> {
    if param.is_initialized() {
        Param::from_tensor((param.val() + by).detach())
    } else {
        param
    }
}

/// What `DiffPruning` does in a training.
#[derive(Debug)]
struct Pruning {
    /// The last step with gates.
    after: usize,
    count: usize,
    penalty: f64,
}

impl Pruning {
    /// Keeps the largest differences, as they are, and trains them alone from here on.
    fn fix(&self, states: &mut States) {
        let without_noise = |state: &DiffPruned| {
            let change = state.change(None)?.into_data();
            let change = change.iter::<f32>().collect();
            Some(state.place.in_upstreams_order(change))
        };
        let gated = states.of::<DiffPruned>();
        let changes: Vec<Vec<f32>> = gated
            .filter_map(|(_, state)| without_noise(state))
            .collect();
        let scores = changes
            .iter()
            .map(|all| all.iter().map(|change| change.abs()).collect());
        let chosen = largest_of_all(&scores.collect::<Vec<_>>(), self.count);
        let mut chosen = chosen.into_iter().zip(changes);
        states.edit::<DiffPruned>(|_, state| {
            let Some(diff) = state.diff.take() else {
                return;
            };
            (state.alpha, state.group, state.seed) = (None, None, None);
            if let Some((places, changes)) = chosen.next() {
                let values = places.iter().map(|place| changes[*place]).collect();
                state.sparse = state.place.started(places, Some(values), &diff.val());
            }
        });
    }
}

impl MethodHooks for Pruning {
    fn penalty(&self, states: &States) -> Option<Tensor<1>> {
        let open = states.of::<DiffPruned>();
        let open = open.filter_map(|(_, state)| state.expected_open());
        let sum = open.reduce(|sum, open| sum + open)?;
        Some(sum * self.penalty)
    }

    fn after_step(&mut self, step: usize, states: &mut States) {
        if step == self.after {
            self.fix(states);
        } else if step < self.after {
            states.edit::<DiffPruned>(|_, state| state.draw_again());
        }
    }
}
