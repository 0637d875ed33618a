//! Column scale: every output of a linear layer is scaled.

use peft_core::method::prelude::*;

/// Column scale's configuration.
#[method_config(
    COLUMN_SCALE, peft_type = "COLUMN_SCALE", title = "Column scale", family = Reparameterization,
    identity_at_init, mergeable, new(), reference = "an example of the documentation"
)]
pub struct ColumnScaleConfig {
    /// s.
    #[field(default = 1.0, finite)]
    pub strength: f64,
    pub targets: Targets,
    pub common: Common,
}

/// `W' = W · diag(1 + s·g)`, g = 0 at first.
#[derive(Module, Adapter, Debug)]
pub struct ColumnScale {
    /// g, `[out]`.
    #[tensor("gain")]
    pub gain: Param<Tensor<1>>,
    /// s.
    pub strength: f64,
}

impl ColumnScale {
    fn scaled<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x * (self.gain.val() * self.strength + 1.0).unsqueeze::<D>()
    }
}

impl WeightAdapter for ColumnScale {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.scaled(weight)
    }

    // Cheaper than scaling the matrix, and no dense gradient of it.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.with_bias(self.scaled(base.product(input)))
    }
}

impl LinearMethod for ColumnScaleConfig {
    type State = ColumnScale;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<ColumnScale> {
        Ok(ColumnScale {
            gain: plan.init().zeros([target.d_out], target.like()),
            strength: self.strength,
        })
    }
}
