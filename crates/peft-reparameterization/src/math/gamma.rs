//! The logarithm of the gamma function and its derivative, with gradients.

use burn::tensor::Tensor;

/// How far arguments are moved up before the series is taken: at 8 its first left out term is below 1e-9.
const SHIFT: u8 = 8;

/// ln Γ(x), for x above 0: Stirling's series at x + 8, and the recurrence back.
pub(crate) fn ln_gamma(x: Tensor<1>) -> Tensor<1> {
    let up = x.clone() + f64::from(SHIFT);
    let inverse = up.clone().recip();
    let square = inverse.clone().powi_scalar(2);
    let series = inverse * ((square.clone() / 1260.0 - 1.0 / 360.0) * square + 1.0 / 12.0);
    let half_log_of_tau = std::f64::consts::TAU.ln() / 2.0;
    let stirling = (up.clone() - 0.5) * up.clone().log() - up + half_log_of_tau + series;
    (0..SHIFT).fold(stirling, |sum, step| {
        sum - (x.clone() + f64::from(step)).log()
    })
}

/// ψ(x), the derivative of ln Γ(x), for x above 0.
pub(crate) fn digamma(x: Tensor<1>) -> Tensor<1> {
    let up = x.clone() + f64::from(SHIFT);
    let inverse = up.clone().recip();
    let square = inverse.clone().powi_scalar(2);
    let series = ((square.clone() / 252.0 - 1.0 / 120.0) * square.clone() + 1.0 / 12.0) * square;
    let at_up = up.log() - inverse / 2.0 - series;
    (0..SHIFT).fold(at_up, |sum, step| {
        sum - (x.clone() + f64::from(step)).recip()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn they_are_the_known_values() {
        for (_, device) in peft_core::device::cpu_devices() {
            let x = Tensor::<1>::from_data([0.1_f32, 0.5, 1.0, 2.0, 5.0, 20.0], &device);
            // Γ(1/2) = √π, Γ(5) = 24, Γ(20) = 19!.
            let expected = [
                2.252_712_7_f32,
                0.572_364_9,
                0.0,
                0.0,
                24_f32.ln(),
                39.339_886,
            ];
            let close = Tolerance::<f32>::relative(1e-5).set_absolute(2e-6);
            ln_gamma(x.clone()).into_data().assert_approx_eq(
                &Tensor::<1>::from_data(expected, &device).into_data(),
                close,
            );
            // ψ(1) = −γ, ψ(2) = 1 − γ.
            let expected = [
                -10.423_755_f32,
                -1.963_510_1,
                -0.577_215_7,
                0.422_784_3,
                1.506_117_7,
                2.970_524,
            ];
            digamma(x).into_data().assert_approx_eq(
                &Tensor::<1>::from_data(expected, &device).into_data(),
                close,
            );
        }
    }
}
