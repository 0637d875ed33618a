//! What a task is about, and all that follows from it.

use serde::{Deserialize, Serialize};

use crate::reference::{BASE, HEAD_ONLY};

/// What a task is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Texts with classes: a fresh head on an encoder. The default.
    #[default]
    Classification,
    /// Running text: a causal language model that goes on learning to predict the next token.
    LanguageModel,
}

/// The measure of quality.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Name: `accuracy`, or `loss` in nats a token.
    pub name: String,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl Metric {
    /// `score` so that more is better: negated where less is.
    pub fn oriented(&self, score: f64) -> f64 {
        if self.higher_is_better { score } else { -score }
    }
}

impl Kind {
    /// All kinds.
    pub fn all() -> Vec<Self> {
        vec![Self::Classification, Self::LanguageModel]
    }

    /// What is measured: `accuracy`, the share of right answers; or `loss`, the mean negative log likelihood of a
    /// token in nats. The only place that says which direction is better.
    pub fn metric(self) -> Metric {
        let (name, higher_is_better) = match self {
            Self::Classification => ("accuracy", true),
            Self::LanguageModel => ("loss", false),
        };
        Metric {
            name: name.into(),
            higher_is_better,
        }
    }

    /// The reference that trains least, which gains are measured from: [`HEAD_ONLY`] or [`BASE`].
    pub fn baseline_method(self) -> &'static str {
        match self {
            Self::Classification => HEAD_ONLY,
            Self::LanguageModel => BASE,
        }
    }

    /// Whose score the record's `baseline` is.
    pub fn baseline_score(self) -> &'static str {
        match self {
            Self::Classification => "majority class",
            Self::LanguageModel => "untrained model",
        }
    }

    /// What the splits count.
    pub fn rows(self) -> &'static str {
        match self {
            Self::Classification => "rows",
            Self::LanguageModel => "blocks",
        }
    }

    /// Modules that every method trains and saves whole: the fresh head.
    pub fn heads(self) -> &'static [&'static str] {
        match self {
            Self::Classification => &["classifier"],
            Self::LanguageModel => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_loss_is_better() {
        let loss = Kind::LanguageModel.metric();
        assert!(loss.oriented(2.0) > loss.oriented(3.0));
        let accuracy = Kind::Classification.metric();
        assert!(accuracy.oriented(0.9) > accuracy.oriented(0.8));
    }

    #[test]
    fn files_spell_kinds_so() {
        let read = |text: &str| serde_json::from_str::<Kind>(text).unwrap();
        assert_eq!(read("\"language-model\""), Kind::LanguageModel);
        assert_eq!(read("\"classification\""), Kind::default());
    }
}
