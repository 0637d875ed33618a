//! What tests of networks beside the model have in common.

use burn::module::{Module as _, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_models::Llama;

/// The gradients of what is trained, one parameter after the other.
pub(crate) fn listed(model: &Llama, gradients: &GradientsParams) -> Vec<Vec<f32>> {
    struct List<'a>(&'a GradientsParams, Vec<Vec<f32>>);
    impl ModuleVisitor for List<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let gradient = self.0.get::<D>(param.id);
                let numbers = gradient.map(|gradient| gradient.into_data().iter::<f32>().collect());
                self.1.push(numbers.unwrap_or_default());
            }
        }
    }
    let mut list = List(gradients, Vec::new());
    model.visit(&mut list);
    list.1
}
