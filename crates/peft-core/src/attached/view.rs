//! A model as it is: what it consists of, and which adapters are on it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::attached::composition::Composition;
use crate::attached::stack::{AttachedMethod, Entry, Stack};
use crate::error::{Error, Result};
use crate::layout::model_layout::Layout;

/// A parameter with a reparameterization that is not ours.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    /// Field path.
    pub(crate) parameter: String,
    /// The reparameterization's name.
    pub(crate) found: String,
}

/// What a traversal found in a model. All of it are copies, which share tensors with the model.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) layout: Layout,
    /// By field path of the parameter or site.
    stacks: HashMap<String, Stack>,
    foreign: Option<Foreign>,
}

impl Attached {
    pub(crate) fn new(
        layout: Layout,
        stacks: HashMap<String, Stack>,
        foreign: Option<Foreign>,
    ) -> Self {
        Self {
            layout,
            stacks,
            foreign,
        }
    }

    /// Every stack with the field path of its place, in the order of the model: parameters, then sites.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = (&str, &Stack)> {
        let params = self.layout.params.iter().map(|param| &param.path);
        let sites = self.layout.sites.iter().map(|site| &site.path);
        let places = params.chain(sites);
        places.filter_map(|path| Some((path.as_str(), self.stacks.get(path)?)))
    }

    /// The stack at a field path, if there is one.
    pub(crate) fn stack(&self, path: &str) -> Option<&Stack> {
        self.stacks.get(path)
    }

    /// Puts these stacks in the place of those that are at their paths.
    pub(crate) fn set_stacks(&mut self, stacks: HashMap<String, Stack>) {
        self.stacks.extend(stacks);
    }

    /// All stacks, changed by what is told the names of their places: for
    /// [`place`](crate::attached::traversal::place).
    pub(crate) fn changed_by_name(
        &self,
        change: impl Fn(&mut Stack, &str),
    ) -> HashMap<String, Stack> {
        let changed = |(path, stack): (&String, &Stack)| {
            let mut stack = stack.clone();
            change(&mut stack, &self.layout.place_name(path));
            (path.clone(), stack)
        };
        self.stacks.iter().map(changed).collect()
    }

    /// All stacks, changed: for [`place`](crate::attached::traversal::place).
    pub(crate) fn changed(&self, change: impl Fn(&Stack) -> Stack) -> HashMap<String, Stack> {
        let stacks = self.stacks.iter();
        stacks
            .map(|(path, stack)| (path.clone(), change(stack)))
            .collect()
    }

    /// All states of an adapter, with the field paths of their places, in the order of the model.
    pub(crate) fn entries_of(&self, name: &str) -> impl Iterator<Item = (&str, &Entry)> {
        self.stacks().flat_map(move |(path, stack)| {
            let entries = stack.entries.iter();
            let own = entries.filter(move |entry| entry.name == name);
            own.map(move |entry| (path, entry))
        })
    }

    /// Names of the adapters, in the order of attachment as far as one place shows it.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for entry in self.stacks().flat_map(|(_, stack)| &stack.entries) {
            if !names.contains(&entry.name) {
                names.push(entry.name.clone());
            }
        }
        names
    }

    /// Whether an adapter of this name is attached.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries_of(name).next().is_some()
    }

    /// Whether the adapter takes part in the forward pass at one of its places, in whatever composition.
    pub(crate) fn is_active(&self, name: &str) -> bool {
        let mut used = self.stacks().flat_map(|(_, stack)| stack.used());
        used.any(|entry| entry.name == name)
    }

    /// The numbers of tasks of the adapters that take part in the forward pass and tell rows apart by task; each once.
    pub(crate) fn num_tasks(&self) -> BTreeSet<usize> {
        let used = self.stacks().flat_map(|(_, stack)| stack.used());
        used.filter_map(|entry| entry.adapter.num_tasks()).collect()
    }

    /// The method of an adapter, as it was attached.
    pub(crate) fn origin(&self, name: &str) -> Result<Arc<AttachedMethod>> {
        let entry = self.entries_of(name).next();
        entry
            .map(|(_, entry)| entry.origin.clone())
            .ok_or_else(|| self.unknown(name))
    }

    /// The refusal of a name that no adapter has.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        let attached = self.names();
        Error::UnknownAdapter {
            name: name.to_string(),
            attached: if attached.is_empty() {
                "none".into()
            } else {
                attached.join(", ")
            },
        }
    }

    /// Refuses names that no adapter has.
    pub(crate) fn refuse_unknown(&self, names: &[&str]) -> Result<()> {
        match names.iter().find(|name| !self.has(name)) {
            None => Ok(()),
            Some(name) => Err(self.unknown(name)),
        }
    }

    pub(crate) fn is_merged(&self) -> bool {
        self.stacks.values().any(|stack| stack.merged.is_some())
    }

    pub(crate) fn refuse_merged(&self) -> Result<()> {
        if self.is_merged() {
            Err(Error::Merged)
        } else {
            Ok(())
        }
    }

    pub(crate) fn refuse_foreign(&self) -> Result<()> {
        match &self.foreign {
            None => Ok(()),
            Some(foreign) => Err(Error::ForeignReparameterization {
                parameter: foreign.parameter.clone(),
                found: foreign.found.clone(),
            }),
        }
    }

    /// How the adapters are composed.
    pub(crate) fn composition(&self) -> Composition {
        let mut mixtures = self
            .stacks
            .values()
            .filter_map(|stack| stack.mixture.as_ref());
        if let Some(mixture) = mixtures.next() {
            return mixture.composition.as_ref().clone();
        }
        let names = self.names().into_iter();
        Composition::Stack(names.filter(|name| self.is_active(name)).collect())
    }
}
