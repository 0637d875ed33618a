//! What `peft-core` shows is for somebody: each of its public names is written somewhere outside of its source, in another
//! crate, a test, a page or the template of a crate.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Types that public functions return, or that stand behind an alias, and that nobody has to name.
const UNNAMED: [&str; 7] = [
    "AdapterSummary",
    "GradientStatistics",
    "InputStatistics",
    "LayerGroup",
    "ModuleToSave",
    "Sealed",
    "SiteType",
];

/// The workspace's root, where cargo runs this: one target folder may serve several checkouts.
fn root() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    folder.parent().unwrap().to_owned()
}

/// Files of code and text below a folder, but not below `but`.
fn texts(folder: &Path, but: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path == but {
            continue;
        }
        if path.is_dir() {
            texts(&path, but, found);
        } else if path
            .extension()
            .is_some_and(|end| end == "rs" || end == "md")
        {
            found.push(path);
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

/// The name of the public item that a line begins.
fn public_name(line: &str) -> Option<&str> {
    let item = line.trim_start().strip_prefix("pub ")?;
    let mut words = words(item).filter(|word| !["const", "unsafe", "async"].contains(word));
    let kinds = ["fn", "struct", "enum", "trait", "type", "static", "mod"];
    match words.next()? {
        kind if kinds.contains(&kind) => words.next(),
        // A constant: its kind is left out above.
        name => name
            .chars()
            .all(|letter| letter.is_uppercase() || letter == '_' || letter.is_numeric())
            .then_some(name),
    }
}

#[test]
fn a_line_says_what_is_public() {
    for (line, name) in [
        ("    pub fn attach(&self) {", Some("attach")),
        ("pub const fn new() {", Some("new")),
        ("pub const CONFIG_FILE: &str = \"\";", Some("CONFIG_FILE")),
        ("pub(crate) fn hidden() {", None),
        ("    pub name: String,", None),
        ("pub use crate::adapter::init::Init;", None),
    ] {
        assert_eq!(public_name(line), name, "{line}");
    }
}

#[test]
fn every_public_name_of_core_is_used_outside_of_it() {
    let root = root();
    let core = root.join("crates/peft-core/src");
    let mut outside = Vec::new();
    for folder in ["crates", "benches", "docs", "xtask"] {
        texts(&root.join(folder), &core, &mut outside);
    }
    // This file names those that nobody names.
    outside.retain(|path| !path.ends_with("xtask/tests/surface.rs"));
    outside.push(root.join("README.md"));
    let mut known = HashSet::new();
    for path in outside {
        let text = fs::read_to_string(path).unwrap();
        known.extend(words(&text).map(str::to_string));
    }
    let (mut inside, mut unused, mut count) = (Vec::new(), BTreeSet::new(), 0);
    texts(&core, Path::new(""), &mut inside);
    for path in inside {
        for line in fs::read_to_string(path).unwrap().lines() {
            let Some(name) = public_name(line) else {
                continue;
            };
            count += 1;
            if !known.contains(name) {
                unused.insert(name.to_string());
            }
        }
    }
    assert!(count > 300, "{count} public names");
    let expected: BTreeSet<String> = UNNAMED.map(str::to_string).into();
    assert_eq!(
        unused, expected,
        "make what nothing outside of core names `pub(crate)`"
    );
}
