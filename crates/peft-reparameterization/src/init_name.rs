//! Initial values that a configuration's `init_weights` says by true, false or a name.

use peft_core::Result;
use peft_core::method::MethodInfo;
use serde::{Deserialize, Serialize};

/// Initial values, or a variant: what `true`, `false` and the names mean is the method's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum InitWeights {
    /// `true` or `false`.
    Default(bool),
    /// A name.
    Named(String),
}

impl Default for InitWeights {
    fn default() -> Self {
        Self::Default(true)
    }
}

impl From<&str> for InitWeights {
    fn from(name: &str) -> Self {
        Self::Named(name.into())
    }
}

impl InitWeights {
    /// Whether it is this name.
    pub(crate) fn is(&self, known: &str) -> bool {
        matches!(self, Self::Named(name) if name == known)
    }

    /// Refuses a name that is none of `known`.
    pub(crate) fn check(&self, info: &MethodInfo, known: &[&str]) -> Result<()> {
        match self {
            Self::Named(name) => check(info, name, known),
            Self::Default(_) => Ok(()),
        }
    }
}

/// Refuses a name that is none of `known`.
pub(crate) fn check(info: &MethodInfo, name: &str, known: &[&str]) -> Result<()> {
    if known.contains(&name) {
        return Ok(());
    }
    let mut expected = vec!["true".to_string(), "false".to_string()];
    expected.extend(known.iter().map(|known| format!("{known:?}")));
    let last = expected.pop().unwrap_or_default();
    let expected = format!("{} or {last}", expected.join(", "));
    Err(info.refusal("init_weights", name, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::C3A;

    #[test]
    fn a_refusal_lists_what_would_do() {
        InitWeights::from("gaussian")
            .check(&C3A, &["kaiming_uniform", "gaussian"])
            .unwrap();
        let zeros = InitWeights::from("zeros");
        let text = |known: &[&str]| zeros.check(&C3A, known).unwrap_err().to_string();
        let found = text(&["kaiming_uniform", "gaussian"]);
        let expected =
            r#"C3A: `init_weights` is "zeros"; true, false, "kaiming_uniform" or "gaussian""#;
        assert_eq!(found, expected);
        assert!(text(&["lycoris"]).ends_with(r#"true, false or "lycoris""#));
    }
}
