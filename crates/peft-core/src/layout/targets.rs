//! Which layers a method adapts: Hugging Face PEFT's selection, with its errors made loud.

mod blocks;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout};

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

impl From<String> for Selection {
    fn from(pattern: String) -> Self {
        Self::Pattern(pattern)
    }
}

impl<S: Into<String>> From<Vec<S>> for Selection {
    fn from(names: Vec<S>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }
}

impl<S: AsRef<str>> From<&[S]> for Selection {
    fn from(names: &[S]) -> Self {
        let names = names.iter().map(|name| name.as_ref().to_string());
        Self::Names(names.collect())
    }
}

impl<S: AsRef<str>, const N: usize> From<&[S; N]> for Selection {
    fn from(names: &[S; N]) -> Self {
        Self::from(&names[..])
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "`{pattern}`"),
            Self::Names(names) if names.is_empty() => f.write_str("an empty list"),
            Self::Names(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

impl Selection {
    /// Whether it is the word `all-linear`, in whatever case, as upstream compares it.
    pub fn is_all_linear(&self) -> bool {
        matches!(self, Self::Pattern(word) if word.eq_ignore_ascii_case(ALL_LINEAR))
    }

    /// Whether it selects a layer.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for what is no regular expression, or cannot be held against the name within bounds.
    pub fn matches(&self, layer: &Layer) -> Result<bool> {
        Matcher::targets(self)?.matches(layer)
    }

    /// Whether an empty text is given, alone or in a list.
    fn has_empty_text(&self) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.is_empty(),
            Self::Names(names) => names.iter().any(String::is_empty),
        }
    }
}

/// The word that stands for every linear layer but the output head.
pub(crate) const ALL_LINEAR: &str = "all-linear";

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
    /// Layers to leave out, although selected: names or a pattern, not `all-linear`. Default: none.
    #[serde(default)]
    pub exclude_modules: Option<Selection>,
    /// Indices of the blocks to adapt, with a list of `target_modules` only. Default: all.
    #[serde(default)]
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// What the list of blocks is called, as in `layer` or `layers`, with `layers_to_transform` only. Default:
    /// any name; an empty text or list says the same.
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

    /// Refuses what upstream refuses, and, where `strict`, what can only be meant otherwise.
    fn check(&self, method: &'static str, targets: &Selection, strict: bool) -> Result<()> {
        let regex = matches!(targets, Selection::Pattern(_));
        let blocks = self.layers_to_transform.as_ref();
        let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
            Err(Error::config(method, field, value, expected))
        };
        if let Some(blocks) = blocks.filter(|_| regex) {
            let expected = "leave it out: it needs target_modules to be a list; select blocks in the pattern instead";
            return refuse("layers_to_transform", &blocks.as_slice(), expected);
        }
        let pattern = self.layers_pattern.as_ref().map(OneOrMany::as_slice);
        if let Some(pattern) = pattern.filter(|pattern| !is_any(pattern)) {
            if regex {
                let expected = "leave it out: it needs target_modules to be a list; select blocks in the pattern instead";
                return refuse("layers_pattern", &pattern, expected);
            }
            if blocks.is_none_or(|blocks| blocks.as_slice().is_empty()) {
                let expected = "leave it out, or say which of these blocks in layers_to_transform";
                return refuse("layers_pattern", &pattern, expected);
            }
            if strict && pattern.iter().any(String::is_empty) {
                return refuse("layers_pattern", &pattern, NO_EMPTY_TEXT);
            }
        }
        if !strict {
            return Ok(());
        }
        if targets.has_empty_text() {
            return refuse("target_modules", &format_args!("{targets}"), NO_EMPTY_TEXT);
        }
        match &self.exclude_modules {
            Some(excluded) if excluded.is_all_linear() => {
                let expected = "names or a pattern: the word stands for layers in target_modules only, and excludes none here";
                refuse("exclude_modules", &format_args!("{excluded}"), expected)
            }
            Some(Selection::Names(names)) if names.iter().any(String::is_empty) => {
                refuse("exclude_modules", names, NO_EMPTY_TEXT)
            }
            _ => Ok(()),
        }
    }

    /// The layers selected, in the model's order. `default` stands in for absent
    /// `target_modules`; `strict`, for configurations of a user's, makes a listed name without a match an
    /// error, and so what upstream takes to select nothing: empty texts, `all-linear` as exclusion.
    ///
    /// # Errors
    ///
    /// [`Error::NoTarget`], [`Error::PartialTarget`], [`Error::Pattern`], and [`Error::Config`]
    /// for `layers_to_transform` or `layers_pattern` with a pattern, and for `layers_pattern` without
    /// `layers_to_transform`.
    pub fn select<'a>(
        &self,
        layout: &'a Layout,
        method: &'static str,
        default: &Selection,
        strict: bool,
    ) -> Result<Vec<&'a Layer>> {
        let targets = self.target_modules.as_ref().unwrap_or(default);
        self.check(method, targets, strict)?;
        let wanted = Matcher::targets(targets)?;
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

/// What is right where an empty text is given.
pub(crate) const NO_EMPTY_TEXT: &str = "names of modules: an empty text names none";

/// Whether names of block lists say "any", as upstream reads them: an empty text or list.
fn is_any(pattern: &[String]) -> bool {
    pattern.iter().all(String::is_empty) && pattern.len() < 2
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

pub(crate) fn pattern_error(pattern: &str, error: &fancy_regex::Error) -> Error {
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
    /// As `target_modules`, where a word stands for many layers.
    fn targets(selection: &'a Selection) -> Result<Self> {
        if selection.is_all_linear() {
            Ok(Self::AllLinear)
        } else {
            Self::new(selection)
        }
    }

    fn new(selection: &'a Selection) -> Result<Self> {
        Ok(match selection {
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
        let patterns = if is_any(named) {
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

#[cfg(test)]
mod tests;
