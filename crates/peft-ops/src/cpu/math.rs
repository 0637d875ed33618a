//! Functions of numbers and rows, written so that the compiler makes vectors of them.
//!
//! Everything is `inline(always)`: [`vectors`] compiles a loop once for each instruction set and
//! takes the best that the CPU has.

/// Runs a loop compiled for the best instruction set that this CPU has. The argument says whether that
/// has fused multiplication and addition, for [`Fma::add`].
#[inline(always)]
pub(crate) fn vectors<R>(work: impl FnOnce(Fma) -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce(Fma) -> R> pulp::WithSimd for Work<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _simd: S) -> R {
            (self.0)(Fma(!S::IS_SCALAR))
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// Adds one row to every row.
pub(crate) fn add_row(data: &mut [f32], row: &[f32]) {
    vectors(
        #[inline(always)]
        |_| {
            for values in data.chunks_exact_mut(row.len()) {
                for (value, add) in values.iter_mut().zip(row) {
                    *value += add;
                }
            }
        },
    );
}

/// How to multiply and add: a constant in each of the compiled loops.
#[derive(Clone, Copy)]
pub(crate) struct Fma(bool);

impl Fma {
    /// `a·b + c`; in one instruction, rounded once, where there is one.
    #[inline(always)]
    pub(crate) fn add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.0 { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Numbers summed at a time: one AVX-512 register, or two of AVX2.
const LANES: usize = 16;

/// Sums `term(i)` for `i` in `0..len`, lane by lane.
#[inline(always)]
fn total(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    let mut first = 0;
    while first < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(first + lane);
        }
        first += LANES;
    }
    for i in whole..len {
        lanes[i - whole] += term(i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ xᵢ
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    total(x.len(), |i| x[i])
}

/// Σ xᵢ (yᵢ − c)
#[inline(always)]
pub(crate) fn dot_centred(x: &[f32], y: &[f32], c: f32) -> f32 {
    let y = &y[..x.len()];
    total(x.len(), |i| x[i] * (y[i] - c))
}

/// Σ (xᵢ − c)²
#[inline(always)]
pub(crate) fn square_distance(x: &[f32], c: f32) -> f32 {
    total(x.len(), |i| (x[i] - c) * (x[i] - c))
}

/// eˣ for x ≤ 0, to 2 units in the last place; 0 below −87. NaN stays NaN.
///
/// Reduction by powers of two and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp_nonpositive(fma: Fma, x: f32) -> f32 {
    /// Adding it leaves a whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let small = x < -87.0;
    let x = if small { -87.0 } else { x };
    let shifted = fma.add(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = fma.add(whole, -0.693_359_4, x);
    let r = fma.add(whole, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma.add(p, r, 1.398_2e-3);
    p = fma.add(p, r, 8.333_452e-3);
    p = fma.add(p, r, 4.166_579_6e-2);
    p = fma.add(p, r, 1.666_666_5e-1);
    p = fma.add(p, r, 0.5);
    let value = fma.add(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if small { 0.0 } else { value * power }
}

/// Φ(x), the normal distribution function, and φ(x), its density; Φ to 2e-7.
///
/// Φ(−u) = φ-like tail e^(−u²/2)·t·P(t) with t = 1/(1 + u/3.03…), P fitted to 5e-8 (Chebyshev
/// nodes, relative error) on 0 ≤ u ≤ 13: the form of Abramowitz and Stegun 26.2.17.
#[inline(always)]
pub(crate) fn normal(fma: Fma, x: f32) -> (f32, f32) {
    const P: [f32; 9] = [
        0.131_617_92,
        0.132_378_35,
        0.110_504_16,
        0.124_095_75,
        -0.062_043_835,
        0.232_842_72,
        -0.274_541_76,
        0.126_716_27,
        -0.021_569_554,
    ];
    let t = 1.0 / fma.add(0.33, x.abs(), 1.0);
    let mut poly = P[8];
    poly = fma.add(poly, t, P[7]);
    poly = fma.add(poly, t, P[6]);
    poly = fma.add(poly, t, P[5]);
    poly = fma.add(poly, t, P[4]);
    poly = fma.add(poly, t, P[3]);
    poly = fma.add(poly, t, P[2]);
    poly = fma.add(poly, t, P[1]);
    poly = fma.add(poly, t, P[0]);
    let bell = exp_nonpositive(fma, -0.5 * x * x);
    let tail = bell * t * poly;
    let below = if x > 0.0 { 1.0 - tail } else { tail };
    (below, bell * 0.398_942_3)
}

/// 32 bits that depend on every bit of `index` and `seed`: dropout's coin, the same in the forward
/// and the backward pass without a mask kept between.
///
/// Two rounds of multiply and shift (Wellons' `lowbias32`), the second keyed again.
#[inline(always)]
pub(crate) fn coin(seed: u64, index: usize) -> u32 {
    let mut x = (index as u32) ^ (seed as u32) ^ ((index as u64 >> 32) as u32).rotate_left(16);
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b) ^ (seed >> 32) as u32;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "whole numbers, or the same sums")]
mod tests {
    use super::*;

    /// erfc by its series or its continued fraction, in f64.
    fn normal_exact(x: f64) -> f64 {
        let z = x.abs() / 2.0_f64.sqrt();
        let erfc = if z < 3.0 {
            let (mut term, mut total) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                total += term / f64::from(2 * n + 1);
            }
            1.0 - 2.0 / std::f64::consts::PI.sqrt() * total
        } else {
            let mut fraction = 0.0;
            for n in (1..200).rev() {
                fraction = f64::from(n) / 2.0 / (z + fraction);
            }
            (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
        };
        if x > 0.0 {
            1.0 - erfc / 2.0
        } else {
            erfc / 2.0
        }
    }

    #[test]
    fn functions_are_exact_to_rounding() {
        for fma in [Fma(false), Fma(true)] {
            exact_to_rounding(fma);
        }
    }

    fn exact_to_rounding(fma: Fma) {
        for i in 0..50_000 {
            let x = -i as f32 * 1.8e-3;
            let (found, exact) = (f64::from(exp_nonpositive(fma, x)), f64::from(x).exp());
            assert!(
                (found - exact).abs() <= 2.5e-7 * exact || x < -87.0,
                "exp {x}: {found} {exact}"
            );
            for x in [x, -x] {
                let (below, density) = normal(fma, x);
                let x = f64::from(x);
                let error = (f64::from(below) - normal_exact(x)).abs();
                assert!(error < 2.5e-7, "Φ({x}) is off by {error}");
                let exact = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
                assert!((f64::from(density) - exact).abs() < 1e-7);
            }
        }
        assert_eq!(exp_nonpositive(fma, 0.0), 1.0);
        assert_eq!(exp_nonpositive(fma, f32::MIN), 0.0);
        assert!(exp_nonpositive(fma, f32::NAN).is_nan());
        assert!(normal(fma, f32::NAN).0.is_nan());
        assert_eq!(normal(fma, f32::INFINITY).0, 1.0);
        assert_eq!(normal(fma, f32::NEG_INFINITY).0, 0.0);
    }

    #[test]
    fn sums_are_those_of_every_length() {
        for len in 0..70 {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 20.0).collect();
            let expected: f32 = x.iter().sum();
            assert_eq!(sum(&x), expected);
            let squares: f32 = x.iter().map(|x| x * x).sum();
            assert_eq!(dot_centred(&x, &x, 0.0), squares);
            assert_eq!(square_distance(&x, 0.0), squares);
        }
    }

    #[test]
    fn coins_are_fair_and_independent() {
        let n = 1 << 16;
        for seed in [0, 1, 7, 1 << 40] {
            let heads = |seed, step: usize| {
                (0..n)
                    .filter(|i| coin(seed, i * step) < u32::MAX / 10)
                    .count()
            };
            for step in [1, 384, 4096] {
                let share = heads(seed, step) as f64 / n as f64;
                assert!((share - 0.1).abs() < 0.005, "{seed} {step}: {share}");
            }
            let same = (0..n)
                .filter(|i| (coin(seed, *i) < u32::MAX / 2) == (coin(seed + 1, *i) < u32::MAX / 2));
            let share = same.count() as f64 / n as f64;
            assert!((share - 0.5).abs() < 0.01, "{seed}: {share}");
            let next = (0..n)
                .filter(|i| (coin(seed, *i) < u32::MAX / 2) == (coin(seed, *i + 1) < u32::MAX / 2));
            let share = next.count() as f64 / n as f64;
            assert!((share - 0.5).abs() < 0.01, "{seed}: {share}");
        }
    }
}
