//! Values for layers by patterns of their names: upstream's `rank_pattern` and its like.

use fancy_regex::Regex;

use crate::error::{Error, Result};
use crate::layout::targets::pattern_error;

/// Values by regular expressions for the end of a layer's name, compiled once for all layers.
#[derive(Clone, Debug)]
pub struct Patterns<T> {
    method: &'static str,
    field: &'static str,
    entries: Vec<Entry<T>>,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    key: String,
    regex: Regex,
    value: T,
}

impl<T> Entry<T> {
    fn fits(&self, layer: &str) -> Result<bool> {
        self.regex
            .is_match(layer)
            .map_err(|error| pattern_error(&self.key, &error))
    }
}

impl<T: Copy> Patterns<T> {
    /// Those of a configuration's `field`, in the configuration's order.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] if a key does not compile.
    pub fn new(
        method: &'static str,
        field: &'static str,
        values: impl IntoIterator<Item = (String, T)>,
    ) -> Result<Self> {
        let entries = values.into_iter().map(|(key, value)| {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .map_err(|error| pattern_error(&key, &error))?;
            Ok(Entry { key, regex, value })
        });
        Ok(Self {
            method,
            field,
            entries: entries.collect::<Result<_>>()?,
        })
    }

    /// The value of the first key that fits the layer's name, as upstream matches it.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] if a key cannot be held against the name within bounds.
    pub fn get(&self, layer: &str) -> Result<Option<T>> {
        for entry in &self.entries {
            if entry.fits(layer)? {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }

    /// The values, whatever they are for.
    pub fn values(&self) -> impl Iterator<Item = T> + '_ {
        self.entries.iter().map(|entry| entry.value)
    }

    /// Refuses keys that fit none of the layers that are adapted: for configurations of a user's. Those of a
    /// checkpoint may have such.
    ///
    /// # Errors
    ///
    /// [`Error::UnusedPattern`] naming the keys; [`Error::Pattern`] as for [`get`](Self::get).
    pub fn refuse_unused<'a>(&self, layers: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        let mut unused = Vec::new();
        for entry in &self.entries {
            let mut used = false;
            for layer in layers.clone() {
                if entry.fits(layer)? {
                    used = true;
                    break;
                }
            }
            if !used {
                unused.push(entry.key.as_str());
            }
        }
        if unused.is_empty() {
            Ok(())
        } else {
            Err(Error::unused_pattern(
                self.method,
                self.field,
                unused,
                layers,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(keys: &[(&str, usize)]) -> Patterns<usize> {
        let values = keys.iter().map(|(key, value)| (key.to_string(), *value));
        Patterns::new("Test", "rank_pattern", values).unwrap()
    }

    #[test]
    fn patterns_match_the_end_of_a_name() {
        let patterns = patterns(&[("query", 3), (r"layer\.1\..*", 4)]);
        let value = |layer| patterns.get(layer).unwrap();
        assert_eq!(value("encoder.layer.1.query"), Some(3), "the first counts");
        assert_eq!(value("encoder.layer.1.value"), Some(4));
        assert_eq!(value("encoder.layer.0.subquery"), None);
    }

    #[test]
    fn keys_without_a_layer_are_named() {
        let layers = ["encoder.layer.0.query", "encoder.layer.1.query"];
        // The second never gives a value, but it fits a layer.
        let used = patterns(&[("query", 3), (r"1\.query", 4)]);
        used.refuse_unused(layers.into_iter()).unwrap();
        let error = patterns(&[("query", 3), ("quary", 4), ("^query", 5)])
            .refuse_unused(layers.into_iter())
            .unwrap_err()
            .to_string();
        for expected in ["rank_pattern", "`quary`, `^query`", "encoder.layer.1.query"] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn keys_that_are_no_patterns_are_refused() {
        let bad = Patterns::new("Test", "rank_pattern", [("(".to_string(), 1)]);
        assert!(matches!(bad, Err(Error::Pattern { .. })));
    }
}
