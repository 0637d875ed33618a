//! IA³: keys, values and what flows inside of the feed-forward blocks are scaled, feature by feature.

use peft_core::method::prelude::*;

/// `y = l ∘ (x W + b)`, or `y = (l ∘ x) W + b` in feed-forward blocks; on the layer's weight, and on its bias where
/// that is scaled, too.
#[derive(Module, Adapter, Debug)]
pub struct Ia3 {
    /// l, `[out, 1]`; in feed-forward blocks `[1, in]`. One parameter of weight and bias.
    #[tensor("ia3_l")]
    pub ia3_l: Shared<2>,
}

impl WeightAdapter for Ia3 {
    fn compose<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        let [outputs, inputs] = self.ia3_l.val().dims();
        let mut shape = [1; D];
        // Of a bias, one axis is both.
        shape[0] = inputs;
        shape[D - 1] = outputs;
        value * self.ia3_l.val().reshape(shape)
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let l = self.ia3_l.val();
        match l.dims() {
            [1, _] => base.forward(input * l),
            // The bias is scaled by its own state.
            _ => base.with_bias(base.product(input) * l.transpose()),
        }
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// IA³'s configuration. Fields are called and behave as in Hugging Face PEFT's `IA3Config`.
#[method_config(
    IA3, peft_type = "IA3", title = "IA3", family = Additive, identity_at_init, mergeable, new(),
    reference = "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context \
                 Learning, section 3.3",
    unsupported("fan_in_fan_out"), to_json = Ia3Config::json
)]
pub struct Ia3Config {
    /// Those of the layers whose inputs are scaled, not their outputs: as a rule the second layer of each
    /// feed-forward block.
    pub feedforward_modules: Option<Selection>,
    /// Whether a fresh adapter changes nothing; else l is standard normal, for tests.
    #[field(default = true)]
    pub init_ia3_weights: bool,
    pub targets: Targets,
    pub common: Common,
}

impl Ia3Config {
    /// Without upstream's other target fields, which its `IA3Config` does not have.
    fn json(&self) -> Value {
        let mut json = upstream_json(self);
        if let Some(fields) = json.as_object_mut() {
            let other = |field: &str| field == "layers_to_transform" || field == "layers_pattern";
            fields.retain(|field, value| !(other(field) && value.is_null()));
        }
        json
    }
}

impl LinearMethod for Ia3Config {
    type State = Ia3;

    fn check(&self) -> Result<()> {
        let (targets, inside) = (&self.targets.target_modules, &self.feedforward_modules);
        if let (Some(Selection::Names(targets)), Some(Selection::Names(inside))) = (targets, inside)
            && let Some(other) = inside.iter().find(|name| !targets.contains(name))
        {
            let (field, expected) = ("feedforward_modules", "names of target_modules only");
            return Err(Error::config(IA3.title, field, other, expected));
        }
        Ok(())
    }

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Ia3> {
        let inside = match &self.feedforward_modules {
            Some(modules) => modules.matches(target.layer)?,
            None => false,
        };
        let (d_in, d_out, init) = (target.d_in, target.d_out, plan.init());
        let shape = if inside { [1, d_in] } else { [d_out, 1] };
        let l = if self.init_ia3_weights {
            init.ones(shape, target.like())
        } else {
            init.normal(shape, 1.0, target.like())
        };
        let bias = target.bias.filter(|_| !inside);
        let handles = Shared::new(l, 1 + usize::from(bias.is_some()));
        let mut states = handles.map(|ia3_l| Ia3 { ia3_l });
        // The weight comes first in the layer.
        let on_weight = states.next().expect("a handle for each place");
        if let (Some(bias), Some(on_bias)) = (bias, states.next()) {
            plan.adapt_weight(bias, on_bias);
        }
        Ok(on_weight)
    }
}
