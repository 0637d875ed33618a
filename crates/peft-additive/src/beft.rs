//! BEFT: a vector is added to the outputs of value projections.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, BaseLinear, Common, LayerKind, Layout, Method, Plan, Selection, WeightAdapter,
    linear_targets, method_config,
};
use peft_core::{Error, Result, Targets};

/// How Hugging Face's models call the projection of values, and upstream's defaults.
const VALUES: [&str; 4] = ["value", "v_proj", "v", "value_proj"];

/// On a layer's bias: `b + β`.
#[derive(Module, Adapter, Debug)]
pub struct Beft {
    /// β, `[1, out]`.
    #[tensor("beft_bias")]
    pub beft_bias: Param<Tensor<2>>,
}

impl WeightAdapter for Beft {
    fn compose<const D: usize>(&self, bias: Tensor<D>) -> Tensor<D> {
        let shape = bias.shape();
        bias + self.beft_bias.val().reshape(shape)
    }
}

/// On the weight of a layer without a bias: `y = x W + β`, which no weight can do.
#[derive(Module, Adapter, Debug)]
pub struct BeftOutput {
    /// β, `[1, out]`.
    #[tensor("beft_bias")]
    pub beft_bias: Param<Tensor<2>>,
}

impl WeightAdapter for BeftOutput {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        weight
    }

    // What is below is called, and its matrix is not looked at.
    fn needs_weight(&self) -> bool {
        false
    }

    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.forward(input) + self.beft_bias.val()
    }

    fn is_mergeable(&self) -> bool {
        false
    }

    fn keeps_weight(&self) -> bool {
        false
    }
}

/// BEFT's configuration. Fields are called and behave as in Hugging Face PEFT's `BeftConfig`.
#[method_config(
    BEFT, peft_type = "BEFT", title = "BEFT", family = Additive, identity_at_init, mergeable, new(),
    reference = "Huang et al. 2026, BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes"
)]
pub struct BeftConfig {
    /// Whether a fresh adapter changes nothing; else β is standard normal, for tests. Default: true.
    #[field(default = true)]
    pub init_weights: bool,
    /// Layers to adapt. Default: projections of values, by the names that they have in Hugging Face's models.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl BeftConfig {
    /// The configuration with the names of the model's value projections, if it names no layers.
    fn with_values(&self, layout: &Layout, plan: &mut Plan) -> Result<Self> {
        if self.targets.target_modules.is_some() {
            return Ok(self.clone());
        }
        let is_linear = |name: &&str| {
            let selection = Selection::from([*name]);
            let mut layers = layout.layers.iter();
            layers.any(|layer| {
                layer.kind == LayerKind::Linear && selection.matches(layer).unwrap_or(false)
            })
        };
        let names: Vec<&str> = VALUES.into_iter().filter(is_linear).collect();
        if names.is_empty() {
            let expected =
                format!("names of layers: the model has no linear layer called {VALUES:?}");
            return Err(Error::config(
                BEFT.title,
                "target_modules",
                "null",
                expected,
            ));
        }
        // Upstream knows no defaults for some kinds of models.
        plan.set_config_field("target_modules", names.clone());
        Ok(self.clone().with_targets(names))
    }
}

impl Method for BeftConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let config = self.with_values(layout, plan)?;
        for target in linear_targets(&config, layout, plan)? {
            let shape = [1, target.d_out];
            let beft_bias =
                plan.init()
                    .zeros_or_normal(self.init_weights, shape, 1.0, target.like());
            match target.bias {
                Some(bias) => plan.adapt_weight(bias, Beft { beft_bias }),
                None => plan.adapt_weight(target.weight, BeftOutput { beft_bias }),
            }
        }
        Ok(())
    }
}
