//! README's table of methods says what the registry and the tests of this repository say.

use std::path::PathBuf;
use std::{env, fs};

use peft_parity::methods::{Evidence, Rows, readme};

/// The repository's root, where cargo runs this: one target folder may serve several checkouts.
fn root() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    folder.join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn readme_has_the_table_that_the_registry_and_the_tests_give() {
    let written = readme(&root()).unwrap();
    assert!(
        written == read("README.md"),
        "README's table of methods is out of date: run `cargo xtask methods`"
    );
}

/// The counts of the table are asserted by the tests of counts.
#[test]
fn every_count_of_the_table_is_asserted() {
    let asserted = read("crates/peft/tests/counts.rs");
    let rows = Rows::read(&root()).unwrap();
    let mut seen = 0;
    for row in &rows.rows {
        let numbers = row
            .trains
            .split(|letter: char| !(letter.is_ascii_digit() || letter == ','))
            .map(|number| number.trim_matches(','));
        // The first is the count; numbers behind `(` are the configuration's.
        for number in numbers.take(1).filter(|number| !number.is_empty()) {
            let number = number.replace(',', "_");
            assert!(asserted.contains(&number), "{}: {number}", row.page);
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

/// Every method but full fine-tuning, which is no adapter, is in the conformance suite of its crate.
#[test]
fn what_has_no_other_evidence_is_in_the_conformance_suite() {
    for family in [
        "selective",
        "additive",
        "reparameterization",
        "soft-prompt",
        "hybrid",
    ] {
        let suite = read(&format!("crates/peft-{family}/tests/conformance.rs"));
        let suite = suite.split_once("conformance_suite!(").expect("a suite").1;
        assert!(suite.trim_start().starts_with("METHODS"), "{family}");
    }
}

/// The versions that the table names are those that wrote the checkpoints.
#[test]
fn the_versions_are_those_that_wrote_the_checkpoints() {
    let page = read("crates/peft-parity/tests/golden/README.md");
    assert!(page.contains("peft 0.21.") && page.contains("adapters 1.3."));
}

#[test]
fn checkpoints_tell_their_method_or_a_row_names_them() {
    let rows = Rows::read(&root()).unwrap();
    let evidence = Evidence::gather(&root()).unwrap();
    assert!(evidence.cases.len() > 100, "{}", evidence.cases.len());
    for case in &evidence.cases {
        let named = rows.rows.iter().any(|row| row.cases.contains(&case.name));
        assert!(case.method.is_some() || named, "{}", case.name);
    }
    for row in &rows.rows {
        for name in &row.cases {
            let found = evidence.cases.iter().any(|case| case.name == *name);
            assert!(found, "{}: no test names a case `{name}`", row.page);
        }
    }
}
