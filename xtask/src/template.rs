//! A crate of one's own that adds a method: the guide's example and the files in `template/`, under another name.

use crate::{error::Error, workspace};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What stands for the new name, in the four ways in which it is written.
const NAME: &str = "column-scale";

/// The method of the guide `docs/adding-a-method.md`: the guide, its test and new crates have one text.
const EXAMPLE: &str = include_str!("../../crates/peft-conformance/tests/guide/column_scale.rs");

const FILES: [(&str, &str); 3] = [
    ("src/lib.rs", EXAMPLE),
    (
        "tests/conformance.rs",
        include_str!("../template/tests/conformance.rs"),
    ),
    (
        "examples/compare.rs",
        include_str!("../template/examples/compare.rs"),
    ),
];

const MANIFEST: &str = include_str!("../template/manifest.toml");

/// Dependencies as this workspace has them.
const SHARED: [&str; 1] = ["burn"];

/// What to write where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The method's name, as in `column-scale`: small letters, digits and hyphens
    name: String,
    /// The folder that the crate's folder is made in
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// Writes a crate and says what to do with it.
///
/// # Errors
/// As [`write`](fn@write).
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let folder = write(&arguments.folder, &arguments.name)?;
    println!(
        "{} is a crate with a method that works. Next:\n  \
         cd {}\n  \
         cargo test --release                                # what every method holds to\n  \
         cargo run --release --example compare -- --suite smoke --methods {}\n\
         then replace the mathematics in src/lib.rs by yours; docs/adding-a-method.md says how.",
        arguments.name,
        folder.display(),
        arguments.name,
    );
    Ok(())
}

/// Writes the crate `name` into a new folder of its name in `parent`, and returns that folder.
///
/// # Errors
/// A name that is none, a folder that is there already, what cannot be written. There is then no such folder.
pub(crate) fn write(parent: &Path, name: &str) -> Result<PathBuf, Error> {
    check(name)?;
    let parent = env::current_dir()
        .map_err(Error::io("find", "."))?
        .join(parent);
    let folder = parent.join(name);
    if folder.exists() {
        return Err(Error::Exists { path: folder });
    }
    let root = workspace::root();
    let own = root.join("Cargo.toml");
    let own = fs::read_to_string(&own).map_err(Error::io("read", &own))?;
    let partial =
        tempfile::tempdir_in(&parent).map_err(Error::io("create a folder in", &parent))?;
    let put = |path: &str, text: &str| {
        let path = partial.path().join(path);
        let inside = path.parent().unwrap_or(partial.path());
        fs::create_dir_all(inside).map_err(Error::io("create", inside))?;
        fs::write(&path, text).map_err(Error::io("write", &path))
    };
    for (path, text) in FILES {
        put(path, &renamed(text, name))?;
    }
    put("Cargo.toml", &renamed(&manifest(&own, &root), name))?;
    let lock = root.join("Cargo.lock");
    let lock = fs::read_to_string(&lock).map_err(Error::io("read", &lock))?;
    put("Cargo.lock", &lock)?;
    let partial = partial.keep();
    fs::rename(&partial, &folder).map_err(Error::io("create", &folder))?;
    Ok(folder)
}

/// A name of a crate that also makes names of types and constants.
fn check(name: &str) -> Result<(), Error> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let words = name.split('-').all(|word| !word.is_empty());
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if starts && words && name.chars().all(letters) {
        Ok(())
    } else {
        Err(Error::MethodName {
            name: name.to_owned(),
        })
    }
}

/// The template's text with the method's name in place of its own.
fn renamed(text: &str, name: &str) -> String {
    let spellings: [fn(&str) -> String; 5] = [
        str::to_owned,
        |name| name.replace('-', "_"),
        |name| name.replace('-', "_").to_uppercase(),
        |name| name.split('-').map(capital).collect(),
        |name| capital(&name.replace('-', " ")),
    ];
    spellings.iter().fold(text.to_owned(), |text, spelling| {
        text.replace(&spelling(NAME), &spelling(name))
    })
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// The manifest: dependencies and profiles are those of the workspace's manifest `own`, so that a shared target
/// folder has to build nothing twice.
fn manifest(own: &str, root: &Path) -> String {
    let mut text = MANIFEST.to_owned();
    let line = |name: &&str| {
        own.lines()
            .find(|line| line.split_once(" = ").is_some_and(|(key, _)| key == *name))
    };
    let path = |name: &str| {
        let folder = root.join("crates").join(name);
        let folder = folder.display();
        format!("{name} = {{ path = '{folder}', default-features = false }}\n")
    };
    for line in SHARED.iter().filter_map(line) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&path("peft-core"));
    text.push_str("\n[dev-dependencies]\n");
    text.push_str(&path("peft-compare"));
    text.push_str(&path("peft-conformance"));
    let mut profile = false;
    for line in own.lines() {
        if line.starts_with('[') {
            profile = line.starts_with("[profile.");
            if profile {
                text.push('\n');
            }
        }
        if profile && !line.is_empty() && !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_in_every_way() {
        let text = "column-scale column_scale COLUMN_SCALE ColumnScale Column scale";
        let found = renamed(text, "my-method2");
        assert_eq!(
            found,
            "my-method2 my_method2 MY_METHOD2 MyMethod2 My method2"
        );
        for (path, text) in FILES {
            let text = renamed(text, "my-method").to_lowercase();
            assert!(text.contains("my_method"), "{path}");
            for left in [
                "column-scale",
                "column_scale",
                "columnscale",
                "column scale",
            ] {
                assert!(!text.contains(left), "{path}: {left}");
            }
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for name in [
            "",
            "Scale",
            "column scale",
            "column_scale",
            "2scale",
            "-scale",
            "a--b",
            "a-",
            "../a",
        ] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn the_crate_is_whole_or_not_there() {
        let parent = tempfile::tempdir().unwrap();
        let folder = write(parent.path(), "my-method").unwrap();
        for file in [
            "Cargo.toml",
            "Cargo.lock",
            "src/lib.rs",
            "tests/conformance.rs",
        ] {
            assert!(folder.join(file).is_file(), "{file}");
        }
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for part in [
            "name = \"my-method\"",
            "burn = {",
            "[profile.release]",
            "peft-core = {",
        ] {
            assert!(manifest.contains(part), "{part} in {manifest}");
        }
        let error = write(parent.path(), "my-method").unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        assert!(write(parent.path(), "Column").is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
