//! The types of fields that are no plain numbers or switches.

use std::collections::BTreeMap;

use peft_core::method::MethodInfo;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::width::inner_width;

/// The most features that a bottleneck may have.
const MOST: usize = 1 << 20;

/// The hidden size over the bottleneck's: one number, or numbers by block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReductionFactor {
    /// The same in all blocks.
    Everywhere(f64),
    /// By a block's index, as in `{"0": 8, "default": 16}`. `default` is for the blocks that are not named.
    ByBlock(BTreeMap<String, f64>),
}

impl From<f64> for ReductionFactor {
    fn from(factor: f64) -> Self {
        Self::Everywhere(factor)
    }
}

impl<K: Into<String>, const N: usize> From<[(K, f64); N]> for ReductionFactor {
    fn from(factors: [(K, f64); N]) -> Self {
        let factors = factors.into_iter();
        Self::ByBlock(factors.map(|(key, factor)| (key.into(), factor)).collect())
    }
}

impl ReductionFactor {
    const FIELD: &str = "reduction_factor";
    const DEFAULT: &str = "default";

    pub(crate) fn check(&self, info: &MethodInfo) -> Result<()> {
        let factors: Vec<f64> = match self {
            Self::Everywhere(factor) => vec![*factor],
            Self::ByBlock(factors) => factors.values().copied().collect(),
        };
        let wrong = factors.into_iter().find(|f| !(f.is_finite() && *f > 0.0));
        wrong.map_or(Ok(()), |factor| {
            Err(Error::config(
                info.title,
                Self::FIELD,
                factor,
                "a finite number above 0",
            ))
        })
    }

    /// Refuses keys that name no block, in a configuration of a user's. AdapterHub's library never looks at such a key, so in
    /// a file it means nothing.
    pub(crate) fn check_keys(&self, info: &MethodInfo) -> Result<()> {
        let Self::ByBlock(factors) = self else {
            return Ok(());
        };
        let known = |key: &&String| *key == Self::DEFAULT || key.parse::<usize>().is_ok();
        factors
            .keys()
            .find(|key| !known(key))
            .map_or(Ok(()), |key| {
                let expected = "keys that are indices of blocks, or `default`";
                Err(Error::config(info.title, Self::FIELD, key, expected))
            })
    }

    /// How many features the bottleneck of a block has, at a site of `width` features.
    pub(crate) fn inner(
        &self,
        block: Option<usize>,
        width: usize,
        info: &MethodInfo,
    ) -> Result<usize> {
        let refuse = |expected: String| {
            let found = serde_json::to_string(self).unwrap_or_default();
            Err(Error::config(info.title, Self::FIELD, found, expected))
        };
        let factor = match self {
            Self::Everywhere(factor) => Some(*factor),
            Self::ByBlock(factors) => {
                let own = block.and_then(|block| factors.get(&block.to_string()));
                own.or_else(|| factors.get(Self::DEFAULT)).copied()
            }
        };
        let Some(factor) = factor else {
            let block = block.map_or("a site in no block".into(), |block| {
                format!("block {block}")
            });
            return refuse(format!("a value for {block}, or `default`"));
        };
        match inner_width(width, factor) {
            inner if inner > MOST => refuse(format!("at most {MOST} features in the bottleneck")),
            inner => Ok(inner),
        }
    }
}

/// The factor of the adapter's output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ScalingValue", into = "ScalingValue")]
#[non_exhaustive]
pub enum Scaling {
    /// This number.
    Fixed(f64),
    /// One trained number, 1 at first: `learned`.
    Learned,
    /// One trained number for each feature, 1 at first: `channel`.
    Channel,
}

impl From<f64> for Scaling {
    fn from(factor: f64) -> Self {
        Self::Fixed(factor)
    }
}

/// As it is in files.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum ScalingValue {
    Number(f64),
    Word(ScalingWord),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ScalingWord {
    Learned,
    Channel,
}

impl From<ScalingValue> for Scaling {
    fn from(value: ScalingValue) -> Self {
        match value {
            ScalingValue::Number(factor) => Self::Fixed(factor),
            ScalingValue::Word(ScalingWord::Learned) => Self::Learned,
            ScalingValue::Word(ScalingWord::Channel) => Self::Channel,
        }
    }
}

impl From<Scaling> for ScalingValue {
    fn from(scaling: Scaling) -> Self {
        match scaling {
            Scaling::Fixed(factor) => Self::Number(factor),
            Scaling::Learned => Self::Word(ScalingWord::Learned),
            Scaling::Channel => Self::Word(ScalingWord::Channel),
        }
    }
}

/// Where the adapter's own residual is taken from, if it sees the state after the model's residual and norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ResidualValue", into = "ResidualValue")]
pub enum ResidualBeforeLn {
    /// Before the model's residual and norm: `true`.
    Yes,
    /// Behind both, what the adapter sees: `false`.
    No,
    /// Behind the residual, before the norm: `post_add`.
    PostAdd,
}

impl From<bool> for ResidualBeforeLn {
    fn from(before: bool) -> Self {
        if before { Self::Yes } else { Self::No }
    }
}

/// As it is in files.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum ResidualValue {
    Switch(bool),
    Word(ResidualWord),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResidualWord {
    PostAdd,
}

impl From<ResidualValue> for ResidualBeforeLn {
    fn from(value: ResidualValue) -> Self {
        match value {
            ResidualValue::Switch(before) => before.into(),
            ResidualValue::Word(ResidualWord::PostAdd) => Self::PostAdd,
        }
    }
}

impl From<ResidualBeforeLn> for ResidualValue {
    fn from(residual: ResidualBeforeLn) -> Self {
        match residual {
            ResidualBeforeLn::Yes => Self::Switch(true),
            ResidualBeforeLn::No => Self::Switch(false),
            ResidualBeforeLn::PostAdd => Self::Word(ResidualWord::PostAdd),
        }
    }
}

/// Initial values of the projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BottleneckInit {
    /// Both from N(0, 0.02²), biases 0: `bert`.
    #[default]
    Bert,
    /// Down as torch's linear layers, Up and biases 0: `mam_adapter`. A fresh adapter changes nothing where its
    /// residual does not.
    MamAdapter,
    /// Both from N(0, 0.01²), cut off at 0.02, biases 0: `houlsby`.
    Houlsby,
}

/// A coupling between two halves of the features that can be inverted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InvertibleKind {
    /// A half is shifted by what is computed from the other (Dinh et al. 2015).
    Nice,
    /// It is scaled, too (Kingma and Dhariwal 2018).
    Glow,
}

/// Which weights are pruned at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Pruning {
    /// Those whose removal changes the loss least: |w · gradient| of the first step (Lee et al. 2019). Needs a loop that
    /// calls the model's training hooks.
    #[default]
    Snip,
    /// Those of least magnitude.
    Magnitude,
    /// Any.
    Random,
}

/// Which projection several experts have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpertSharing {
    /// Neither.
    #[default]
    None,
    /// Down.
    Down,
    /// Up.
    Up,
}

/// Initial values of a PHM layer's W.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HypercomplexInit {
    /// Uniform with the variance 2 / (in + out) of each matrix.
    #[default]
    GlorotUniform,
    /// Normal with that variance.
    GlorotNormal,
    /// Normal with the standard deviation `phm_init_range`.
    Normal,
    /// As `GlorotNormal`, which is what upstream does with it.
    Phm,
}

/// Initial values of a PHM layer's rule A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleInit {
    /// Normal, with the standard deviation `phm_init_range` where the rule is shared, else 0.01.
    #[default]
    Normal,
    /// Uniform in [-1, 1) where the rule is shared, else in [-0.01, 0.01).
    Uniform,
}
