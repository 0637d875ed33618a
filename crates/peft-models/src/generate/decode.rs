//! The generation loop over tokens.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{GenerateConfig, GenerateError, StoppedBy, processors};

/// What a generation goes by.
pub(super) struct Limits<'a> {
    pub(super) config: &'a GenerateConfig,
    pub(super) eos: &'a [u32],
    /// The most tokens of prompt and text together.
    pub(super) context: usize,
}

impl Limits<'_> {
    /// The tokens behind `prompt`, and what ended them.
    ///
    /// `logits` gets the tokens that the model has not seen, and gives the logits behind them;
    /// `found` says of a token whether it ends a stop string.
    pub(super) fn run(
        &self,
        prompt: &[u32],
        mut logits: impl FnMut(&[u32]) -> Result<Vec<f64>, GenerateError>,
        mut found: impl FnMut(u32) -> Result<bool, GenerateError>,
    ) -> Result<(Vec<u32>, StoppedBy), GenerateError> {
        let mut rng = StdRng::seed_from_u64(self.config.seed);
        let mut ids = prompt.to_vec();
        let mut seen = 0;
        let stopped_by = loop {
            if ids.len() - prompt.len() == self.config.max_new_tokens {
                break StoppedBy::MaxNewTokens;
            }
            if ids.len() >= self.context {
                break StoppedBy::Context;
            }
            let mut scores = logits(&ids[seen..])?;
            seen = ids.len();
            if let Some(&value) = scores.iter().find(|score| !score.is_finite()) {
                let tokens = ids.len();
                return Err(GenerateError::NotFinite { tokens, value });
            }
            let id = processors::choose(self.config, &mut scores, &ids, &mut rng);
            ids.push(id);
            if self.eos.contains(&id) {
                break StoppedBy::Eos;
            }
            if found(id)? {
                break StoppedBy::StopString;
            }
        };
        Ok((ids.split_off(prompt.len()), stopped_by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of five tokens, in which `id + 1` follows `id`.
    fn counting(ids: &[u32]) -> Vec<f64> {
        let next = (ids[ids.len() - 1] + 1) % 5;
        let score = |id| if id == next { 3.0 } else { 0.0 };
        (0..5).map(score).collect()
    }

    fn run(eos: &[u32], context: usize) -> (Vec<u32>, StoppedBy) {
        let config = GenerateConfig::default().with_max_new_tokens(7);
        let config = &config;
        let limits = Limits {
            config,
            eos,
            context,
        };
        limits
            .run(&[4, 0], |ids| Ok(counting(ids)), |_| Ok(false))
            .unwrap()
    }

    #[test]
    fn generation_ends_where_it_must() {
        let all = vec![1, 2, 3, 4, 0, 1, 2];
        assert_eq!(run(&[], 100), (all.clone(), StoppedBy::MaxNewTokens));
        assert_eq!(run(&[], 9), (all.clone(), StoppedBy::MaxNewTokens));
        assert_eq!(run(&[], 8), (all[..6].to_vec(), StoppedBy::Context));
        assert_eq!(run(&[], 2), (Vec::new(), StoppedBy::Context));
        assert_eq!(run(&[9, 3], 100), (all[..3].to_vec(), StoppedBy::Eos));
    }

    #[test]
    fn the_prompt_is_given_once_and_then_each_token() {
        let config = GenerateConfig::default().with_max_new_tokens(3);
        let limits = Limits {
            config: &config,
            eos: &[],
            context: 100,
        };
        let mut given = Vec::new();
        let logits = |ids: &[u32]| {
            given.push(ids.to_vec());
            Ok(counting(ids))
        };
        limits.run(&[3, 3, 0], logits, |_| Ok(false)).unwrap();
        assert_eq!(given, [vec![3, 3, 0], vec![1], vec![2]]);
    }

    #[test]
    fn a_stop_string_ends_it() {
        let config = GenerateConfig::default();
        let limits = Limits {
            config: &config,
            eos: &[],
            context: 100,
        };
        let (ids, stopped_by) = limits
            .run(&[0], |ids| Ok(counting(ids)), |id| Ok(id == 3))
            .unwrap();
        assert_eq!((ids, stopped_by), (vec![1, 2, 3], StoppedBy::StopString));
    }

    #[test]
    fn logits_that_are_none_are_an_error() {
        let config = GenerateConfig::default();
        let limits = Limits {
            config: &config,
            eos: &[],
            context: 100,
        };
        let logits = |_: &[u32]| Ok(vec![0.0, f64::NAN]);
        let error = limits.run(&[0, 1], logits, |_| Ok(false)).unwrap_err();
        assert!(error.to_string().contains("behind 2 tokens hold NaN"));
    }
}
