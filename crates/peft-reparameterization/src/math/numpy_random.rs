//! NumPy's random integers, as `numpy.random.default_rng(seed)` gives them (2.4): for methods whose files hold a seed in
//! place of what was drawn with it.
//!
//! Only whole numbers are drawn, so they are NumPy's on every processor.

use std::collections::HashSet;

use rand::Rng as _;
use rand_pcg::Pcg64;

/// Words of the pool in which a seed is mixed.
const POOL: usize = 4;

/// NumPy's `SeedSequence`: spreads a seed over the state of a generator (O'Neill 2015, *Developing a seed_seq
/// Alternative*).
struct SeedSequence([u32; POOL]);

/// Mixes a word with a number that is another one each time.
fn hashed(word: u32, constant: &mut u32, multiplier: u32) -> u32 {
    let word = word ^ *constant;
    *constant = constant.wrapping_mul(multiplier);
    let word = word.wrapping_mul(*constant);
    word ^ (word >> 16)
}

impl SeedSequence {
    fn new(seed: u64) -> Self {
        const MULTIPLIER: u32 = 0x931e_8875;
        let mut constant = 0x43b0_d7e5;
        let words = [seed as u32, (seed >> 32) as u32, 0, 0];
        let mut pool = words.map(|word| hashed(word, &mut constant, MULTIPLIER));
        for from in 0..POOL {
            for to in (0..POOL).filter(|to| *to != from) {
                let other = hashed(pool[from], &mut constant, MULTIPLIER);
                let mixed = pool[to]
                    .wrapping_mul(0xca01_f9dd)
                    .wrapping_sub(other.wrapping_mul(0x4973_f715));
                pool[to] = mixed ^ (mixed >> 16);
            }
        }
        Self(pool)
    }

    /// The first four numbers of 64 bits.
    fn state(&self) -> [u64; 4] {
        let mut constant = 0x8b51_f9dd;
        let mut words = self.0.iter().cycle();
        let mut word = || {
            let word = words.next().expect("the words go round");
            u64::from(hashed(*word, &mut constant, 0x58f3_8ded))
        };
        [(); 4].map(|()| word() | (word() << 32))
    }
}

/// `numpy.random.default_rng(seed)`: the generator PCG64 (O'Neill 2014).
pub(crate) struct NumpyGenerator {
    pcg: Pcg64,
    /// The upper half of a number of which the lower half was used.
    half: Option<u32>,
}

impl NumpyGenerator {
    pub(crate) fn new(seed: u64) -> Self {
        let [high, low, stream_high, stream_low] = SeedSequence::new(seed).state().map(u128::from);
        Self {
            pcg: Pcg64::new((high << 64) | low, (stream_high << 64) | stream_low),
            half: None,
        }
    }

    fn random_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let bits = self.pcg.next_u64();
        self.half = Some((bits >> 32) as u32);
        bits as u32
    }

    /// Uniform from 0 to `last`, by Lemire's method, with 32 bits where they are enough.
    fn up_to(&mut self, last: u64) -> u64 {
        match u32::try_from(last) {
            Ok(0) => 0,
            Ok(u32::MAX) => u64::from(self.random_u32()),
            Ok(last) => {
                let count = u64::from(last) + 1;
                // So many of the products are left out that each number comes from equally many of them.
                let uneven = (1_u64 << 32) % count;
                loop {
                    let product = u64::from(self.random_u32()) * count;
                    if product & u64::from(u32::MAX) >= uneven {
                        break product >> 32;
                    }
                }
            }
            Err(_) => {
                let count = u128::from(last) + 1;
                let uneven = (1_u128 << 64) % count;
                loop {
                    let product = u128::from(self.pcg.next_u64()) * count;
                    if product & u128::from(u64::MAX) >= uneven {
                        break (product >> 64) as u64;
                    }
                }
            }
        }
    }

    /// Uniform from 0 to `last`: as many bits as `last` has, drawn until they are no larger number.
    fn up_to_by_bits(&mut self, last: u64) -> u64 {
        if last == 0 {
            return 0;
        }
        let mask = u64::MAX >> last.leading_zeros();
        loop {
            let bits = match u32::try_from(last) {
                Ok(_) => u64::from(self.random_u32()),
                Err(_) => self.pcg.next_u64(),
            };
            if bits & mask <= last {
                break bits & mask;
            }
        }
    }

    /// `shuffle(entries)`: exchanges each entry, from the last one on, with a random one that is not behind it.
    pub(crate) fn shuffle(&mut self, entries: &mut [i64]) {
        for at in (1..entries.len()).rev() {
            let other = self.up_to_by_bits(at as u64) as usize;
            entries.swap(at, other);
        }
    }

    /// The same down to entry `first`, with the random numbers that [`choice`](Self::choice) takes for it.
    fn shuffle_chosen(&mut self, entries: &mut [i64], first: usize) {
        for at in (first..entries.len()).rev() {
            let other = self.up_to(at as u64) as usize;
            entries.swap(at, other);
        }
    }

    /// `choice(below, size=count, replace=False)`: `count` different numbers below `below`.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub(crate) fn choice(&mut self, below: usize, count: usize) -> Vec<i64> {
        assert!(count <= below, "{count} different numbers below {below}");
        let mut chosen;
        if below > 10_000 && count > below / 50 {
            chosen = (0..below as i64).collect::<Vec<i64>>();
            self.shuffle_chosen(&mut chosen, (below - count).max(1));
            chosen.drain(..below - count);
        } else {
            // Floyd's method: a number that is there already gives its place to the largest one.
            let mut seen = HashSet::with_capacity(count);
            chosen = Vec::with_capacity(count);
            for largest in (below - count) as u64..below as u64 {
                let drawn = self.up_to(largest);
                let number = if seen.insert(drawn) { drawn } else { largest };
                seen.insert(number);
                chosen.push(number as i64);
            }
            self.shuffle_chosen(&mut chosen, 1);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy.random.SeedSequence(42).generate_state(4, numpy.uint64)
    #[test]
    fn a_seed_spreads_as_numpys() {
        let expected = [
            0x9f1e_2e6d_cd54_0ab7,
            0xd578_73dc_79fb_94b6,
            0x7d28_2a1b_64d4_20b7,
            0x3365_7971_4692_d5ff,
        ];
        assert_eq!(SeedSequence::new(42).state(), expected);
    }

    /// numpy.random.default_rng(seed).bit_generator.random_raw(3)
    #[test]
    fn the_generator_is_numpys() {
        for (seed, expected) in [
            (
                0,
                [
                    0xa30f_ebcf_d9c2_825f,
                    0x4510_bdf8_82d9_d721,
                    0x0a7d_3da9_4ecd_e8b8,
                ],
            ),
            (
                (1 << 40) + 1,
                [
                    0x0469_6202_09a0_09a3,
                    0x3d62_03d6_aa1b_61ad,
                    0x822c_6868_b815_5212,
                ],
            ),
            (
                u64::MAX,
                [
                    0xae16_3a7a_8c47_568f,
                    0xd866_59f5_f338_2359,
                    0x01e5_2b19_5bc2_d24a,
                ],
            ),
        ] {
            let mut generator = NumpyGenerator::new(seed);
            assert_eq!([(); 3].map(|()| generator.pcg.next_u64()), expected);
        }
    }

    /// c = rng.choice(below, size=count, replace=False); x = numpy.arange(20); rng.shuffle(x)
    #[test]
    fn choices_and_orders_are_numpys() {
        let mut generator = NumpyGenerator::new(42);
        let expected = [5, 43, 4, 37, 25, 58, 61, 6, 12, 51];
        assert_eq!(generator.choice(64, 10), expected);
        let mut order: Vec<i64> = (0..20).collect();
        generator.shuffle(&mut order);
        let expected = [
            12, 18, 13, 5, 4, 0, 8, 7, 17, 2, 10, 3, 14, 1, 16, 6, 15, 11, 19, 9,
        ];
        assert_eq!(order, expected);
        // Of some out of many, NumPy has two ways.
        for (below, count, first, sum) in [
            (20_000, 1000, [3762, 1432, 9397], 5_181_638_437_i64),
            (20_000, 100, [13_617, 235, 19_359], 55_174_402),
            (300, 200, [64, 8, 9], 3_117_458),
        ] {
            let chosen = NumpyGenerator::new(7).choice(below, count);
            assert_eq!(chosen[..3], first);
            let weighed = chosen.iter().zip(1..).map(|(number, at)| number * at);
            assert_eq!(weighed.sum::<i64>(), sum);
        }
    }

    #[test]
    fn numbers_lie_within_their_bounds() {
        let mut generator = NumpyGenerator::new(3);
        for last in [0, 1, 6, u64::from(u32::MAX), 1 << 40, u64::MAX] {
            assert!((0..100).all(|_| generator.up_to(last) <= last));
            assert!((0..100).all(|_| generator.up_to_by_bits(last) <= last));
        }
        assert!(generator.choice(5, 0).is_empty());
    }
}
