//! Gradients of all parameters of a model: adding up and clipping.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};

/// Gathers the squared norms of all gradients.
struct Norm<'a> {
    gradients: &'a GradientsParams,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            // In 32 bits: in 16, squares of small numbers are 0, and those of large ones infinite.
            let gradient = gradient.cast(DType::F32);
            // Row by row: Burn adds up a large tensor in an order that depends on threads, and a row in one.
            self.squares.push(gradient.square().sum_dim(D - 1).sum());
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient * self.factor);
        }
    }
}

/// Scales all gradients so that their common norm is at most `most` (none: no change), as torch's
/// `clip_grad_norm_` does; Burn clips every tensor by itself.
///
/// Also gives the norm before clipping; it is 0 where there are no gradients, and NaN or infinite if one
/// of them is, which are given back unchanged then.
pub fn clip_by_norm<M: Module>(
    mut gradients: GradientsParams,
    model: &M,
    most: Option<f64>,
) -> (GradientsParams, f64) {
    let mut norm = Norm {
        gradients: &gradients,
        squares: Vec::new(),
    };
    model.visit(&mut norm);
    let squares = norm.squares;
    if squares.is_empty() {
        return (gradients, 0.0);
    }
    let squares = Tensor::cat(squares, 0).sum().into_scalar::<f32>();
    let norm = f64::from(squares).sqrt();
    let factor = most.map_or(1.0, |most| most / (norm + 1e-6));
    if norm.is_finite() && factor < 1.0 {
        model.visit(&mut Scale {
            gradients: &mut gradients,
            factor,
        });
    }
    (gradients, norm)
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    /// Gradients 3 of each of 4 weights and 4 of each of 2 biases: a norm of sqrt(36 + 32).
    fn gradients(device: &Device) -> (Linear, GradientsParams) {
        let model = LinearConfig::new(2, 2).init(device);
        let mut gradients = GradientsParams::new();
        let plain = device.clone().without_autodiff();
        let weights = Tensor::<2>::full([2, 2], 3.0, &plain);
        gradients.register(model.weight.id, weights);
        let bias = model.bias.as_ref().expect("it has one");
        gradients.register(bias.id, Tensor::<1>::full([2], 4.0, &plain));
        (model, gradients)
    }

    #[test]
    fn all_gradients_share_one_norm() {
        for (name, device) in peft_core::device::cpu_devices() {
            let device = device.autodiff();
            let (model, given) = gradients(&device);
            let (given, norm) = clip_by_norm(given, &model, None);
            assert!((norm - 68.0_f64.sqrt()).abs() < 1e-5, "{name}: {norm}");
            let (given, _) = clip_by_norm(given, &model, Some(100.0));
            let (clipped, same) = clip_by_norm(given, &model, Some(2.0));
            assert!((same - norm).abs() < 1e-6, "{name}: 100 clipped");
            let weight = clipped.get::<2>(model.weight.id).unwrap();
            let expected = 3.0 * 2.0 / norm;
            for value in weight.into_data().iter::<f64>() {
                assert!((value - expected).abs() < 1e-5, "{name}: {value}");
            }
            let (_, norm) = clip_by_norm(clipped, &model, None);
            assert!((norm - 2.0).abs() < 1e-4, "{name}: {norm}");
        }
    }

    #[test]
    fn gradients_of_several_number_formats_have_one_norm() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        for dtype in [DType::F16, DType::BF16] {
            let (model, mut given) = gradients(&device.clone().autodiff());
            // The square of 300 is beyond f16's numbers.
            let large = Tensor::<2>::full([2, 2], 300.0, device).cast(dtype);
            given.register(model.weight.id, large);
            let (clipped, norm) = clip_by_norm(given, &model, Some(1.0));
            let expected = (4.0 * 300.0_f64.powi(2) + 32.0).sqrt();
            assert!((norm - expected).abs() < 1e-2, "{dtype:?}: {norm}");
            let weight = clipped.get::<2>(model.weight.id).unwrap();
            assert_eq!(weight.dtype(), dtype);
        }
    }

    #[test]
    fn a_gradient_that_is_no_number_shows() {
        let (_, device) = &peft_core::device::cpu_devices()[0];
        let (model, mut given) = gradients(&device.clone().autodiff());
        let nan = Tensor::<2>::full([2, 2], f32::NAN, device);
        given.register(model.weight.id, nan);
        let (_, norm) = clip_by_norm(given, &model, Some(1.0));
        assert!(norm.is_nan());
        let (_, norm) = clip_by_norm(GradientsParams::new(), &model, Some(1.0));
        assert!(norm.abs() < 1e-12);
    }
}
