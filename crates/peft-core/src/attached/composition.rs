//! Which of the attached adapters act, and how they act together.

use std::sync::Arc;

use crate::attached::nested::{Branches, Nested};
use crate::error::{Error, Result};

/// Which of the attached adapters act, and how they act together.
///
/// | composition | output of a layer, from the outputs `fᵢ` with one adapter and `f` without | AdapterHub's name |
/// |---|---|---|
/// | `Stack` | each adapter sees the layer with those below it: changes of a weight add up | `Stack` |
/// | `PerRow` | `fᵢ` of the row's own adapter | `BatchSplit`, `Parallel` |
/// | `PerRowStack` | that of the row's own adapters, one on the other | `Stack` in or around those two |
/// | `Weighted` | `f + Σ wᵢ (fᵢ − f)`, one weight for an adapter | `Average` |
/// | `Routed` | the same, one weight for an adapter and a row or token | |
/// | `Nested` | any of these but the last, with others of these for parts | all, nested |
///
/// [`batch_split`](Self::batch_split), [`parallel`](Self::parallel) and [`average`](Self::average) make those that
/// AdapterHub calls so.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Composition {
    /// These adapters, one on the other, in the order of their attachment.
    Stack(Vec<String>),
    /// Row i of the following batches has the adapter i, or none.
    PerRow(Vec<Option<String>>),
    /// Row i of the following batches has these adapters, one on the other in the order of their attachment. AdapterHub's
    /// nested compositions are this: `Stack("a", Parallel("b", "c"))` is rows with `a` and `b`, and rows with `a` and `c`;
    /// `Parallel(Stack("a", "b"), "c")` is rows with `a` and `b`, and rows with `c`. Of the adapters of a row one at most may
    /// put virtual tokens in front.
    PerRowStack(Vec<Vec<String>>),
    /// The changes that these adapters make to each layer's and site's output, added up with weights.
    Weighted(Vec<(String, f64)>),
    /// The same with weights that the forward pass brings: see [`Routing`](crate::nn::Routing).
    Routed(Vec<String>),
    /// A composition whose parts are compositions.
    Nested(Nested),
}

impl Composition {
    /// Rows by counts: so many rows of the following batches have the first adapter, the next ones have the second,
    /// and so on. AdapterHub's `BatchSplit`.
    pub fn batch_split<S: Into<String>>(counts: impl IntoIterator<Item = (S, usize)>) -> Self {
        let rows = counts.into_iter().flat_map(|(name, count)| {
            let name = Some(name.into());
            std::iter::repeat_n(name, count)
        });
        Self::PerRow(rows.collect())
    }

    /// One output of each of `rows` rows for every adapter: AdapterHub's `Parallel`. The batch holds the rows once for
    /// each adapter, one copy behind the other, and so does the output.
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use peft_core::Composition;
    ///
    /// let ids = Tensor::<2, Int>::from_data([[1, 2, 3], [4, 5, 6]], &Device::default());
    /// let names = ["formal", "friendly"];
    /// let composition = Composition::parallel(names, 2);
    /// let ids = ids.repeat_dim(0, names.len());
    /// // let outputs = model.set_composition(&composition)?.forward(ids).chunk(names.len(), 0);
    /// # assert_eq!(ids.dims(), [4, 3]);
    /// # assert!(matches!(composition, Composition::PerRow(rows) if rows.len() == 4));
    /// ```
    pub fn parallel<S: Into<String>>(names: impl IntoIterator<Item = S>, rows: usize) -> Self {
        Self::batch_split(names.into_iter().map(|name| (name, rows)))
    }

    /// The weighted mean of what each layer and site gives with each of these adapters. Weights are divided by their
    /// sum. AdapterHub's `Average` divides by the number of adapters once more, so that its mean of an adapter with
    /// itself is half of that: not here.
    ///
    /// Weights whose sum is 0 have no mean: [`set_composition`](crate::PeftModule::set_composition) refuses them.
    pub fn average<S: Into<String>>(weights: impl IntoIterator<Item = (S, f64)>) -> Self {
        let weights = weights
            .into_iter()
            .map(|(name, weight)| (name.into(), weight));
        let mut weights: Vec<(String, f64)> = weights.collect();
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        for (_, weight) in &mut weights {
            *weight /= sum;
        }
        Self::Weighted(weights)
    }

    /// The adapters, in the order of the composition; each once.
    pub(crate) fn names(&self) -> Vec<&str> {
        let all: Vec<&str> = match self {
            Self::Stack(names) | Self::Routed(names) => names.iter().map(String::as_str).collect(),
            Self::PerRow(rows) => rows.iter().flatten().map(String::as_str).collect(),
            Self::PerRowStack(rows) => rows.iter().flatten().map(String::as_str).collect(),
            Self::Weighted(weights) => weights.iter().map(|(name, _)| name.as_str()).collect(),
            Self::Nested(tree) => tree.names(),
        };
        let mut names = Vec::new();
        for name in all {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The same without an adapter: rows that had it have none.
    pub(crate) fn without(&self, adapter: &str) -> Self {
        let others = |names: &[String]| -> Vec<String> {
            names
                .iter()
                .filter(|name| *name != adapter)
                .cloned()
                .collect()
        };
        match self {
            Self::Stack(names) => Self::Stack(others(names)),
            Self::Routed(names) => Self::Routed(others(names)),
            Self::PerRow(rows) => {
                let other = |row: &Option<String>| row.clone().filter(|row| row != adapter);
                Self::PerRow(rows.iter().map(other).collect())
            }
            Self::PerRowStack(rows) => {
                Self::PerRowStack(rows.iter().map(|row| others(row)).collect())
            }
            Self::Weighted(weights) => {
                let others = weights.iter().filter(|(name, _)| name != adapter);
                Self::Weighted(others.cloned().collect())
            }
            Self::Nested(tree) => Self::Nested(tree.without(adapter)),
        }
    }

    /// Refuses weights that are no numbers, and adapters that have several.
    pub(crate) fn check(&self) -> Result<()> {
        let given = match self {
            Self::Nested(tree) => return tree.check(),
            Self::Stack(_) | Self::PerRow(_) | Self::PerRowStack(_) => 0,
            Self::Weighted(weights) => weights.len(),
            Self::Routed(names) => names.len(),
        };
        if given > self.names().len() {
            let twice = |name: &&str| match self {
                Self::Weighted(weights) => {
                    weights.iter().filter(|(other, _)| other == name).count() > 1
                }
                Self::Routed(names) => names.iter().filter(|other| other == name).count() > 1,
                _ => false,
            };
            let adapter = self.names().into_iter().find(twice).unwrap_or_default();
            return Err(Error::Composition {
                adapter: adapter.to_string(),
                reason: "it is in the composition twice; once would do".into(),
            });
        }
        let Self::Weighted(weights) = self else {
            return Ok(());
        };
        match weights.iter().find(|(_, weight)| !weight.is_finite()) {
            None => Ok(()),
            Some((name, weight)) => Err(Error::Composition {
                adapter: name.clone(),
                reason: format!("its weight is {weight}; a finite number would do"),
            }),
        }
    }
}

/// A composition as it is at one place: the adapters by their index there.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    /// Upstream's name of the layer or site.
    pub(crate) place: Arc<str>,
    pub(crate) composition: Arc<Composition>,
    pub(crate) parts: Parts,
}

/// What acts at one place.
#[derive(Clone, Debug)]
pub(crate) enum Parts {
    PerRow(Arc<PerRow>),
    /// Entries with their weights.
    Weighted(Vec<(usize, f64)>),
    /// Entries.
    Routed(Vec<usize>),
    /// At a layer, or at a site of anything but a hidden state.
    Blend(Arc<Blend>),
    /// At a site of a hidden state: the composition's own tree. Entries that have a part in it.
    Tree(Vec<usize>),
}

/// Sums of stacks at one place.
#[derive(Clone, Debug)]
pub(crate) struct Blend {
    /// Different ones, each with weights that add up to 1.
    pub(crate) sums: Vec<Branches>,
    /// Whose entries are indices of those; none where all rows have the first one.
    pub(crate) rows: Option<PerRow>,
}

impl Blend {
    fn new((of_rows, differ): (Vec<Branches>, bool)) -> Self {
        let mut sums: Vec<Branches> = Vec::new();
        let mut indices = Vec::new();
        for branches in of_rows {
            let found = sums.iter().position(|sum| *sum == branches);
            indices.push(found.unwrap_or_else(|| {
                sums.push(branches);
                sums.len() - 1
            }));
        }
        let rows = differ.then(|| PerRow::new(indices.into_iter().map(|index| vec![index])));
        Self { sums, rows }
    }

    /// Entries of the stack that all rows have, if that is all.
    pub(crate) fn plain(&self) -> Option<&[usize]> {
        match (self.sums.as_slice(), &self.rows) {
            ([sum], None) => alone(sum),
            _ => None,
        }
    }

    /// Stacks of the rows, if none has a sum.
    fn stacks(&self) -> Option<PerRow> {
        let rows = self.rows.as_ref()?;
        let stacks: Vec<&[usize]> = self.sums.iter().map(alone).collect::<Option<_>>()?;
        let of_row = |group: &i64| stacks[rows.groups[*group as usize].entries[0]].to_vec();
        Some(PerRow::new(rows.group_of.iter().map(of_row)))
    }

    fn entries(&self) -> impl Iterator<Item = usize> {
        let branches = self.sums.iter().flatten();
        branches.flat_map(|(_, stack)| stack.iter().copied())
    }
}

/// The stack of a sum that has one.
fn alone(sum: &Branches) -> Option<&[usize]> {
    match sum.as_slice() {
        [(factor, stack)] if (factor - 1.0).abs() < f64::EPSILON => Some(stack),
        _ => None,
    }
}

impl Mixture {
    /// The composition at the place called `place`, with these adapters; none for adapters one on the other. `is_hidden`:
    /// whether the place is a site of a hidden state.
    pub(crate) fn new(
        composition: &Arc<Composition>,
        entries: &[&str],
        place: &str,
        is_hidden: bool,
    ) -> Option<Self> {
        let at = |name: &str| entries.iter().position(|entry| *entry == name);
        let parts = match composition.as_ref() {
            Composition::Stack(_) => return None,
            Composition::PerRow(rows) => {
                let entries = rows.iter().map(|row| row.as_deref().and_then(at));
                let entries = entries.map(|entry| entry.into_iter().collect());
                Parts::PerRow(Arc::new(PerRow::new(entries)))
            }
            Composition::PerRowStack(rows) => {
                let entries = rows.iter().map(|row| {
                    let mut here: Vec<usize> = row.iter().filter_map(|name| at(name)).collect();
                    // The order of attachment; a name that is there twice is one adapter.
                    here.sort_unstable();
                    here.dedup();
                    here
                });
                Parts::PerRow(Arc::new(PerRow::new(entries)))
            }
            Composition::Weighted(weights) => {
                let here = weights
                    .iter()
                    .filter_map(|(name, weight)| Some((at(name)?, *weight)));
                Parts::Weighted(here.collect())
            }
            Composition::Routed(names) => {
                Parts::Routed(names.iter().filter_map(|name| at(name)).collect())
            }
            Composition::Nested(tree) if is_hidden => {
                Parts::Tree(tree.names().into_iter().filter_map(at).collect())
            }
            Composition::Nested(tree) => {
                let blend = Blend::new(tree.of_rows(&at));
                match blend.stacks() {
                    Some(rows) => Parts::PerRow(Arc::new(rows)),
                    None => Parts::Blend(Arc::new(blend)),
                }
            }
        };
        Some(Self {
            place: place.into(),
            composition: composition.clone(),
            parts,
        })
    }

    /// Whether it has something to do at this place.
    pub(crate) fn is_used(&self) -> bool {
        match &self.parts {
            Parts::PerRow(rows) => rows.groups.iter().any(|group| !group.entries.is_empty()),
            Parts::Weighted(entries) => !entries.is_empty(),
            Parts::Routed(entries) | Parts::Tree(entries) => !entries.is_empty(),
            Parts::Blend(blend) => blend.entries().next().is_some(),
        }
    }

    /// Whether the adapter at this index has a part in it.
    pub(crate) fn uses(&self, entry: usize) -> bool {
        match &self.parts {
            Parts::PerRow(rows) => rows
                .groups
                .iter()
                .any(|group| group.entries.contains(&entry)),
            Parts::Weighted(entries) => entries.iter().any(|(used, _)| *used == entry),
            Parts::Routed(entries) | Parts::Tree(entries) => entries.contains(&entry),
            Parts::Blend(blend) => blend.entries().any(|used| used == entry),
        }
    }
}

/// The adapters of a batch's rows at one place, grouped once for all forward passes.
#[derive(Clone, Debug)]
pub(crate) struct PerRow {
    pub(crate) groups: Vec<Group>,
    /// The group of each row.
    pub(crate) group_of: Vec<i64>,
}

/// Rows with the same adapters at one place.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Indices of the adapters' entries, the innermost first; rows without one have none at this place.
    pub(crate) entries: Vec<usize>,
    pub(crate) rows: Vec<i64>,
}

impl PerRow {
    /// Those of rows with these entries.
    pub(crate) fn new(entries: impl Iterator<Item = Vec<usize>>) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = Vec::new();
        for (row, entries) in entries.enumerate() {
            let found = groups.iter().position(|group| group.entries == entries);
            let group = found.unwrap_or_else(|| {
                let rows = Vec::new();
                groups.push(Group { entries, rows });
                groups.len() - 1
            });
            groups[group].rows.push(index(row));
            group_of.push(index(group));
        }
        Self { groups, group_of }
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.group_of.len()
    }

    /// Where each row is once the groups lie one behind the other.
    pub(crate) fn places(&self) -> Vec<i64> {
        let mut places = vec![0; self.count()];
        let order = self.groups.iter().flat_map(|group| &group.rows);
        for (place, row) in order.enumerate() {
            places[*row as usize] = index(place);
        }
        places
    }
}

/// As a tensor of indices holds it.
fn index(at: usize) -> i64 {
    at.cast_signed() as i64
}
