//! IA³ as AdapterHub computes it: with alpha, or with a gate for each text.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, BaseLinear, Plan, Promises, Shared, TargetLayer, TextGate, WeightAdapter,
};

use super::adapterhub::AdapterHubIa3;
use super::{Ia3, Ia3Config};

/// `y = g·l ∘ (x W + b)`, g the gate of each text.
#[derive(Module, Adapter, Debug)]
pub struct GatedIa3 {
    /// l, `[out, 1]`.
    #[tensor("ia3_l", adapterhub = "loras.{adapter}.lora_B")]
    pub ia3_l: Param<Tensor<2>>,
    /// g.
    #[nested]
    pub gate: TextGate,
}

impl WeightAdapter for GatedIa3 {
    fn compose<const D: usize>(&self, _weight: Tensor<D>) -> Tensor<D> {
        panic!(
            "IA3 with a gate is no change of a weight: the gate depends on the input. Call the model's layer with \
             `adapted`, or attach IA3 without `use_gating`"
        )
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let scaled = base.forward(input.clone()) * self.ia3_l.val().transpose();
        self.gate.times(scaled, input, base.batch())
    }
}

impl Ia3Config {
    /// What adapters keep to: a gate is no change of a weight, and with it, with an alpha or with other initial values than 1
    /// outputs change at once.
    pub(super) fn kept(&self) -> Promises {
        let fields = self.adapterhub.as_ref();
        let gated = fields.is_some_and(AdapterHubIa3::use_gating);
        Promises {
            identity_at_init: !gated && fields.is_none_or(AdapterHubIa3::begins_as_nothing),
            mergeable: !gated,
        }
    }
}

impl AdapterHubIa3 {
    /// Plans a layer's state, and its bias's. `as_configured`: whether l begins as the configuration says, or at random.
    pub(super) fn adapt(&self, target: &TargetLayer<'_>, as_configured: bool, plan: &mut Plan) {
        let like = target.like();
        let ia3_l = if as_configured {
            self.l(target.d_out, plan, like)
        } else {
            plan.init().normal([target.d_out, 1], 1.0, like)
        };
        if self.use_gating() {
            let gate = TextGate::new(target.d_in, plan.init(), like);
            plan.adapt_weight(target.weight, GatedIa3 { ia3_l, gate });
            return;
        }
        let places = [Some(target.weight), target.bias];
        let places: Vec<_> = places.into_iter().flatten().collect();
        let handles = Shared::new(ia3_l, places.len());
        for (param, ia3_l) in places.into_iter().zip(handles) {
            let (axes, alpha) = (0, self.alpha());
            plan.adapt_weight(param, Ia3 { ia3_l, axes, alpha });
        }
    }
}
