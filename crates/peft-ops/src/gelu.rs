//! GELU with the gradient that belongs to it.

use std::sync::Mutex;

use burn::tensor::{Device, Tensor, activation};

/// Devices asked so far, and whether Burn's own gradient is exact there.
static ASKED: Mutex<Vec<(Device, bool)>> = Mutex::new(Vec::new());

/// GELU, x·Φ(x) with the error function, of any shape.
///
/// Burn's default backward pass differentiates the tanh approximation whatever the forward pass
/// computed; gradients are then off by up to 1e-3. Backends with a backward of their own (flex)
/// are exact. Which one a device has is found out by asking it, once; where Burn's is not exact,
/// the function is composed from `erf`, whose gradient is.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !x.is_autodiff() || is_exact(&x.device()) {
        return activation::gelu(x);
    }
    let cdf = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
    x * cdf
}

fn is_exact(device: &Device) -> bool {
    let mut asked = ASKED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, exact)) = asked.iter().find(|(other, _)| other == device) {
        return *exact;
    }
    // Where the approximation is far off: by 9e-4.
    let at = 2.2_f64;
    let x = Tensor::<1>::from_data([at as f32], device).require_grad();
    let gradients = activation::gelu(x.clone()).backward();
    let found = x
        .grad(&gradients)
        .map_or(0.0, |gradient| gradient.into_scalar::<f32>());
    let exact = (f64::from(found) - derivative(at)).abs() < 1e-5;
    asked.push((device.clone(), exact));
    exact
}

/// Φ(x) + x·φ(x), with Φ integrated numerically: this runs once per device.
fn derivative(x: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
    let steps = 1000;
    let width = x / f64::from(steps);
    // Simpson's rule from 0 to x.
    let inner: f64 = (1..steps)
        .map(|step| f64::from(2 + 2 * (step % 2)) * density(f64::from(step) * width))
        .sum();
    0.5 + (density(0.0) + inner + density(x)) * width / 3.0 + x * density(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_gradient_are_exact_on_every_device() {
        // Φ(1) + φ(1).
        assert!(
            (derivative(1.0) - 1.083_315_470_9).abs() < 1e-9,
            "{}",
            derivative(1.0)
        );
        let devices: Vec<(&str, Device)> = vec![
            #[cfg(feature = "flex")]
            ("flex", Device::flex()),
            #[cfg(feature = "ndarray")]
            ("ndarray", {
                #[expect(deprecated)]
                Device::ndarray()
            }),
        ];
        for (name, device) in devices {
            let device = device.autodiff();
            let points = [-3.0_f32, -1.3, -0.2, 0.4, 1.0, 2.2];
            let x = Tensor::<1>::from_data(points, &device).require_grad();
            let gradients = gelu(x.clone()).sum().backward();
            let found: Vec<f32> = x.grad(&gradients).unwrap().into_data().iter().collect();
            for (point, found) in points.iter().zip(found) {
                let expected = derivative(f64::from(*point));
                assert!(
                    (f64::from(found) - expected).abs() < 2e-6,
                    "{name} at {point}: {found} {expected}"
                );
            }
            let value = gelu(Tensor::<1>::from_data([1.0_f32], &device)).into_scalar::<f32>();
            assert!((value - 0.841_344_7).abs() < 1e-6, "{name}: {value}");
        }
    }
}
