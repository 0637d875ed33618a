//! Which file of a crate takes which name from which other file.

use super::source::{Module, Source};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// One name that one file takes from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) name: String,
    /// Where `from` first names it.
    pub(super) line: usize,
}

/// The imports of a crate. A name that is handed on (`pub use`) is taken from the file that defines it, and handing
/// it on is no import.
pub(super) fn imports(source: &Source) -> Vec<Import> {
    let mut found: BTreeSet<Import> = BTreeSet::new();
    for (index, module) in source.modules.iter().enumerate() {
        let mut add = |segments: &[String], line: usize, target: Target| {
            let Target::Item(target) = target else {
                return;
            };
            let to = &source.modules[target].file;
            if *to != module.file {
                found.insert(Import {
                    from: module.file.clone(),
                    to: to.clone(),
                    name: segments.last().cloned().unwrap_or_default(),
                    line,
                });
            }
        };
        for used in &module.uses {
            if used.public || used.glob {
                continue;
            }
            if let Some(target) = source.resolve(index, &used.segments, 0) {
                add(&used.segments, used.line, target);
            }
        }
        for mention in &module.mentions {
            if mention.certain
                && let Some(target) = source.resolve(index, &mention.segments, 0)
            {
                add(&mention.segments, mention.line, target);
            }
        }
    }
    // The first line of each name is enough.
    let mut imports: Vec<Import> = Vec::new();
    for import in found {
        let same = |last: &Import| {
            last.from == import.from && last.to == import.to && last.name == import.name
        };
        if !imports.last().is_some_and(same) {
            imports.push(import);
        }
    }
    imports
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(usize),
    /// An item of this module.
    Item(usize),
    /// Something of another crate.
    Elsewhere,
}

/// Names that are handed on by names that are handed on, and so forth: more is a circle of `use`.
const LONGEST: usize = 32;

impl Source {
    /// Follows a path that is written in the module `here`; `None` for local names.
    fn resolve(&self, here: usize, segments: &[String], depth: usize) -> Option<Target> {
        let (first, mut rest) = segments.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(here),
            "super" => Target::Module(self.modules[here].parent?),
            name => self.name(here, name, depth)?,
        };
        while let (Target::Module(module), Some((name, after))) = (at, rest.split_first()) {
            at = if name == "super" {
                Target::Module(self.modules[module].parent?)
            } else {
                // What is not found is written by a macro.
                self.name(module, name, depth)
                    .unwrap_or(Target::Item(module))
            };
            rest = after;
        }
        Some(at)
    }

    /// A name as it is known in a module.
    fn name(&self, module: usize, name: &str, depth: usize) -> Option<Target> {
        if depth > LONGEST {
            return None;
        }
        let Module {
            children,
            items,
            uses,
            ..
        } = &self.modules[module];
        if items.contains(name) {
            return Some(Target::Item(module));
        }
        if let Some(child) = children.get(name) {
            return Some(Target::Module(*child));
        }
        let follow = |segments: &[String]| {
            // `use name::x`, where nothing here is called so, is another crate.
            let inside = matches!(segments[0].as_str(), "crate" | "self" | "super")
                || children.contains_key(&segments[0])
                || items.contains(&segments[0])
                || uses.iter().any(|other| {
                    other.alias.as_ref() == Some(&segments[0]) && other.segments != segments
                });
            if inside {
                self.resolve(module, segments, depth + 1)
            } else {
                Some(Target::Elsewhere)
            }
        };
        if let Some(used) = uses.iter().find(|used| used.alias.as_deref() == Some(name)) {
            return follow(&used.segments);
        }
        if module == 0
            && let Some(defining) = self.macros.get(name)
        {
            return Some(Target::Item(*defining));
        }
        uses.iter()
            .filter(|used| used.glob)
            .find_map(|used| match follow(&used.segments)? {
                Target::Module(other) if other != module => self.name(other, name, depth + 1),
                _ => None,
            })
    }
}

/// A path for people, from `root` on.
pub(super) fn shown(path: &Path, root: &Path) -> String {
    path.strip_prefix(root)
        .unwrap_or(path)
        .display()
        .to_string()
}
