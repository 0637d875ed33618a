//! What happens at one place of the model: the shadow state is made or carried on, and its distance from the model's state
//! goes into the next block.

use burn::module::{Module, Param};
use burn::nn::Dropout;
use burn::tensor::{Tensor, activation};
use peft_core::method::{Adapter, CheckpointKey, HiddenAdapter, SiteContext};
use peft_core::nn::{AdaptedForward, Lane};
use peft_core::ops::linear;

use crate::Activation;
use crate::shadow::backbone::{Affine, ShadowBackbone, with_zeros_in_front};

/// What goes into a block: `h + α·Dropout(h − s) Down Up`.
#[derive(Module, Debug)]
pub struct ShadowInjection {
    /// `[d, r]`.
    pub down: Param<Tensor<2>>,
    /// `[r, d]`.
    pub up: Param<Tensor<2>>,
    /// On the difference.
    pub dropout: Dropout,
    /// α.
    pub alpha: f64,
    /// Upstream's name of the block.
    #[module(skip)]
    pub block: String,
}

/// What a block does to the shadow state: `s' = (1 − g)·s + g·T(h)` with `g = sigmoid(G(h))`, for what comes out of it.
#[derive(Module, Debug)]
pub struct ShadowUpdate {
    /// The first layer of T, `[d, u]`.
    pub transform_in: Affine,
    /// Its second, `[u, d]`.
    pub transform_out: Affine,
    /// The first layer of G, `[d, u]`.
    pub gate_in: Affine,
    /// Its second, `[u, d]`.
    pub gate_out: Affine,
    /// Whether no block reads the new state: it is not computed then.
    pub last: bool,
}

/// ShadowPEFT at one place: behind the embeddings, or behind a block.
#[derive(Module, Debug)]
pub struct ShadowStep {
    /// Behind the embeddings.
    pub backbone: Option<ShadowBackbone>,
    /// Behind a wrapped block.
    pub update: Option<ShadowUpdate>,
    /// Before a wrapped block.
    pub injection: Option<ShadowInjection>,
    /// What the shadow state goes by from place to place.
    #[module(skip)]
    pub lane: Lane,
}

impl ShadowInjection {
    fn forward(&self, hidden: Tensor<3>, state: Tensor<3>) -> Tensor<3> {
        let difference = self.dropout.adapted(hidden.clone() - state);
        let down = linear(difference, self.down.val(), None, None);
        hidden + linear(down, self.up.val(), None, None) * self.alpha
    }

    fn keys(&self) -> Vec<CheckpointKey> {
        let key = |field: &str| {
            let name = format!("{}.shadow_{field}.default.weight", self.block);
            CheckpointKey::named(field, &name)
                .transposed()
                .within("injection")
        };
        vec![key("down"), key("up")]
    }
}

impl ShadowUpdate {
    fn forward(&self, hidden: Tensor<3>, state: Tensor<3>) -> Tensor<3> {
        let through = |first: &Affine, second: &Affine| {
            second.forward(Activation::Gelu.apply(first.forward(hidden.clone())))
        };
        let candidate = through(&self.transform_in, &self.transform_out);
        let gate = activation::sigmoid(through(&self.gate_in, &self.gate_out));
        state.clone() + gate * (candidate - state)
    }

    fn keys() -> Vec<CheckpointKey> {
        let key = |field: &str, name: &str| CheckpointKey::layer(field, name).within("update");
        let names = [
            ("transform_in", "shadow_update_transform.default.0"),
            ("transform_out", "shadow_update_transform.default.2"),
            ("gate_in", "shadow_update_gate.default.0"),
            ("gate_out", "shadow_update_gate.default.2"),
        ];
        let keys = names
            .iter()
            .flat_map(|(field, name)| Affine::keys(field, name, key));
        keys.collect()
    }
}

impl Adapter for ShadowStep {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let mut keys = Vec::new();
        if let Some(backbone) = &self.backbone {
            keys.extend(
                backbone
                    .keys()
                    .into_iter()
                    .map(|key| key.within("backbone")),
            );
        }
        if self.update.is_some() {
            keys.extend(ShadowUpdate::keys());
        }
        if let Some(injection) = &self.injection {
            keys.extend(injection.keys());
        }
        keys
    }
}

impl HiddenAdapter for ShadowStep {
    fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let pass = context.forward;
        if self.update.as_ref().is_some_and(|update| update.last) {
            return hidden;
        }
        let tokens = hidden.dims()[1];
        let mut state = match &self.backbone {
            Some(backbone) => backbone.first_state(hidden.clone(), pass, &self.lane),
            None => pass.handed_on(&self.lane).expect(
                "the shadow state is handed on from block to block: the model has to give its embeddings' site and all of \
                 its blocks one context, and run them in their order",
            ),
        };
        state = with_zeros_in_front(state, tokens);
        if let Some(update) = &self.update {
            state = update.forward(hidden.clone(), state);
        }
        pass.hand_on(&self.lane, state.clone());
        match &self.injection {
            None => hidden,
            Some(injection) => injection.forward(hidden, state),
        }
    }
}
