//! Values for some layers: upstream's `rank_pattern` and its like.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::layout::targets::pattern_error;
use crate::method::contract::MethodInfo;

/// A number that a configuration can give by layer.
pub trait LayerValue: Copy + Debug + Into<Value> + Send + Sync + 'static {
    /// Reads it, if it is such a number.
    fn read(value: &Value) -> Option<Self>;
}

impl LayerValue for usize {
    fn read(value: &Value) -> Option<Self> {
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
    }
}

impl LayerValue for f64 {
    fn read(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

/// Values for layers by regular expressions for the end of their names, as in upstream's `rank_pattern`. The first
/// expression that fits counts. They are compiled once for all layers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByLayer<T> {
    entries: Map<String, Value>,
    #[serde(skip)]
    compiled: OnceLock<Arc<Vec<Entry<T>>>>,
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

impl<T> PartialEq for ByLayer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<T> From<Map<String, Value>> for ByLayer<T> {
    fn from(entries: Map<String, Value>) -> Self {
        Self {
            entries,
            compiled: OnceLock::new(),
        }
    }
}

impl<T: LayerValue> ByLayer<T> {
    /// Gives layers whose name ends in `pattern`, a regular expression, this value.
    pub fn insert(&mut self, pattern: &str, value: T) {
        self.entries.insert(pattern.into(), value.into());
        self.compiled = OnceLock::new();
    }

    /// The value for a layer; `default` where no expression fits its name.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for a key that is no regular expression, or that cannot be held against the name within
    /// bounds.
    pub fn of(&self, layer: &str, default: T) -> Result<T> {
        for entry in self.compiled()?.iter() {
            if entry.fits(layer)? {
                return Ok(entry.value);
            }
        }
        Ok(default)
    }

    /// All values, whatever layers they are for. Those that are no such numbers are left out.
    pub fn values(&self) -> impl Iterator<Item = T> + '_ {
        self.entries.values().filter_map(T::read)
    }

    /// Checks every value and every key.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming `field` and the key whose value does not fit, and saying what is `expected`; or for too
    /// many keys. [`Error::Pattern`] for a key that is no regular expression.
    pub fn check(
        &self,
        info: &MethodInfo,
        field: &'static str,
        expected: &str,
        fits: impl Fn(T) -> bool,
    ) -> Result<()> {
        let read = |value: &Value| T::read(value).filter(|value| fits(*value));
        read_by_layer(&self.entries, (info, field), expected, read)?;
        self.compiled().map(|_| ())
    }

    /// Refuses keys that fit none of `layers`, the names of all layers that are adapted.
    ///
    /// # Errors
    ///
    /// [`Error::UnusedPattern`] naming the keys; [`Error::Pattern`] as for [`of`](Self::of).
    pub fn refuse_unused(
        &self,
        info: &MethodInfo,
        field: &'static str,
        layers: &[&str],
    ) -> Result<()> {
        let mut unused = Vec::new();
        for entry in self.compiled()?.iter() {
            let mut used = false;
            for layer in layers {
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
            return Ok(());
        }
        let layers = layers.iter().copied();
        Err(Error::unused_pattern(info.title, field, unused, layers))
    }

    fn compiled(&self) -> Result<&Arc<Vec<Entry<T>>>> {
        if let Some(compiled) = self.compiled.get() {
            return Ok(compiled);
        }
        let readable = |(key, value): (&String, &Value)| Some((key.clone(), T::read(value)?));
        let entries = self.entries.iter().filter_map(readable);
        let compiled = entries.map(|(key, value)| {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .map_err(|error| pattern_error(&key, &error))?;
            Ok(Entry { key, regex, value })
        });
        let compiled = Arc::new(compiled.collect::<Result<Vec<_>>>()?);
        Ok(self.compiled.get_or_init(|| compiled))
    }
}

/// The entries of a field by layer, as they are read.
///
/// # Errors
///
/// [`Error::Config`] naming the field and the key whose value `read` does not take, or for too many keys.
pub fn read_by_layer<T>(
    fields: &Map<String, Value>,
    (info, field): (&MethodInfo, &'static str),
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    /// Each is held against the name of each layer.
    const MOST: usize = 4096;
    if fields.len() > MOST {
        let expected = format!("at most {MOST} patterns");
        return Err(Error::config(info.title, field, fields.len(), expected));
    }
    fields
        .iter()
        .map(|(pattern, value)| {
            let value = read(value).ok_or_else(|| {
                let expected = format!("`{pattern}` needs {expected}");
                Error::config(info.title, field, value, expected)
            })?;
            Ok((pattern.clone(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::contract::Family;

    static TEST: MethodInfo = MethodInfo {
        name: "test",
        peft_type: "TEST",
        title: "Test",
        family: Family::Reference,
        reference: "a method of this test",
        identity_at_init: true,
        mergeable: true,
        parse: |_| unreachable!("nothing is read"),
        recognises: None,
    };

    fn ranks(keys: &[(&str, usize)]) -> ByLayer<usize> {
        let mut ranks = ByLayer::default();
        for (key, value) in keys {
            ranks.insert(key, *value);
        }
        ranks
    }

    #[test]
    fn patterns_match_the_end_of_a_name() {
        let ranks = ranks(&[("query", 3), (r"layer\.1\..*", 4)]);
        let value = |layer| ranks.of(layer, 8).unwrap();
        assert_eq!(value("encoder.layer.1.query"), 3, "the first counts");
        assert_eq!(value("encoder.layer.1.value"), 4);
        assert_eq!(value("encoder.layer.0.subquery"), 8);
    }

    #[test]
    fn keys_without_a_layer_are_named() {
        let layers = ["encoder.layer.0.query", "encoder.layer.1.query"];
        // The second never gives a value, but it fits a layer.
        let used = ranks(&[("query", 3), (r"1\.query", 4)]);
        used.refuse_unused(&TEST, "rank_pattern", &layers).unwrap();
        let error = ranks(&[("query", 3), ("quary", 4), ("^query", 5)])
            .refuse_unused(&TEST, "rank_pattern", &layers)
            .unwrap_err()
            .to_string();
        for expected in ["rank_pattern", "`quary`, `^query`", "encoder.layer.1.query"] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn keys_that_are_no_patterns_and_values_out_of_range_are_refused() {
        let check = |ranks: ByLayer<usize>| {
            ranks.check(&TEST, "rank_pattern", "a whole number of at least 1", |r| {
                r >= 1
            })
        };
        check(ranks(&[("query", 1)])).unwrap();
        let error = check(ranks(&[("(", 1)])).unwrap_err();
        assert!(matches!(error, Error::Pattern { .. }));
        let error = check(ranks(&[("query", 0)])).unwrap_err().to_string();
        assert!(
            error.contains("`query` needs a whole number of at least 1"),
            "{error}"
        );
        let text = Map::from_iter([("query".into(), "three".into())]);
        assert!(check(text.into()).is_err());
    }
}
