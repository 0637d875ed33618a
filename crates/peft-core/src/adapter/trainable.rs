//! Whether a parameter is set to be trained.

use std::fmt;
use std::sync::Arc;

use burn::module::{Module as _, Param};
use burn::tensor::Tensor;

/// Whether a parameter is set to be trained, for those who ask.
#[derive(Clone)]
pub(crate) struct Trainable(Arc<dyn Fn() -> bool + Send + Sync>);

impl Trainable {
    pub(crate) fn of<const D: usize>(param: &Param<Tensor<D>>) -> Self {
        let param = param.clone();
        Self(Arc::new(move || is_trainable(&param)))
    }

    /// Of what is no parameter itself.
    pub(crate) fn never() -> Self {
        Self(Arc::new(|| false))
    }

    pub(crate) fn get(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Trainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trainable")
    }
}

/// Whether the parameter is set to be trained, also where its device has no autodiff right now.
///
/// There Burn says it only of what is put to training. A placeholder of one element is: what that leaves in
/// the autodiff graph goes with a backward pass, and would stay for ever without one.
pub(crate) fn is_trainable<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    if param.is_autodiff() {
        return param.is_require_grad();
    }
    let (id, value, mapper) = param.clone().consume();
    let placeholder = Tensor::<D>::zeros([1; D], &value.device());
    let placeholder = Param::from_mapped_value(id, placeholder, mapper)
        .train()
        .val();
    let trained = placeholder.is_require_grad();
    if trained {
        let _ = placeholder.sum().backward();
    }
    trained
}
