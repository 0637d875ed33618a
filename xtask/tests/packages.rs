//! What is published is ready for it: metadata, licences, and a README that is the crate's front page.

use cargo_metadata::{Metadata, MetadataCommand, Package};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What README files of published crates say before a path of this repository.
const REPOSITORY: &str = "https://github.com/peft-rs/peft-rs/blob/main/";

/// The workspace's root, where cargo runs this: one target folder may serve several checkouts.
fn root() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    folder.parent().unwrap().to_owned()
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml")).no_deps();
    command.exec().unwrap()
}

fn is_published(package: &Package) -> bool {
    package.publish.as_ref().is_none_or(|to| !to.is_empty())
}

fn folder(package: &Package) -> &Path {
    package.manifest_path.parent().unwrap().as_std_path()
}

#[test]
fn what_is_not_published_says_why() {
    let metadata = metadata();
    let (published, ours): (Vec<_>, Vec<_>) =
        metadata.packages.iter().partition(|p| is_published(p));
    assert!(published.len() > 10 && ours.len() > 3);
    for package in ours {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        let (before, _) = manifest.split_once("publish = false").unwrap();
        let reason = before.trim_end().lines().last().unwrap();
        assert!(
            reason.starts_with("# "),
            "{}: why is it not published?",
            package.name
        );
    }
}

#[test]
fn published_crates_have_all_metadata() {
    for package in metadata().packages.iter().filter(|p| is_published(p)) {
        let name = package.name.as_str();
        let described = package.description.as_ref().map_or(0, String::len);
        assert!((40..=200).contains(&described), "{name}: description");
        assert_eq!(
            package.license.as_deref(),
            Some("MIT OR Apache-2.0"),
            "{name}"
        );
        let documentation = format!("https://docs.rs/{name}");
        assert_eq!(
            package.documentation.as_ref(),
            Some(&documentation),
            "{name}"
        );
        assert!(package.repository.is_some(), "{name}: repository");
        assert!(package.rust_version.is_some(), "{name}: rust-version");
        assert!(
            (1..=5).contains(&package.keywords.len()),
            "{name}: keywords"
        );
        assert!(
            package.keywords.iter().all(|word| word.len() <= 20),
            "{name}: keywords"
        );
        assert!(!package.categories.is_empty(), "{name}: categories");
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            let theirs = fs::read(folder(package).join(licence)).unwrap();
            assert_eq!(
                theirs,
                fs::read(root().join(licence)).unwrap(),
                "{name}: {licence}"
            );
        }
    }
}

#[test]
fn the_readme_is_the_front_page() {
    for package in metadata().packages.iter().filter(|p| is_published(p)) {
        let name = package.name.as_str();
        let code = fs::read_to_string(folder(package).join("src/lib.rs")).unwrap();
        let first = code.lines().next().unwrap();
        assert_eq!(first, "#![doc = include_str!(\"../README.md\")]", "{name}");
        let page = fs::read_to_string(folder(package).join("README.md")).unwrap();
        assert!(page.starts_with(&format!("# {name}\n")), "{name}: title");
        assert!(page.contains("```rust"), "{name}: no example");
        assert!(page.contains("\n## Licence\n"), "{name}: licence");
        // A relative link would lead nowhere on a page of the registry.
        for link in page.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            assert!(link.starts_with("https://"), "{name}: {link}");
        }
    }
}

#[test]
fn links_into_the_repository_lead_to_a_file() {
    let mut links = 0;
    for package in metadata().packages.iter().filter(|p| is_published(p)) {
        let page = fs::read_to_string(folder(package).join("README.md")).unwrap();
        for link in page.split(REPOSITORY).skip(1) {
            let path = link.split([')', '#']).next().unwrap();
            assert!(root().join(path).is_file(), "{}: {path}", package.name);
            links += 1;
        }
    }
    assert!(links > 10);
}
