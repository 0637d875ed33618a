//! Compositions of compositions.

use serde_json::Value;

use crate::error::{Error, Result};

/// How much the sum of an average's weights may be from 1 where its adapters take the place of a sublayer's end.
const ROUNDING: f64 = 1e-6;

/// A composition whose parts are compositions, as AdapterHub nests them: the stack of an adapter and an average, rows with
/// averages, tokens with stacks.
///
/// Unlike in [`Composition::Stack`](crate::Composition::Stack), the order of a stack is the one that is given here.
///
/// ```
/// use peft_core::{Composition, Nested};
///
/// // AdapterHub's Stack("language", Average("a", "b")).
/// let tree = Nested::stack([
///     Nested::from("language"),
///     Nested::average([("a", 1.0), ("b", 1.0)]),
/// ]);
/// let composition = Composition::Nested(tree);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Nested {
    /// One adapter.
    Adapter(String),
    /// An adapter that works on what others of its site compute, as a fusion does, where some of these lie on further
    /// ones: each list is a stack, and its last name is that of the one that the adapter works on.
    Above {
        /// The adapter.
        adapter: String,
        /// The stacks.
        stacks: Vec<Vec<String>>,
    },
    /// One on the other, the innermost first. An empty one changes nothing.
    Stack(Vec<Self>),
    /// So many rows of the batch with the first part, the next ones with the second, and so on.
    Rows(Vec<(Self, usize)>),
    /// So many tokens of each row with the first part, and so on; virtual tokens count. At sites of hidden states only.
    Tokens(Vec<(Self, usize)>),
    /// The changes that the parts make, added up with weights.
    Weighted(Vec<(Self, f64)>),
}

impl From<&str> for Nested {
    fn from(name: &str) -> Self {
        Self::Adapter(name.into())
    }
}

impl Nested {
    /// One on the other: AdapterHub's `Stack`.
    pub fn stack<N: Into<Self>>(parts: impl IntoIterator<Item = N>) -> Self {
        Self::Stack(parts.into_iter().map(Into::into).collect())
    }

    /// Rows by counts: AdapterHub's `BatchSplit`.
    pub fn batch_split<N: Into<Self>>(parts: impl IntoIterator<Item = (N, usize)>) -> Self {
        let parts = parts.into_iter().map(|(part, count)| (part.into(), count));
        Self::Rows(parts.collect())
    }

    /// The same `rows` rows once for each part, of a batch that holds them as often: AdapterHub's `Parallel`.
    pub fn parallel<N: Into<Self>>(parts: impl IntoIterator<Item = N>, rows: usize) -> Self {
        Self::batch_split(parts.into_iter().map(|part| (part, rows)))
    }

    /// Tokens by counts: AdapterHub's `Split`.
    pub fn split<N: Into<Self>>(parts: impl IntoIterator<Item = (N, usize)>) -> Self {
        let parts = parts.into_iter().map(|(part, count)| (part.into(), count));
        Self::Tokens(parts.collect())
    }

    /// The mean, with weights that are divided by their sum: AdapterHub's `Average`, which divides by the number of parts once
    /// more.
    pub fn average<N: Into<Self>>(parts: impl IntoIterator<Item = (N, f64)>) -> Self {
        let parts = parts
            .into_iter()
            .map(|(part, weight)| (part.into(), weight));
        let mut parts: Vec<(Self, f64)> = parts.collect();
        let sum: f64 = parts.iter().map(|(_, weight)| weight).sum();
        for (_, weight) in &mut parts {
            *weight /= sum;
        }
        Self::Weighted(parts)
    }

    /// The composition in AdapterHub's `adapter_setup.json`, for a batch of `rows` rows, each as often as `Parallel` repeats
    /// it. A fusion is taken for the adapter that is called by the last names of what it fuses, with hyphens (`a-b`, where
    /// AdapterHub has commas).
    ///
    /// # Errors
    ///
    /// [`Error::Composition`] for what is no such composition.
    pub fn from_adapterhub(json: &Value, rows: usize) -> Result<Self> {
        let wrong = |reason: &str| {
            Err(Error::Composition {
                adapter: json.to_string(),
                reason: reason.to_string(),
            })
        };
        let json = json.get("adapter_composition").unwrap_or(json);
        if let Some(name) = json.as_str() {
            return Ok(name.into());
        }
        let (Some(kind), Some(children)) = (json["type"].as_str(), json["children"].as_array())
        else {
            return wrong("it has no `type` and `children`, as AdapterHub's compositions have");
        };
        if kind == "single" {
            let name = children.first().and_then(Value::as_str);
            return match name {
                Some(name) => Ok(name.into()),
                None => wrong("it is of a single adapter, and has no name"),
            };
        }
        let numbers = |field: &str| -> Vec<f64> {
            let list = json["kwargs"][field].as_array().into_iter().flatten();
            list.filter_map(Value::as_f64).collect()
        };
        let counts = match kind {
            "BatchSplit" => numbers("batch_sizes"),
            "Split" => numbers("splits"),
            "Average" => numbers("weights"),
            "Parallel" => vec![rows as f64; children.len()],
            _ => Vec::new(),
        };
        let whole = |count: &f64| *count >= 0.0 && count.fract() == 0.0;
        if kind != "Average" && !counts.iter().all(whole) {
            return wrong("a number of rows or tokens in it is no whole number from 0 on");
        }
        let counted = ["BatchSplit", "Split", "Average", "Parallel"].contains(&kind);
        if counted && counts.len() != children.len() {
            return wrong("it has not as many counts or weights as parts");
        }
        let part = |(at, child): (usize, &Value)| {
            let rows = match kind {
                "BatchSplit" => counts[at] as usize,
                _ => rows,
            };
            Self::from_adapterhub(child, rows)
        };
        let parts: Vec<Self> = children
            .iter()
            .enumerate()
            .map(part)
            .collect::<Result<_>>()?;
        let with_counts = |parts: Vec<Self>| {
            let counts = counts.iter().map(|count| *count as usize);
            parts.into_iter().zip(counts).collect()
        };
        match kind {
            "Stack" => Ok(Self::Stack(parts)),
            "BatchSplit" | "Parallel" => Ok(Self::Rows(with_counts(parts))),
            "Split" => Ok(Self::Tokens(with_counts(parts))),
            "Average" => Ok(Self::Weighted(parts.into_iter().zip(counts).collect())),
            "Fuse" => {
                let owned = |part: &Self| part.names().into_iter().map(String::from).collect();
                let stacks: Vec<Vec<String>> = parts.iter().map(owned).collect();
                let last = stacks.iter().filter_map(|stack| stack.last().cloned());
                let adapter = last.collect::<Vec<_>>().join("-");
                Ok(Self::Above { adapter, stacks })
            }
            _ => wrong("it is none of Stack, Fuse, Split, BatchSplit, Parallel and Average"),
        }
    }

    /// The parts that are compositions.
    fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Adapter(_) | Self::Above { .. } => Vec::new(),
            Self::Stack(parts) => parts.iter().collect(),
            Self::Rows(parts) | Self::Tokens(parts) => parts.iter().map(|(part, _)| part).collect(),
            Self::Weighted(parts) => parts.iter().map(|(part, _)| part).collect(),
        }
    }

    /// Names of the adapters, in their order; one that is in it twice is here twice.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Adapter(name) => vec![name.as_str()],
            Self::Above { adapter, stacks } => {
                let below = stacks.iter().flatten().map(String::as_str);
                below.chain([adapter.as_str()]).collect()
            }
            _ => self.parts().into_iter().flat_map(Self::names).collect(),
        }
    }

    /// The same without an adapter: nothing is in its place.
    pub(crate) fn without(&self, name: &str) -> Self {
        match self {
            Self::Adapter(own) if own == name => Self::Stack(Vec::new()),
            Self::Above { adapter, .. } if adapter == name => Self::Stack(Vec::new()),
            Self::Adapter(_) => self.clone(),
            Self::Above { adapter, stacks } => Self::Above {
                adapter: adapter.clone(),
                stacks: stacks
                    .iter()
                    .map(|stack| stack.iter().filter(|own| *own != name).cloned().collect())
                    .collect(),
            },
            Self::Stack(parts) => {
                Self::Stack(parts.iter().map(|part| part.without(name)).collect())
            }
            Self::Rows(parts) => Self::Rows(without_in(parts, name)),
            Self::Tokens(parts) => Self::Tokens(without_in(parts, name)),
            Self::Weighted(parts) => Self::Weighted(without_in(parts, name)),
        }
    }

    /// How many rows of a batch it is of; none where it is of any number.
    ///
    /// # Errors
    ///
    /// Parts of different numbers, in words.
    pub(crate) fn rows(&self) -> std::result::Result<Option<usize>, String> {
        if let Self::Rows(parts) = self {
            for (part, count) in parts {
                if let Some(rows) = part.rows()?.filter(|rows| rows != count) {
                    return Err(format!("{count} rows have a part that is of {rows} rows"));
                }
            }
            return Ok(Some(parts.iter().map(|(_, count)| count).sum()));
        }
        let mut found = None;
        for part in self.parts() {
            match (found, part.rows()?) {
                (Some(one), Some(other)) if one != other => {
                    return Err(format!(
                        "one part of it is of {one} rows, and another of {other}"
                    ));
                }
                (None, rows) => found = rows,
                _ => {}
            }
        }
        Ok(found)
    }

    /// How many rows a batch must have; none where it is of any number.
    pub fn batch_rows(&self) -> Option<usize> {
        self.rows().ok().flatten()
    }

    /// Whether tokens of a row have parts of their own.
    pub fn splits_tokens(&self) -> bool {
        matches!(self, Self::Tokens(_)) || self.parts().into_iter().any(Self::splits_tokens)
    }

    /// Whether the weights of every average in it add up to 1.
    pub(crate) fn keeps_sums(&self) -> bool {
        let own = match self {
            Self::Weighted(parts) => {
                let sum: f64 = parts.iter().map(|(_, weight)| weight).sum();
                (sum - 1.0).abs() < ROUNDING
            }
            _ => true,
        };
        own && self.parts().into_iter().all(Self::keeps_sums)
    }

    /// Refuses weights that are no numbers, splits and averages of nothing, and numbers of rows that contradict one another.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |reason: String| {
            let adapter = self.names().first().map(|name| (*name).to_string());
            let adapter = adapter.unwrap_or_default();
            Err(Error::Composition { adapter, reason })
        };
        if let Err(reason) = self.rows() {
            return refuse(reason);
        }
        let is_list = matches!(self, Self::Rows(_) | Self::Tokens(_) | Self::Weighted(_));
        if is_list && self.parts().is_empty() {
            return refuse(
                "it is split between no parts, or a sum of none; one part would do".into(),
            );
        }
        if let Self::Weighted(parts) = self
            && let Some((_, weight)) = parts.iter().find(|(_, weight)| !weight.is_finite())
        {
            return refuse(format!("a weight is {weight}; a finite number would do"));
        }
        self.parts().into_iter().try_for_each(Self::check)
    }
}

fn without_in<C: Copy>(parts: &[(Nested, C)], name: &str) -> Vec<(Nested, C)> {
    let parts = parts.iter();
    parts
        .map(|(part, count)| (part.without(name), *count))
        .collect()
}

/// A sum of stacks of entries, with weights that add up to 1: what a composition is at one place for one row.
pub(crate) type Branches = Vec<(f64, Vec<usize>)>;

impl Nested {
    /// What row `row` has at a place, where `at` gives an adapter's index.
    fn branches(&self, row: usize, at: &impl Fn(&str) -> Option<usize>) -> Branches {
        match self {
            Self::Adapter(name) | Self::Above { adapter: name, .. } => {
                vec![(1.0, at(name).into_iter().collect())]
            }
            Self::Stack(parts) => parts.iter().fold(vec![(1.0, Vec::new())], |below, part| {
                let above = part.branches(row, at);
                let both = below.iter().flat_map(|(factor, stack)| {
                    above.iter().map(move |(other, on)| {
                        (factor * other, [stack.as_slice(), on.as_slice()].concat())
                    })
                });
                merged(both.collect())
            }),
            Self::Rows(parts) => {
                let mut first = 0;
                for (part, count) in parts {
                    if row < first + count {
                        return part.branches(row - first, at);
                    }
                    first += count;
                }
                vec![(1.0, Vec::new())]
            }
            // Refused at such places.
            Self::Tokens(_) => vec![(1.0, Vec::new())],
            Self::Weighted(parts) => {
                let sum: f64 = parts.iter().map(|(_, weight)| weight).sum();
                let mut all = Vec::new();
                if (1.0 - sum).abs() > f64::EPSILON * parts.len() as f64 {
                    all.push((1.0 - sum, Vec::new()));
                }
                for (part, weight) in parts {
                    let of_part = part.branches(row, at).into_iter();
                    all.extend(of_part.map(|(factor, stack)| (factor * weight, stack)));
                }
                merged(all)
            }
        }
    }

    /// What all rows have at a place, or each of them.
    pub(crate) fn of_rows(&self, at: &impl Fn(&str) -> Option<usize>) -> (Vec<Branches>, bool) {
        match self.rows() {
            Ok(Some(rows)) => ((0..rows).map(|row| self.branches(row, at)).collect(), true),
            _ => (vec![self.branches(0, at)], false),
        }
    }
}

/// Equal stacks once, with the sum of their weights.
fn merged(all: Branches) -> Branches {
    let mut found: Branches = Vec::new();
    for (factor, stack) in all {
        match found.iter_mut().find(|(_, other)| *other == stack) {
            Some((sum, _)) => *sum += factor,
            None => found.push((factor, stack)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(name: &str) -> Option<usize> {
        ["a", "b", "c"].iter().position(|known| *known == name)
    }

    #[test]
    fn stacks_of_sums_are_sums_of_stacks() {
        let mean = Nested::average([("a", 1.0), ("b", 3.0)]);
        let tree = Nested::stack([mean, "c".into()]);
        let (rows, differ) = tree.of_rows(&at);
        assert!(!differ);
        assert_eq!(rows, [vec![(0.25, vec![0, 2]), (0.75, vec![1, 2])]]);
        let elsewhere = tree.of_rows(&|_| None).0;
        assert_eq!(elsewhere, [vec![(1.0, vec![])]]);
    }

    #[test]
    fn rows_have_their_own_parts() {
        let tree = Nested::batch_split([
            (Nested::stack(["b", "a"]), 1),
            (Nested::batch_split([("c", 1), ("a", 1)]), 2),
        ]);
        let (rows, differ) = tree.of_rows(&at);
        assert!(differ);
        assert_eq!(
            rows,
            [
                vec![(1.0, vec![1, 0])],
                vec![(1.0, vec![2])],
                vec![(1.0, vec![0])]
            ]
        );
        let without = tree.without("a").of_rows(&at).0;
        assert_eq!(without[2], [(1.0, vec![])]);
        let wrong = Nested::batch_split([(Nested::batch_split([("a", 1)]), 2)]);
        assert!(wrong.check().is_err());
        assert!(
            Nested::Weighted(vec![("a".into(), f64::NAN)])
                .check()
                .is_err()
        );
    }

    #[test]
    fn adapterhubs_compositions_are_read() {
        let single = |name: &str| json!({"type": "single", "children": [name]});
        let json = json!({"type": "Stack", "children": [
            single("a"),
            {"type": "Parallel", "children": [single("b"), {"type": "Average", "children": [single("c"), single("a")],
                "kwargs": {"weights": [0.3, 0.7]}}]},
        ]});
        let found = Nested::from_adapterhub(&json, 2).unwrap();
        let mean = Nested::Weighted(vec![("c".into(), 0.3), ("a".into(), 0.7)]);
        let expected = Nested::stack([
            Nested::from("a"),
            Nested::parallel([Nested::from("b"), mean], 2),
        ]);
        assert_eq!(found, expected);
        let fuse = json!({"type": "Fuse", "children": [
            {"type": "Stack", "children": [single("a"), single("b")]}, single("c"),
        ]});
        let stacks = vec![vec!["a".to_string(), "b".into()], vec!["c".into()]];
        let above = Nested::Above {
            adapter: "b-c".into(),
            stacks,
        };
        assert_eq!(Nested::from_adapterhub(&fuse, 2).unwrap(), above);
        for wrong in [
            json!({}),
            json!({"type": "Split", "children": [single("a")]}),
            json!({"type": "Mix", "children": []}),
            json!({"type": "Split", "children": [single("a"), single("b")], "kwargs": {"splits": [2, -1]}}),
            json!({"type": "BatchSplit", "children": [single("a")], "kwargs": {"batch_sizes": [1.5]}}),
        ] {
            assert!(Nested::from_adapterhub(&wrong, 1).is_err(), "{wrong}");
        }
    }
}
