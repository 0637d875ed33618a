//! Which layers a method adapts: Hugging Face PEFT's selection, with its errors made loud.

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::layout::{Layer, LayerKind, Layout};
use crate::{Error, Result};

/// A list of names, or one regular expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Selection {
    /// A regular expression (Python's syntax) that must match the whole name, or the word
    /// `all-linear`.
    Pattern(String),
    /// Names that match a layer exactly or as a suffix after a dot.
    Names(Vec<String>),
}

impl From<&str> for Selection {
    fn from(pattern: &str) -> Self {
        Self::Pattern(pattern.to_string())
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Selection {
    fn from(names: [S; N]) -> Self {
        Self::Names(names.map(Into::into).into())
    }
}

impl From<Vec<String>> for Selection {
    fn from(names: Vec<String>) -> Self {
        Self::Names(names)
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "`{pattern}`"),
            Self::Names(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// The word that stands for every linear layer but the output head.
pub const ALL_LINEAR: &str = "all-linear";

/// One value, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// The target fields of a configuration, as Hugging Face PEFT has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Layers to adapt. Default: what the method says.
    #[serde(default)]
    pub target_modules: Option<Selection>,
    /// Layers to leave out, although selected. Default: none.
    #[serde(default)]
    pub exclude_modules: Option<Selection>,
    /// Indices of the blocks to adapt, with a list of `target_modules` only. Default: all.
    #[serde(default)]
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// What the list of blocks is called, as in `layer` or `layers`. Default: any name.
    #[serde(default)]
    pub layers_pattern: Option<OneOrMany<String>>,
}

impl Targets {
    /// A selection of layers.
    pub fn new(target_modules: impl Into<Selection>) -> Self {
        Self {
            target_modules: Some(target_modules.into()),
            ..Self::default()
        }
    }

    /// The layers selected, in the model's order. `default` stands in for absent
    /// `target_modules`; `strict` makes a listed name without a match an error.
    ///
    /// # Errors
    ///
    /// [`Error::NoTarget`], [`Error::PartialTarget`], [`Error::Pattern`], and [`Error::Config`]
    /// for `layers_to_transform` with a pattern.
    pub fn select<'a>(
        &self,
        layout: &'a Layout,
        method: &'static str,
        default: &Selection,
        strict: bool,
    ) -> Result<Vec<&'a Layer>> {
        let targets = self.target_modules.as_ref().unwrap_or(default);
        if self.layers_to_transform.is_some() && matches!(targets, Selection::Pattern(_)) {
            return Err(Error::config(
                method,
                "layers_to_transform",
                self.layers_to_transform.as_ref().map(OneOrMany::as_slice),
                "leave it out: it needs target_modules to be a list; select blocks in the pattern instead",
            ));
        }
        let wanted = Matcher::new(targets)?;
        let excluded = self
            .exclude_modules
            .as_ref()
            .map(Matcher::new)
            .transpose()?;
        let blocks = Blocks::new(self)?;

        let mut unmatched: Vec<&str> = match targets {
            Selection::Names(names) => names.iter().map(String::as_str).collect(),
            Selection::Pattern(_) => Vec::new(),
        };
        let mut selected = Vec::new();
        for layer in &layout.layers {
            if !wanted.matches(layer)? {
                continue;
            }
            unmatched.retain(|name| !is_suffix(&layer.name, name));
            if let Some(excluded) = &excluded
                && excluded.matches(layer)?
            {
                continue;
            }
            // Upstream lets a whole name through, whatever its block.
            let whole = matches!(targets, Selection::Names(names) if names.contains(&layer.name));
            if whole || blocks.contain(&layer.name)? {
                selected.push(layer);
            }
        }
        if selected.is_empty() {
            return Err(Error::NoTarget {
                targets: targets.to_string(),
                excluded: self
                    .exclude_modules
                    .as_ref()
                    .map(|excluded| format!(" outside of {excluded}"))
                    .unwrap_or_default(),
                available: layout.listing(),
            });
        }
        if strict && !unmatched.is_empty() {
            return Err(Error::PartialTarget {
                missing: unmatched
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", "),
                available: layout.listing(),
            });
        }
        Ok(selected)
    }
}

/// Whether `name` is `wanted` or ends in `.wanted`.
pub(crate) fn is_suffix(name: &str, wanted: &str) -> bool {
    name == wanted
        || name
            .strip_suffix(wanted)
            .is_some_and(|head| head.ends_with('.'))
}

/// A regular expression that must match a whole name.
pub(crate) fn full_match(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| pattern_error(pattern, &error))
}

fn pattern_error(pattern: &str, error: &fancy_regex::Error) -> Error {
    Error::Pattern {
        pattern: pattern.to_string(),
        reason: error.to_string(),
    }
}

enum Matcher<'a> {
    AllLinear,
    Names(&'a [String]),
    Pattern(&'a str, Box<Regex>),
}

impl<'a> Matcher<'a> {
    fn new(selection: &'a Selection) -> Result<Self> {
        Ok(match selection {
            Selection::Pattern(word) if word == ALL_LINEAR => Self::AllLinear,
            Selection::Pattern(pattern) => Self::Pattern(pattern, Box::new(full_match(pattern)?)),
            Selection::Names(names) => Self::Names(names),
        })
    }

    fn matches(&self, layer: &Layer) -> Result<bool> {
        Ok(match self {
            Self::AllLinear => layer.kind == LayerKind::Linear && !layer.head,
            Self::Names(names) => names.iter().any(|name| is_suffix(&layer.name, name)),
            Self::Pattern(pattern, regex) => regex
                .is_match(&layer.name)
                .map_err(|error| pattern_error(pattern, &error))?,
        })
    }
}

/// The blocks that `layers_to_transform` names.
struct Blocks<'a> {
    indices: Option<&'a [usize]>,
    patterns: Vec<Regex>,
}

impl<'a> Blocks<'a> {
    fn new(targets: &'a Targets) -> Result<Self> {
        let named = targets
            .layers_pattern
            .as_ref()
            .map(OneOrMany::as_slice)
            .unwrap_or_default();
        let patterns = if named.is_empty() {
            vec![r"^.*?\.[^.]*\.(\d+)\.".to_string()]
        } else {
            named
                .iter()
                .map(|name| format!(r"^.*?\.(?:{name})\.(\d+)\."))
                .collect()
        };
        let patterns = patterns
            .iter()
            .map(|pattern| Regex::new(pattern).map_err(|error| pattern_error(pattern, &error)))
            .collect::<Result<_>>()?;
        let indices = targets
            .layers_to_transform
            .as_ref()
            .map(OneOrMany::as_slice)
            .filter(|indices| !indices.is_empty());
        Ok(Self { indices, patterns })
    }

    fn contain(&self, name: &str) -> Result<bool> {
        let Some(indices) = self.indices else {
            return Ok(true);
        };
        // Upstream's patterns want a segment before the blocks' name; a model whose blocks are
        // its own field has none.
        let name = format!(".{name}");
        for pattern in &self.patterns {
            let found = pattern
                .captures(&name)
                .map_err(|error| pattern_error(pattern.as_str(), &error))?;
            if let Some(index) = found.and_then(|captures| captures[1].parse::<usize>().ok()) {
                return Ok(indices.contains(&index));
            }
        }
        Ok(false)
    }
}

/// The first entry of a `rank_pattern` or `alpha_pattern` whose key fits the layer's name, as
/// upstream matches it: the key is a regular expression for the name's end.
///
/// # Errors
///
/// [`Error::Pattern`] if a key does not compile.
pub fn pattern_value<T: Copy>(patterns: &[(String, T)], name: &str) -> Result<Option<T>> {
    for (key, value) in patterns {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .map_err(|error| pattern_error(key, &error))?;
        if regex
            .is_match(name)
            .map_err(|error| pattern_error(key, &error))?
        {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let layer = |name: &str, kind: LayerKind, head| Layer {
            name: name.to_string(),
            kind,
            params: Vec::new(),
            head,
        };
        Layout {
            params: Vec::new(),
            sites: Vec::new(),
            layers: vec![
                layer("embeddings.word_embeddings", LayerKind::Embedding, false),
                layer("encoder.layer.0.query", LayerKind::Linear, false),
                layer("encoder.layer.0.subquery", LayerKind::Linear, false),
                layer("encoder.layer.1.query", LayerKind::Linear, false),
                layer("encoder.layer.10.query", LayerKind::Linear, false),
                layer("classifier", LayerKind::Linear, true),
            ],
        }
    }

    fn names(targets: &Targets) -> Result<Vec<String>> {
        let layout = layout();
        let selected = targets.select(&layout, "test", &Selection::from(["query"]), true)?;
        Ok(selected
            .into_iter()
            .map(|layer| layer.name.clone())
            .collect())
    }

    #[test]
    fn a_name_matches_whole_segments_only() {
        let found = names(&Targets::new(["query"])).unwrap();
        assert_eq!(
            found,
            [
                "encoder.layer.0.query",
                "encoder.layer.1.query",
                "encoder.layer.10.query"
            ]
        );
    }

    #[test]
    fn a_pattern_matches_the_whole_name() {
        assert_eq!(
            names(&Targets::new(r".*layer\.1\..*")).unwrap(),
            ["encoder.layer.1.query"]
        );
        assert!(matches!(
            names(&Targets::new("query")),
            Err(Error::NoTarget { .. })
        ));
        // Python's lookahead, as Hugging Face users write it.
        assert_eq!(
            names(&Targets::new(r"(?!.*sub).*\.0\..*query")).unwrap(),
            ["encoder.layer.0.query"]
        );
    }

    #[test]
    fn all_linear_skips_the_head() {
        let found = names(&Targets::new(ALL_LINEAR)).unwrap();
        assert_eq!(found.len(), 4);
        assert!(!found.contains(&"classifier".to_string()));
    }

    #[test]
    fn layers_to_transform_selects_blocks_not_prefixes() {
        let mut targets = Targets::new(["query"]);
        targets.layers_to_transform = Some(OneOrMany::One(1));
        assert_eq!(names(&targets).unwrap(), ["encoder.layer.1.query"]);
        targets.layers_pattern = Some(OneOrMany::One("blocks".into()));
        assert!(matches!(names(&targets), Err(Error::NoTarget { .. })));
        let mut pattern = Targets::new(".*query");
        pattern.layers_to_transform = Some(OneOrMany::Many(vec![0]));
        assert!(matches!(names(&pattern), Err(Error::Config { .. })));
    }

    #[test]
    fn exclusion_and_missing_names() {
        let mut targets = Targets::new(ALL_LINEAR);
        targets.exclude_modules = Some(Selection::from(["query"]));
        assert_eq!(names(&targets).unwrap(), ["encoder.layer.0.subquery"]);
        let error = names(&Targets::new(["query", "valeu"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`valeu`") && error.contains("encoder.layer.0.query"),
            "{error}"
        );
        assert!(matches!(
            names(&Targets::new("(")),
            Err(Error::Pattern { .. })
        ));
    }

    #[test]
    fn patterns_match_the_end_of_a_name() {
        let patterns = vec![("query".to_string(), 3), (r"layer\.1\..*".to_string(), 4)];
        assert_eq!(
            pattern_value(&patterns, "encoder.layer.1.query").unwrap(),
            Some(3)
        );
        assert_eq!(
            pattern_value(&patterns, "encoder.layer.1.value").unwrap(),
            Some(4)
        );
        assert_eq!(
            pattern_value(&patterns, "encoder.layer.0.subquery").unwrap(),
            None
        );
    }
}
