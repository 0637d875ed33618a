//! The state of a bottleneck adapter at one site, and what it computes.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::{DType, Device, Tensor, activation};
use peft_core::method::{
    Activation, Adapter, CheckpointKey, HiddenAdapter, HiddenParts, Init, SiteContext,
};
use peft_core::nn::{AdaptedForward as _, dropout_rate};
use peft_core::ops::{dropout, layer_norm};

use super::experts::{Expert, mixed};
use super::projection::{Dense, Projection};
use super::skip::Skip;

/// What is added to the variance: torch's default.
const EPSILON: f64 = 1e-5;

/// A layer normalisation.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[d]`.
    pub weight: Param<Tensor<1>>,
    /// `[d]`.
    pub bias: Param<Tensor<1>>,
}

impl Norm {
    pub(crate) fn new(width: usize, init: &mut Init, like: (&Device, DType)) -> Self {
        Self {
            weight: init.ones([width], like),
            bias: init.zeros([width], like),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        layer_norm(x, None, weight, Some(bias), EPSILON, 0.0)
    }

    fn tensors(field: &str, key: &str) -> [CheckpointKey; 2] {
        ["weight", "bias"]
            .map(|of| CheckpointKey::layer(&format!("{field}.{of}"), &format!("{key}.{of}")))
    }
}

/// What the adapter's own residual is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// The sublayer's output.
    Hidden,
    /// That with the model's residual.
    Added,
    /// What the adapter sees.
    Seen,
}

/// What a bottleneck sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The sublayer's output.
    Hidden,
    /// That after the model's residual and norm.
    BehindNorm,
    /// What goes into the sublayer: it is beside it. Its own residual is the sublayer's output then.
    Input,
}

/// Where a bottleneck is in the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// What it sees.
    pub seen: Seen,
    /// What its own residual is, unless it is beside the sublayer.
    pub residual: Residual,
    /// Whether that is added before its own norm, unless it is beside the sublayer.
    pub residual_before_norm: bool,
    /// Whether its output takes the place of the model's residual and norm.
    pub is_end: bool,
}

impl Placement {
    /// What the adapter sees, and its residual.
    fn enter(self, hidden: Tensor<3>, context: &SiteContext<'_>) -> (Tensor<3>, Tensor<3>) {
        match self.seen {
            Seen::Hidden => (hidden.clone(), hidden),
            Seen::Input => {
                let input = context.residual.as_ref();
                let input = input.or(context.sublayer_input.as_ref()).expect(
                    "an adapter beside a sublayer needs the sublayer's input, and the model gives this site none: \
                     make the context with `SiteContext::post_norm` or `SiteContext::pre_norm`",
                );
                (input.clone(), hidden)
            }
            Seen::BehindNorm => {
                let added = match &context.residual {
                    Some(residual) => hidden.clone() + residual.clone(),
                    None => hidden.clone(),
                };
                let seen = match context.norm {
                    Some(norm) => norm(added.clone()),
                    None => added.clone(),
                };
                let residual = match self.residual {
                    Residual::Hidden => hidden,
                    Residual::Added => added,
                    Residual::Seen => seen.clone(),
                };
                (seen, residual)
            }
        }
    }
}

/// What the model itself makes of the sublayer's output.
fn without_adapter(hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
    let added = match &context.residual {
        Some(residual) => hidden + residual.clone(),
        None => hidden,
    };
    match context.norm {
        Some(norm) => norm(added),
        None => added,
    }
}

/// `h + s · Up(σ(Down z))`, where z is h, or h with residual and norm applied first, or what went into the sublayer; and
/// what upstream's configuration adds to it.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// Normalises what Down sees.
    pub norm_before: Option<Norm>,
    /// Down-projection, from d to d / `reduction_factor`.
    pub down: Projection,
    /// Up-projection, from d / `reduction_factor` to d.
    pub up: Projection,
    /// Further pairs of both, of which training takes one at random.
    pub experts: Vec<Expert>,
    /// Trained factors of the output, `[1]` or `[d]`.
    pub scales: Option<Param<Tensor<1>>>,
    /// One number for each token, whose mean over the text is the gate: from d to 1.
    pub gate: Option<Dense>,
    /// Normalises the output.
    pub norm_after: Option<Norm>,
    /// On the up-projection's output.
    pub dropout: Dropout,
    /// Leaves out whole rows of the batch.
    pub stochastic_depth: Dropout,
    /// Fixed factor of the output.
    pub scaling: f64,
    /// The non-linearity.
    #[module(skip)]
    pub activation: Activation,
    /// Where it is in the forward pass.
    #[module(skip)]
    pub placement: Placement,
    /// Whether weights that are 0 stay so.
    pub sparse: bool,
    /// Whether it is left out.
    #[module(skip)]
    pub skip: Skip,
}

impl Bottleneck {
    /// What the adapter adds for what it sees, `[batch, seq, d]`.
    fn change(&self, seen: Tensor<3>) -> Tensor<3> {
        let gate = self.gate.as_ref().map(|gate| {
            // As upstream, over all tokens of a row, those that only fill it up among them.
            activation::sigmoid(gate.forward(seen.clone())).mean_dim(1)
        });
        let seen = match &self.norm_before {
            Some(norm) => norm.forward(seen),
            None => seen,
        };
        let depth = dropout_rate(&self.stochastic_depth);
        let mut up = drop_rows(self.through(seen), depth);
        if let Some(scales) = &self.scales {
            up = up * scales.val().unsqueeze();
        }
        // One pass over the state less for the usual 1.
        if (self.scaling - 1.0).abs() > f64::EPSILON {
            up = up * self.scaling;
        }
        let change = self.dropout.adapted(up);
        match gate {
            Some(gate) => change * gate,
            None => change,
        }
    }
}

impl Bottleneck {
    /// Down, the non-linearity, and Up.
    fn through(&self, seen: Tensor<3>) -> Tensor<3> {
        match (&self.down, &self.up) {
            (Projection::Dense(down), Projection::Dense(up)) if !self.experts.is_empty() => {
                let [down, up] = mixed(down, up, &self.experts);
                up.forward(self.activation.apply(down.forward(seen)))
            }
            (Projection::Dense(down), Projection::Dense(up)) if self.sparse => {
                up.sparse_forward(self.activation.apply(down.sparse_forward(seen)))
            }
            (down, up) => up.forward(self.activation.apply(down.forward(seen))),
        }
    }
}

/// Rows of the batch, each left out with this probability while training; the others are the larger for it.
fn drop_rows(x: Tensor<3>, probability: f64) -> Tensor<3> {
    if probability == 0.0 || !x.is_autodiff() {
        return x;
    }
    let ones = Tensor::<3>::ones([x.dims()[0], 1, 1], (&x.device(), x.dtype()));
    x * dropout(ones, probability)
}

/// The adapter with the average of its experts, and no others.
fn averaged(state: &Bottleneck) -> Bottleneck {
    let (Projection::Dense(down), Projection::Dense(up)) = (&state.down, &state.up) else {
        return state.clone();
    };
    if state.experts.is_empty() {
        return state.clone();
    }
    let experts: Vec<Expert> = state.experts.iter().map(Module::valid).collect();
    let [down, up] = mixed(&down.valid(), &up.valid(), &experts);
    Bottleneck {
        down: Projection::Dense(down.into_dense()),
        up: Projection::Dense(up.into_dense()),
        experts: Vec::new(),
        ..state.clone()
    }
}

impl HiddenAdapter for Bottleneck {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let placement = self.placement;
        if self.skip.is_on(&hidden) {
            return if placement.is_end {
                without_adapter(hidden, context)
            } else {
                hidden
            };
        }
        let (seen, residual) = placement.enter(hidden, context);
        let change = self.change(seen);
        match &self.norm_after {
            None => residual + change,
            Some(norm) if placement.residual_before_norm && placement.seen != Seen::Input => {
                norm.forward(residual + change)
            }
            Some(norm) => residual + norm.forward(change),
        }
    }

    fn parts(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> HiddenParts {
        let placement = self.placement;
        let (seen, kept) = placement.enter(hidden.clone(), context);
        let as_a_whole = self.norm_after.is_some() && placement.residual_before_norm;
        let added = if self.skip.is_on(&hidden) || as_a_whole {
            self.forward(hidden, context) - kept.clone()
        } else {
            let change = self.change(seen.clone());
            match &self.norm_after {
                Some(norm) => norm.forward(change),
                None => change,
            }
        };
        HiddenParts { seen, kept, added }
    }

    fn is_end(&self) -> bool {
        self.placement.is_end
    }
}

impl Adapter for Bottleneck {
    fn for_checkpoint(&self) -> Self {
        averaged(self)
    }

    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut tensors = Vec::new();
        // Upstream's Down is a sequence, in which the norm comes first.
        let mut down = "adapter_down.0";
        if self.norm_before.is_some() {
            // Under two names, as upstream's adapter has the norm by itself, too.
            let first = Norm::tensors("norm_before", down);
            let again = Norm::tensors("norm_before", "adapter_norm_before");
            let both = first.into_iter().zip(again);
            tensors.extend(both.map(|(first, again)| first.twin(again)));
            down = "adapter_down.1";
        }
        tensors.extend(self.down.tensors("down", down));
        tensors.extend(self.up.tensors("up", "adapter_up"));
        for (index, expert) in self.experts.iter().enumerate() {
            tensors.extend(expert.tensors(index, down));
        }
        let scales = self.scales.as_ref();
        tensors.extend(scales.map(|_| CheckpointKey::layer("scales", "scaling")));
        if self.gate.is_some() {
            tensors.extend(Dense::tensors("gate", "gate"));
        }
        if self.norm_after.is_some() {
            tensors.extend(Norm::tensors("norm_after", "adapter_norm_after"));
        }
        tensors
    }
}
