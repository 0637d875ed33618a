//! Which row of a batch has which adapter.

use std::sync::Arc;

/// The adapter of each row of a batch, by name; `None` for the base model.
pub(crate) type Names = Arc<[Option<String>]>;

/// The adapters of a batch's rows at one place, grouped once for all forward passes.
#[derive(Debug)]
pub(crate) struct Rows {
    /// As they were asked for.
    pub(crate) names: Names,
    pub(crate) groups: Vec<Group>,
    /// The group of each row.
    pub(crate) group_of: Vec<i64>,
}

/// Rows with the same adapter at one place.
#[derive(Debug)]
pub(crate) struct Group {
    /// Index of the adapter's entry; rows without one have none at this place.
    pub(crate) entry: Option<usize>,
    pub(crate) rows: Vec<i64>,
}

impl Rows {
    /// Those of a place with these adapters.
    pub(crate) fn new(names: &Names, entries: &[&str]) -> Arc<Self> {
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = Vec::with_capacity(names.len());
        for (row, name) in names.iter().enumerate() {
            let named = |entry: &&str| Some(*entry) == name.as_deref();
            let entry = entries.iter().position(named);
            let found = groups.iter().position(|group| group.entry == entry);
            let group = found.unwrap_or_else(|| {
                let rows = Vec::new();
                groups.push(Group { entry, rows });
                groups.len() - 1
            });
            groups[group].rows.push(index(row));
            group_of.push(index(group));
        }
        Arc::new(Self {
            names: names.clone(),
            groups,
            group_of,
        })
    }

    /// Whether a row has an adapter at this place.
    pub(crate) fn use_any(&self) -> bool {
        self.groups.iter().any(|group| group.entry.is_some())
    }

    /// Whether a row has the adapter at this index of the place's.
    pub(crate) fn use_entry(&self, entry: usize) -> bool {
        self.groups.iter().any(|group| group.entry == Some(entry))
    }
}

/// As a tensor of indices holds it.
pub(crate) fn index(at: usize) -> i64 {
    at.cast_signed() as i64
}
