//! What adapters cost: counts and bytes.

use std::collections::HashSet;
use std::fmt;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{DType, Int, Tensor};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::checkpoint_key::{fields_with_twins_up_to, sparse_fields, unsaved_fields};
use crate::adapter::erased::FromDyn;
use crate::adapter::role::Role;
use crate::adapter::trainable::is_trainable;
use crate::attached::stack::{Entry, Stack};
use crate::attached::view::Attached;
use crate::method::contract::MethodInfo;

/// Counts over a model and its active adapters (Lialin et al., section 3). Elements, not tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Elements that are trained, heads and other saved modules included.
    pub trainable: usize,
    /// Of these, the elements of `modules_to_save` and of trained heads.
    pub saved_modules: usize,
    /// All elements: the model's and the adapters'.
    pub total: usize,
    /// Elements of the model that differ from the base once the adapters are folded in, plus the
    /// adapters' own where they cannot be; saved modules not counted.
    pub changed: usize,
    /// Elements that the checkpoint holds; saved modules not counted.
    pub stored: usize,
    /// Bytes of these in the checkpoint.
    pub stored_bytes: usize,
}

impl Counts {
    /// Trained elements of the method itself: without heads and other saved modules. This is the
    /// number that papers print.
    pub fn adapter_trainable(&self) -> usize {
        self.trainable - self.saved_modules
    }
}

/// One named adapter in a [`Summary`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// Its name.
    pub name: String,
    /// Its method, as in `LoRA`.
    pub method: &'static str,
    /// All of that method: with it, what [`save_adapter`](crate::PeftModule::save_adapter) wrote of the adapter can be
    /// read.
    pub info: &'static MethodInfo,
    /// Whether it takes part in the forward pass.
    pub active: bool,
    /// At how many places it sits.
    pub places: usize,
    /// Elements of its parameters.
    pub elements: usize,
}

/// What is on a model, for people: `println!("{}", model.summary())`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The counts.
    pub counts: Counts,
    /// The adapters.
    pub adapters: Vec<AdapterSummary>,
    /// Whether the adapters are merged into the effective weights.
    pub merged: bool,
    /// Bytes of effective weights that layers keep between forward passes ([`kept_weights`](crate::kept_weights)).
    /// Models that share tensors may share these, too.
    pub kept_bytes: usize,
}

/// 1234567 as `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a unit of 1024.
fn bytes(count: usize) -> String {
    match count {
        0..=1023 => format!("{count} B"),
        1024..=1_048_575 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let share = 100.0 * counts.trainable as f64 / counts.total.max(1) as f64;
        writeln!(
            f,
            "trainable {} of {} ({share:.2} %); changed {}; stored {}, {}",
            grouped(counts.trainable),
            grouped(counts.total),
            grouped(counts.changed),
            grouped(counts.stored),
            bytes(counts.stored_bytes),
        )?;
        if counts.saved_modules > 0 {
            writeln!(
                f,
                "of these, saved modules and heads: {}",
                grouped(counts.saved_modules)
            )?;
        }
        for adapter in &self.adapters {
            writeln!(
                f,
                "{} `{}` ({}): {} places, {} elements",
                if adapter.active { "active" } else { "inactive" },
                adapter.name,
                adapter.method,
                adapter.places,
                grouped(adapter.elements),
            )?;
        }
        if self.merged {
            writeln!(f, "merged")?;
        }
        if self.kept_bytes > 0 {
            writeln!(f, "kept weights: {}", bytes(self.kept_bytes))?;
        }
        Ok(())
    }
}

/// Elements and bytes of one adapter's parameters.
#[derive(Default)]
struct Tally {
    elements: usize,
    trainable: usize,
    /// Elements that are in the file.
    stored: usize,
    /// Bytes of these.
    bytes: usize,
    /// Fields that are not.
    unsaved: HashSet<String>,
    /// Fields whose elements are the changed ones of the weight.
    sparse: HashSet<String>,
    /// How many elements these have.
    changed: usize,
    path: Vec<String>,
}

impl ModuleVisitor for Tally {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let elements = param.dims().iter().product::<usize>();
        self.elements += elements;
        let field = self.path.join(".");
        if self.sparse.contains(&field) {
            self.changed += elements;
        }
        self.store(&field, elements, param.dtype());
        if is_trainable(param) {
            self.trainable += elements;
        }
    }

    // Integers are stored, and are no parameters otherwise.
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let elements = param.dims().iter().product::<usize>();
        self.store(&self.path.join("."), elements, param.dtype());
    }
}

impl Tally {
    /// Counts a parameter that is in the file, unless none holds it.
    fn store(&mut self, field: &str, elements: usize, dtype: DType) {
        if !self.unsaved.contains(field) {
            self.stored += elements;
            self.bytes += elements * dtype.size();
        }
    }

    /// How many of the `base` elements of a weight the adapter changes: all, unless it is sparse.
    fn changed(&self, base: usize) -> usize {
        if self.sparse.is_empty() {
            base
        } else {
            self.changed
        }
    }
}

fn tally(adapter: &AnyAdapter) -> Tally {
    let stored = adapter.module().stored();
    let mut file = Tally {
        unsaved: unsaved_fields(&stored.tensors()),
        ..Tally::default()
    };
    stored.visit(&mut FromDyn(&mut file));
    let mut tally = Tally {
        sparse: sparse_fields(&adapter.module().tensors()),
        ..Tally::default()
    };
    adapter.module().visit(&mut FromDyn(&mut tally));
    Tally {
        stored: file.stored,
        bytes: file.bytes,
        ..tally
    }
}

/// See [`PeftModule::counts`](crate::PeftModule::counts).
pub(crate) fn count(attached: &Attached) -> Counts {
    let layout = &attached.layout;
    let mut counts = Counts::default();
    for param in &layout.params {
        let base = param.elements();
        // A tied head's elements are its table's.
        counts.total += if param.is_tied() { 0 } else { base };
        if param.is_trainable() {
            counts.trainable += base;
            if layout.layer_of(param).head {
                counts.saved_modules += base;
            } else {
                counts.changed += base;
                counts.stored += base;
                counts.stored_bytes += base * param.dtype().size();
            }
        }
        let mut changed = 0;
        let stack = attached.stack(&param.path);
        for entry in stack.into_iter().flat_map(Stack::used) {
            let tally = count_entry(entry, &mut counts);
            if let AnyAdapter::Weight(adapter) = &entry.adapter
                && adapter.role() != Role::SavedModule
                // A state without tensors changes nothing.
                && !adapter.tensors().is_empty()
            {
                changed = base.min(changed + tally.changed(base));
            }
        }
        counts.changed += changed;
    }
    let sites = layout.sites.iter();
    let at_sites = sites.filter_map(|site| attached.stack(&site.path));
    for entry in at_sites.flat_map(Stack::used) {
        counts.changed += count_entry(entry, &mut counts).elements;
    }
    counts
}

/// Adds an adapter's own elements to the counts, and gives them.
fn count_entry(entry: &Entry, counts: &mut Counts) -> Tally {
    let tally = tally(&entry.adapter);
    counts.total += tally.elements;
    counts.trainable += tally.trainable;
    if entry.adapter.module().role() == Role::SavedModule {
        counts.saved_modules += tally.trainable;
    } else {
        let twins = twins(&entry.adapter);
        counts.stored += tally.stored + twins.stored;
        counts.stored_bytes += tally.bytes + twins.bytes;
    }
    tally
}

/// What a file holds of the adapter more than once, under the keys of twins.
fn twins(adapter: &AnyAdapter) -> Tally {
    let stored = adapter.module().stored();
    let specs = stored.tensors();
    let most = specs.iter().map(|spec| spec.twins.len()).max();
    let mut sum = Tally::default();
    for count in 0..most.unwrap_or(0) {
        let mut twins = Tally {
            unsaved: fields_with_twins_up_to(&specs, count),
            ..Tally::default()
        };
        stored.visit(&mut FromDyn(&mut twins));
        sum.stored += twins.stored;
        sum.bytes += twins.bytes;
    }
    sum
}

/// See [`PeftModule::summary`](crate::PeftModule::summary).
pub(crate) fn summary(attached: &Attached) -> Summary {
    let mut adapters: Vec<AdapterSummary> = Vec::new();
    for entry in attached.stacks().flat_map(|(_, stack)| &stack.entries) {
        let elements = tally(&entry.adapter).elements;
        let known = adapters.iter_mut().find(|known| known.name == entry.name);
        if let Some(known) = known {
            known.places += 1;
            known.elements += elements;
        } else {
            adapters.push(AdapterSummary {
                name: entry.name.clone(),
                method: entry.origin.method.info().title,
                info: entry.origin.method.info(),
                active: attached.is_active(&entry.name),
                places: 1,
                elements,
            });
        }
    }
    Summary {
        counts: count(attached),
        adapters,
        merged: attached.is_merged(),
        kept_bytes: attached.stacks().map(|(_, stack)| stack.kept_bytes()).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(22_786_944), "22,786,944");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
