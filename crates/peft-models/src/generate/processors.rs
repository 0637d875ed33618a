//! From logits to the next token, as transformers' logits processors do it.
//!
//! All works on the host, on one row of logits: `[vocab]` numbers, of which those that may not be
//! drawn become negative infinity. The names are those of `transformers.generation`.

use std::collections::HashSet;

use rand::RngExt;
use rand::rngs::StdRng;

use super::GenerateConfig;

/// The next token: the most probable one, or one that is drawn.
pub(super) fn choose(
    config: &GenerateConfig,
    scores: &mut [f64],
    ids: &[u32],
    rng: &mut StdRng,
) -> u32 {
    process(config, scores, ids);
    let index = if config.do_sample {
        sample(&softmax(scores), rng.random())
    } else {
        most_probable(scores)
    };
    index as u32
}

/// Everything that the configuration does to logits, in upstream's order.
fn process(config: &GenerateConfig, scores: &mut [f64], ids: &[u32]) {
    repetition_penalty(scores, ids, config.repetition_penalty);
    if config.do_sample {
        temperature(scores, config.temperature);
        top_k(scores, config.top_k);
        top_p(scores, config.top_p);
        min_p(scores, config.min_p.unwrap_or(0.0));
    }
}

/// Makes the tokens `ids` less probable: positive scores are divided, negative ones multiplied. A
/// token that is there several times is changed once.
fn repetition_penalty(scores: &mut [f64], ids: &[u32], penalty: f64) {
    for &id in &ids.iter().copied().collect::<HashSet<u32>>() {
        if let Some(score) = scores.get_mut(id as usize) {
            if *score < 0.0 {
                *score *= penalty;
            } else {
                *score /= penalty;
            }
        }
    }
}

/// Divides by the temperature. The largest score is taken off first, which changes no probability
/// and keeps scores finite at temperatures near 0.
fn temperature(scores: &mut [f64], temperature: f64) {
    let largest = largest(scores);
    for score in scores {
        *score = (*score - largest) / temperature;
    }
}

/// Keeps the `k` largest scores, and those equal to the smallest of them. 0 keeps all.
fn top_k(scores: &mut [f64], k: usize) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let mut ordered = scores.to_vec();
    let smallest = *ordered
        .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
        .1;
    remove(scores, |score| score < smallest);
}

/// Removes the least probable tokens whose probabilities add up to at most `1 - p`, but never the
/// most probable one. Of equally probable tokens those of lower ids go first.
fn top_p(scores: &mut [f64], p: f64) {
    if p >= 1.0 {
        return;
    }
    let probabilities = softmax(scores);
    let mut ascending: Vec<usize> = (0..scores.len())
        .filter(|&index| scores[index] > f64::NEG_INFINITY)
        .collect();
    ascending.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    ascending.pop();
    let mut sum = 0.0;
    for index in ascending {
        sum += probabilities[index];
        if sum > 1.0 - p {
            break;
        }
        scores[index] = f64::NEG_INFINITY;
    }
}

/// Keeps tokens at least `ratio` times as probable as the most probable one.
fn min_p(scores: &mut [f64], ratio: f64) {
    let largest = largest(scores);
    remove(scores, |score| (score - largest).exp() < ratio);
}

fn remove(scores: &mut [f64], which: impl Fn(f64) -> bool) {
    for score in scores.iter_mut().filter(|score| which(**score)) {
        *score = f64::NEG_INFINITY;
    }
}

fn largest(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Probabilities; they add up to 1.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = largest(scores);
    let mut values: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = values.iter().sum();
    for value in &mut values {
        *value /= sum;
    }
    values
}

/// Index of the largest score, the first of equal ones.
fn most_probable(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// The index whose share of [0, 1) holds `draw`; never one of probability 0.
fn sample(probabilities: &[f64], draw: f64) -> usize {
    let mut rest = draw;
    let mut last = 0;
    for (index, &probability) in probabilities.iter().enumerate() {
        if probability > 0.0 {
            if rest < probability {
                return index;
            }
            rest -= probability;
            last = index;
        }
    }
    // Rounding: the probabilities add up to a little less than 1.
    last
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::SeedableRng;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        logits: Vec<f64>,
        ids: Vec<u32>,
        config: GenerateConfig,
        kept: Vec<usize>,
        probabilities: Vec<f64>,
    }

    #[test]
    fn kept_tokens_and_probabilities_are_upstreams() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generate");
        let text = std::fs::read(path.join("processors.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
        assert!(cases.len() >= 12);
        for case in cases {
            let mut scores = case.logits.clone();
            process(&case.config, &mut scores, &case.ids);
            let kept: Vec<usize> = (0..scores.len())
                .filter(|&index| scores[index] > f64::NEG_INFINITY)
                .collect();
            assert_eq!(kept, case.kept, "{}", case.name);
            let found = softmax(&scores);
            let scale = case.probabilities.iter().copied().fold(0.0, f64::max);
            for (found, expected) in found.iter().zip(&case.probabilities) {
                let error = (found - expected).abs() / scale;
                assert!(error < 1e-6, "{}: {found} for {expected}", case.name);
            }
        }
    }

    #[test]
    fn a_draw_falls_into_its_tokens_share() {
        let probabilities = [0.0, 0.25, 0.0, 0.75, 0.0];
        for (draw, index) in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.9999, 3), (1.0, 3)] {
            assert_eq!(sample(&probabilities, draw), index, "{draw}");
        }
    }

    #[test]
    fn draws_come_as_often_as_they_are_probable() {
        let logits = [1.0, 3.0, 2.0, -1.0];
        let config = GenerateConfig::default()
            .with_temperature(0.8)
            .with_top_k(3);
        let mut rng = StdRng::seed_from_u64(3);
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[choose(&config, &mut logits.to_vec(), &[], &mut rng) as usize] += 1.0 / 20_000.0;
        }
        let mut scores = logits.to_vec();
        process(&config, &mut scores, &[]);
        for (count, probability) in counts.iter().zip(softmax(&scores)) {
            // Five standard deviations of the largest count.
            assert!((count - probability).abs() < 0.018, "{counts:?}");
        }
    }

    #[test]
    fn a_temperature_near_zero_is_greedy() {
        let config = GenerateConfig::default().with_temperature(1e-300);
        let mut rng = StdRng::seed_from_u64(0);
        for _ in 0..50 {
            let mut scores = vec![10.0, 30.0, -1e30, 29.9];
            assert_eq!(choose(&config, &mut scores, &[], &mut rng), 1);
        }
    }

    #[test]
    fn the_first_of_equal_logits_is_taken() {
        let mut rng = StdRng::seed_from_u64(0);
        let config = GenerateConfig::default();
        let mut scores = vec![-2.0, 1.0, 1.0];
        assert_eq!(choose(&config, &mut scores, &[], &mut rng), 1);
    }
}
