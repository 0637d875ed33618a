//! The field `bias`.

use serde::{Deserialize, Deserializer, Serialize};

/// Which biases are trained besides the method's own parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All of the model.
    All,
    /// Those of the adapted layers; upstream writes `lora_only`, `oft_only` and so on.
    #[serde(rename = "lora_only")]
    Adapted,
}

impl<'de> Deserialize<'de> for Bias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            _ if text.ends_with("_only") => Ok(Self::Adapted),
            _ => Err(serde::de::Error::custom(format!(
                "bias is \"{text}\"; \"none\", \"all\" or \"lora_only\" would do"
            ))),
        }
    }
}
