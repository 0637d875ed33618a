//! Gradients under upstream's keys.

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor};

/// Puts the gradient of every adapter parameter in its place, so that the adapter's tensors are gradients under
/// upstream's keys.
pub(super) struct GradientsAsValues<'a> {
    pub(super) gradients: &'a Gradients,
    pub(super) inside: usize,
}

impl ModuleMapper for GradientsAsValues<'_> {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside += usize::from(container == "Adapter");
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(container == "Adapter");
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.inside == 0 {
            return param;
        }
        let gradient = param.base().grad(self.gradients);
        param.map(|value| match gradient {
            Some(gradient) => Tensor::from_inner(gradient),
            None => value.detach() * 0.0,
        })
    }
}
