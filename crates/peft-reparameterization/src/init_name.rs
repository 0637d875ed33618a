//! Names of initial values, where a configuration's `init_weights` is true, false or a name.

use peft_core::method::MethodInfo;
use peft_core::{Error, Result};

/// Refuses a name that is none of `known`.
pub(crate) fn check(info: &MethodInfo, name: &str, known: &[&str]) -> Result<()> {
    if known.contains(&name) {
        return Ok(());
    }
    let mut expected = vec!["true".to_string(), "false".to_string()];
    expected.extend(known.iter().map(|known| format!("{known:?}")));
    let last = expected.pop().unwrap_or_default();
    let expected = format!("{} or {last}", expected.join(", "));
    Err(Error::config(info.title, "init_weights", name, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::C3A;

    #[test]
    fn a_refusal_lists_what_would_do() {
        check(&C3A, "gaussian", &["kaiming_uniform", "gaussian"]).unwrap();
        let text = |known: &[&str]| check(&C3A, "zeros", known).unwrap_err().to_string();
        let found = text(&["kaiming_uniform", "gaussian"]);
        let expected =
            r#"C3A: `init_weights` is "zeros"; true, false, "kaiming_uniform" or "gaussian""#;
        assert_eq!(found, expected);
        assert!(text(&["lycoris"]).ends_with(r#"true, false or "lycoris""#));
    }
}
