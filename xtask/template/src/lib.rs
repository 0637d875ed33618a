//! My method: every output feature of a linear layer is scaled, `W' = W · diag(1 + g)`, with g = 0 at first.
//!
//! Replace the mathematics by yours: the fields of [`MyMethod`], what `compose` and `linear` compute from them, and the
//! initial values in `on_linear`. `cargo test` then says what does not hold.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::method::{
    Adapter, BaseLinear, Common, LinearMethod, MethodInfo, Plan, TargetLayer, WeightAdapter, method_config,
};
use peft_core::{Result, Targets};

/// The methods of this crate.
pub const METHODS: &[&MethodInfo] = &[&MY_METHOD];

/// The method's configuration.
#[method_config(
    MY_METHOD, peft_type = "MY_METHOD", title = "My method", family = Reparameterization,
    identity_at_init, mergeable, new(), reference = "name the paper and the section here"
)]
pub struct MyMethodConfig {
    /// Layers to adapt. Default: all linear layers but the output head.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

/// What is trained for one layer.
#[derive(Module, Adapter, Debug)]
pub struct MyMethod {
    /// g, `[out]`.
    #[tensor("my_method_gain")]
    pub gain: Param<Tensor<1>>,
}

impl MyMethod {
    /// `x (1 + g)`, for `x` whose last axis is the layer's output.
    fn scaled<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x * (self.gain.val() + 1.0).unsqueeze::<D>()
    }
}

impl WeightAdapter for MyMethod {
    fn compose<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.scaled(weight)
    }

    // Scaling the outputs is cheaper than scaling the matrix. Without this function `compose` is used.
    fn linear(&self, input: Tensor<2>, base: &dyn BaseLinear) -> Tensor<2> {
        base.with_bias(self.scaled(base.product(input)))
    }
}

impl LinearMethod for MyMethodConfig {
    type State = MyMethod;

    fn on_linear(&self, target: &TargetLayer<'_>, plan: &mut Plan) -> Result<MyMethod> {
        let gain = plan.init().zeros([target.d_out], target.like());
        Ok(MyMethod { gain })
    }
}
