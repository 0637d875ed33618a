//! IA³: keys, values and what flows inside of the feed-forward blocks are scaled, feature by feature.

mod adapterhub;
mod defaults;
mod gated;

use burn::tensor::module::conv2d;
use peft_core::method::LINEAR_AND_CONV;
use peft_core::method::prelude::*;

pub use adapterhub::AdapterHubIa3;
pub use gated::GatedIa3;

/// `y = l ∘ (x W + b)`, or `y = (l ∘ x) W + b` in feed-forward blocks; on the layer's weight, and on its bias where
/// that is scaled, too. Of a convolution, channels are scaled.
#[derive(Module, Debug)]
pub struct Ia3 {
    /// l, `[out, 1]`; in feed-forward blocks `[1, in]`. One parameter of weight and bias.
    pub ia3_l: Shared<2>,
    /// Axes of the layer's kernel: 1 or 2, and 0 of a linear layer. A file has as many axes of one element behind l.
    pub axes: usize,
    /// A fixed factor besides: AdapterHub's alpha, 1 elsewhere.
    pub alpha: f64,
}

impl Adapter for Ia3 {
    fn tensors(&self) -> Vec<CheckpointKey> {
        let key = CheckpointKey::layer("ia3_l", "ia3_l");
        if self.axes > 0 {
            let mut shape = vec![1; 2 + self.axes];
            shape[1] = self.ia3_l.shape().iter().product();
            return vec![key.shaped(&shape)];
        }
        let in_adapterhub = CheckpointKey::layer("ia3_l", "loras.{adapter}.lora_B");
        vec![key.in_adapterhub(in_adapterhub)]
    }
}

impl Ia3 {
    /// l, times alpha.
    fn l(&self) -> Tensor<2> {
        let l = self.ia3_l.val();
        if (self.alpha - 1.0).abs() < f64::EPSILON {
            l
        } else {
            l * self.alpha
        }
    }

    /// l for a kernel `[out, in / groups, …]`: of outputs, or of the inputs of each output.
    fn of_kernel<const D: usize>(&self, kernel: [usize; D]) -> Tensor<D> {
        let l = self.l();
        let [outputs, inputs] = l.dims();
        // Outputs of a group see its inputs.
        let groups = (inputs / kernel[1]).max(1);
        let l = l.reshape([groups, outputs, inputs / groups]);
        let mut shape = [1; D];
        (shape[0], shape[1]) = (kernel[0], inputs / groups);
        l.repeat_dim(1, kernel[0] / groups / outputs).reshape(shape)
    }
}

impl WeightAdapter for Ia3 {
    fn compose<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        if D > 2 {
            let l = self.of_kernel(value.dims());
            return value * l;
        }
        let [outputs, inputs] = self.ia3_l.val().dims();
        let mut shape = [1; D];
        // Of a bias, one axis is both.
        shape[0] = inputs;
        shape[D - 1] = outputs;
        value * self.l().reshape(shape)
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn conv2d(&self, input: Tensor<4>, base: &dyn BaseConv2d) -> Tensor<4> {
        let l = self.l();
        let channels = input.dims()[1];
        match l.dims() {
            [out, 1] => base.forward(input) * l.reshape([1, out, 1, 1]),
            [_, inputs] if inputs == channels => {
                base.forward(input * l.reshape([1, channels, 1, 1]))
            }
            // The model does not say that the layer has groups: all have the same factors.
            _ => conv2d(input, self.compose(base.weight()), None, base.options()),
        }
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        let l = self.l();
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
    unsupported("fan_in_fan_out"), to_json = Ia3Config::json, parse = Ia3Config::PARSE, recognises = Ia3Config::RECOGNISES
)]
pub struct Ia3Config {
    /// Those of the layers whose inputs are scaled, not their outputs: as a rule the second layer of each
    /// feed-forward block. Default: upstream's for the kind of model, none where the kind is not known. An empty list is none.
    pub feedforward_modules: Option<Selection>,
    /// Whether a fresh adapter changes nothing; else l is standard normal, for tests.
    #[field(default = true)]
    pub init_ia3_weights: bool,
    /// Writes files in AdapterHub's layout, and adapts the layers that these fields of its name, in place of
    /// `target_modules` and `feedforward_modules`. Default: none, Hugging Face PEFT's layout.
    #[field(skip)]
    pub adapterhub: Option<AdapterHubIa3>,
    /// Layers to adapt. Default: upstream's for the kind of model
    /// ([`Layout::model_type`](peft_core::method::Layout::model_type)), `all-linear` where the kind is not known.
    pub targets: Targets,
    pub common: Common,
}

impl Ia3Config {
    /// The configuration with upstream's layers for this kind of model, where it names none. A file says which they are.
    fn with_defaults(&self, layout: &Layout, plan: &mut Plan) -> Self {
        let mut config = self.clone();
        let known = defaults::of(layout.model_type.as_deref());
        let Some((targets, feedforward)) = known.filter(|_| plan.is_new()) else {
            return config;
        };
        let unnamed = config.targets.target_modules.is_none();
        if unnamed {
            note(plan, "target_modules", &targets);
            config.targets.target_modules = Some(targets);
        }
        // Of layers that the user names, those that are upstream's.
        config.feedforward_modules.get_or_insert(feedforward);
        config
    }

    /// Writes into the file which of the `targets` are scaled inside, where `config` has upstream's for the kind of model.
    /// In a file these are names of `target_modules` only, and of layers that the user names some may be no such names.
    fn note_inside(
        &self,
        config: &Self,
        targets: &[TargetLayer<'_>],
        plan: &mut Plan,
    ) -> Result<()> {
        let inside = config.feedforward_modules.as_ref();
        let Some(inside) = inside.filter(|_| self.feedforward_modules.is_none()) else {
            return Ok(());
        };
        let (Some(Selection::Names(named)), Selection::Names(names)) =
            (&config.targets.target_modules, inside)
        else {
            note(plan, "feedforward_modules", inside);
            return Ok(());
        };
        if names.iter().all(|name| named.contains(name)) {
            note(plan, "feedforward_modules", inside);
            return Ok(());
        }
        let (mut own, mut all) = (Vec::new(), named.clone());
        for target in targets {
            if inside.matches(target.layer)? {
                own.push(target.layer.name.clone());
            }
        }
        all.extend(own.iter().filter(|name| !named.contains(name)).cloned());
        note(plan, "target_modules", &all.into());
        note(plan, "feedforward_modules", &own.into());
        Ok(())
    }

    /// How many channels of a convolution's input are scaled: those of all groups that the model says there are, or those
    /// of one group in a file that has so many.
    fn channels(target: &TargetLayer<'_>, plan: &Plan) -> usize {
        let of_group = target.weight.shape()[1];
        match plan.stored_shape(target.layer, "ia3_l") {
            Some([1, channels, ..]) if *channels == of_group => of_group,
            _ => of_group * target.layer.groups,
        }
    }

    fn on_layer(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<Ia3> {
        let inside = match &self.feedforward_modules {
            Some(modules) => modules.matches(target.layer)?,
            None => false,
        };
        let axes = target.kernel().len();
        let d_in = if axes == 0 {
            target.d_in
        } else {
            Self::channels(target, plan)
        };
        let (d_out, init) = (target.d_out, plan.init());
        let shape = if inside { [1, d_in] } else { [d_out, 1] };
        let l = if self.init_ia3_weights {
            init.ones(shape, target.like())
        } else {
            init.normal(shape, 1.0, target.like())
        };
        let bias = target.bias.filter(|_| !inside);
        let handles = Shared::new(l, 1 + usize::from(bias.is_some()));
        let mut states = handles.map(|ia3_l| Ia3 {
            ia3_l,
            axes,
            alpha: 1.0,
        });
        // The weight comes first in the layer.
        let on_weight = states.next().expect("a handle for each place");
        if let (Some(bias), Some(on_bias)) = (bias, states.next()) {
            plan.adapt_weight(bias, on_bias);
        }
        Ok(on_weight)
    }
}

/// Writes a selection into the configuration's file.
fn note(plan: &mut Plan, field: &str, selection: &Selection) {
    let selection = serde_json::to_value(selection).expect("plain data");
    plan.set_config_field(field, selection);
}

impl Method for Ia3Config {
    fn promises(&self) -> Promises {
        self.kept()
    }

    fn validate(&self) -> Result<()> {
        self.check_fields()?;
        self.check_layout()?;
        let (targets, inside) = (&self.targets.target_modules, &self.feedforward_modules);
        if let (Some(Selection::Names(targets)), Some(Selection::Names(inside))) = (targets, inside)
            && let Some(other) = inside.iter().find(|name| !targets.contains(name))
        {
            let (field, expected) = ("feedforward_modules", "names of target_modules only");
            return Err(Error::config(IA3.title, field, other, expected));
        }
        Ok(())
    }

    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        if let Some(fields) = &self.adapterhub {
            let projections = fields.projections();
            let targets = projections.select(layout, plan, (self.info(), "loras"))?;
            for target in &targets {
                fields.adapt(target, self.init_ia3_weights, plan);
            }
            return Ok(());
        }
        let config = self.with_defaults(layout, plan);
        let targets = layer_targets(&config, layout, plan, LINEAR_AND_CONV)?;
        self.note_inside(&config, &targets, plan)?;
        adapt_each(&config, &targets, layout, plan, |target, plan| {
            config.on_layer(target, plan)
        })
    }
}
