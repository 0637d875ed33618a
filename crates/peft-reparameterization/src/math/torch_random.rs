//! Torch's random numbers, as its generator on the CPU gives them: for methods whose files hold a seed
//! in place of what was drawn with it.
//!
//! Permutations and uniform numbers are torch's bit for bit (2.15, x86-64 with FMA, which it needs for
//! AVX2; a build without FMA differs in the last bit). Normal numbers are torch's but for their last bits: from 16
//! numbers on, torch draws them with vectorised approximations of its own, which differ between processors.

use std::collections::HashMap;
use std::f64::consts::TAU;

/// Words of the state.
const STATE: usize = 624;
/// How far on the word is that a word is mixed with.
const SHIFT: usize = 397;

/// From this length on, torch draws permutations with 64 bits and in another order.
const LONG: usize = u32::MAX as usize / 20;

/// `torch.Generator(device="cpu")`: the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998).
#[derive(Clone, Debug)]
pub(crate) struct TorchGenerator {
    state: [u32; STATE],
    next: usize,
}

impl TorchGenerator {
    /// After `manual_seed(seed)`. Only the lower 32 bits count; a negative seed is its two's complement.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = [0; STATE];
        state[0] = seed as u32;
        for at in 1..STATE {
            let before: u32 = state[at - 1];
            state[at] = (before ^ (before >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(at as u32);
        }
        Self { state, next: STATE }
    }

    fn twist(&mut self) {
        for at in 0..STATE {
            let upper = self.state[at] & 0x8000_0000;
            let mixed = upper | (self.state[(at + 1) % STATE] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + SHIFT) % STATE] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// 32 random bits.
    pub(crate) fn random_u32(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= (bits << 7) & 0x9d2c_5680;
        bits ^= (bits << 15) & 0xefc6_0000;
        bits ^ (bits >> 18)
    }

    fn random_u64(&mut self) -> u64 {
        let high = u64::from(self.random_u32());
        (high << 32) | u64::from(self.random_u32())
    }

    /// The first `first` entries of `torch.randperm(n)`, all of them if there are no more.
    ///
    /// Memory is as `first`. So is time below n = 214,748,364, where the generator is left as it is
    /// after so many entries, and not after all n; above, all n are drawn.
    pub(crate) fn randperm(&mut self, n: usize, first: usize) -> Vec<usize> {
        let first = first.min(n);
        let mut drawn = Vec::with_capacity(first);
        if n >= LONG {
            // Entry i goes to a random place up to i, and what was there to place i.
            for entry in 0..n {
                let place = (self.random_u64() % (entry as u64 + 1)) as usize;
                if entry < first {
                    drawn.push(entry);
                    drawn[entry] = drawn[place];
                }
                if place < first {
                    drawn[place] = entry;
                }
            }
            return drawn;
        }
        // Place i is exchanged with a random one from i on; only what was moved is remembered.
        let mut moved = HashMap::new();
        for place in 0..first {
            let left = n - place;
            let other = match left {
                1 => place,
                _ => place + self.random_u32() as usize % left,
            };
            let here = moved.get(&place).copied().unwrap_or(place);
            drawn.push(moved.insert(other, here).unwrap_or(other));
        }
        drawn
    }

    /// `torch.empty(count).uniform_(low, high)`, of `f32`.
    pub(crate) fn uniform(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let unit = (self.random_u32() & 0x00ff_ffff) as f32 / 16_777_216.0;
                unit.mul_add(high - low, low)
            })
            .collect()
    }

    /// Uniform in [0, 1), of 53 bits.
    fn unit(&mut self) -> f64 {
        let bits = self.random_u64() & ((1 << 53) - 1);
        bits as f64 / (1_u64 << 53) as f64
    }

    /// `torch.empty(count).normal_(0, std)`, of `f32`, by Box and Muller. After fewer than 16 numbers, and an odd number of
    /// them, torch would use the one that is left over next; it is dropped here.
    pub(crate) fn normal(&mut self, count: usize, std: f64) -> Vec<f32> {
        const BLOCK: usize = 16;
        if count < BLOCK {
            let mut numbers = Vec::with_capacity(count + 1);
            while numbers.len() < count {
                let (angle, other) = (TAU * self.unit(), self.unit());
                let radius = std * (-2.0 * (-other).ln_1p()).sqrt();
                numbers.extend([radius * angle.cos(), radius * angle.sin()].map(|x| x as f32));
            }
            numbers.truncate(count);
            return numbers;
        }
        // Blocks of 16 uniform numbers become normal ones; the last 16 are drawn again where they are no whole block.
        let mut numbers = self.uniform(count, 0.0, 1.0);
        let to_normal = |block: &mut [f32]| {
            let (first, second) = block.split_at_mut(BLOCK / 2);
            for (one, other) in first.iter_mut().zip(second) {
                let radius = std as f32 * (-2.0 * (1.0 - *one).ln()).sqrt();
                let angle = TAU as f32 * *other;
                (*one, *other) = (radius * angle.cos(), radius * angle.sin());
            }
        };
        numbers.chunks_exact_mut(BLOCK).for_each(to_normal);
        if !count.is_multiple_of(BLOCK) {
            let last = &mut numbers[count - BLOCK..];
            last.copy_from_slice(&self.uniform(BLOCK, 0.0, 1.0));
            to_normal(last);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn permutations_are_torchs() {
        // torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:6]
        for (n, seed, expected) in [
            (1024, 777, [103, 249, 319, 701, 999, 360]),
            (
                147_456,
                0,
                [51_884, 142_755, 100_661, 77_040, 34_203, 47_894],
            ),
            (
                147_456,
                (1 << 40) + 1,
                [95_269, 45_665, 37_752, 37_532, 48_911, 3186],
            ),
        ] {
            assert_eq!(TorchGenerator::new(seed).randperm(n, 6), expected);
        }
        let negative = TorchGenerator::new(-3_i64 as u64).randperm(5, 9);
        assert_eq!(negative, [1, 4, 0, 3, 2]);
        assert!(TorchGenerator::new(0).randperm(0, 3).is_empty());
    }

    #[test]
    fn a_whole_permutation_has_every_entry_and_leaves_torchs_state() {
        let mut generator = TorchGenerator::new(777);
        let mut entries = generator.randperm(1024, 1024);
        assert_eq!(entries[1023], 954);
        let sum: usize = entries
            .iter()
            .enumerate()
            .map(|(at, entry)| (at + 1) * entry)
            .sum();
        assert_eq!(sum, 269_288_364);
        entries.sort_unstable();
        assert!(entries.into_iter().eq(0..1024));
        assert_eq!(generator.uniform(1, 0.0, 1.0)[0].to_bits(), 0x3f38_e43c);
    }

    #[test]
    fn uniform_numbers_are_torchs() {
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let many = TorchGenerator::new(777).uniform(700, 0.1, 0.3);
        assert_eq!(
            bits(&[many[0], many[1], many[2], many[698], many[699]]),
            [
                0x3dee_5a3f,
                0x3e4a_fc26,
                0x3e38_fe96,
                0x3e94_de0f,
                0x3e74_5677
            ]
        );
        // 1 / √32.
        let bound = f32::from_bits(0x3e35_04f3);
        assert_eq!(
            bits(&TorchGenerator::new(0).uniform(4, -bound, bound)),
            [0xbaad_7922, 0x3dc2_369c, 0xbe14_fcb1, 0xbe05_381d]
        );
        assert_eq!(
            bits(&TorchGenerator::new(0).uniform(4, 0.0, 1.0)),
            [0x3efe_1558, 0x3f44_aa2f, 0x3db5_33a8, 0x3e07_3300]
        );
    }

    /// x = torch.normal(mean=0.0, std=std, size=(n,), generator=g): the first and the last two; torch.rand(1, generator=g)
    #[test]
    fn normal_numbers_are_torchs_but_for_rounding() {
        for (count, seed, std, [a, b, c, d], next) in [
            (
                8,
                51,
                0.5,
                [0.520_965_3, -0.388_861_36, 0.544_151_84, -0.352_538_44],
                0.038_381_457,
            ),
            (
                15,
                42,
                1.0,
                [0.336_690_37, 0.128_809_4, -1.689_799, -0.988_959_9],
                0.886_013_7,
            ),
            (
                16,
                42,
                0.7,
                [1.348_840_7, 1.041_098_8, -0.538_187_2, 0.533_711_8],
                0.885_442_9,
            ),
            (
                20,
                43,
                1.0,
                [-0.016_603_613, -0.466_794_94, -0.614_542_96, 1.028_201_5],
                0.625_651_3,
            ),
            (
                63,
                44,
                0.5,
                [0.793_097_85, 0.562_651_46, -0.143_725_2, 0.341_807_8],
                0.501_984_9,
            ),
        ] {
            let mut generator = TorchGenerator::new(seed);
            let found = generator.normal(count, std);
            assert_eq!(found.len(), count);
            let ends = [found[0], found[1], found[count - 2], found[count - 1]];
            for (found, expected) in ends.iter().zip([a, b, c, d]) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{count}: {found} {expected}"
                );
            }
            let after: f32 = generator.uniform(1, 0.0, 1.0)[0];
            assert!((after - next as f32).abs() < 1e-7, "{count}: {after}");
        }
    }
}
