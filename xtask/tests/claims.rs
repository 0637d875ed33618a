//! What the README and the documentation say in figures is what the repository has. Where a sentence is written
//! anew, its figure is sought here by the words around it.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

/// The workspace's root, where cargo runs this: one target folder may serve several checkouts.
fn root() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    folder.parent().unwrap().to_owned()
}

/// A file's text, with one space for every line end.
fn text(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The figure that stands for `#` in `words`, where they first occur in `text`.
fn figure<'a>(text: &'a str, words: &str) -> &'a str {
    let (before, after) = words.split_once('#').unwrap();
    let mut rest = text;
    while let Some(at) = rest.find(before) {
        let found = &rest[at + before.len()..];
        let length = found
            .find(|letter: char| !(letter.is_ascii_digit() || ".,".contains(letter)))
            .unwrap_or(found.len());
        let number = found[..length].trim_end_matches(['.', ',']);
        if !number.is_empty() && found[number.len()..].starts_with(after) {
            return number;
        }
        rest = &rest[at + before.len().max(1)..];
    }
    panic!("the text does not say `{words}` with a figure for `#`")
}

fn count(text: &str, words: &str) -> usize {
    figure(text, words).parse().unwrap()
}

#[test]
fn a_figure_is_found_by_the_words_around_it() {
    let text = "Of 7 tests, and of 12 cases: 3.5 (q, v), 4.";
    assert_eq!(figure(text, "of # cases"), "12");
    assert_eq!(figure(text, ": # (q"), "3.5");
    assert_eq!(figure(text, "), #"), "4");
}

/// The names of the conformance tests, from the one list of them.
fn conformance_tests() -> Vec<String> {
    let source = text("crates/peft-conformance/src/suite/mod.rs");
    let (_, list) = source.split_once("$($callback)::+! {").unwrap();
    let (list, _) = list.split_once('}').unwrap();
    list.split(',').map(|name| name.trim().to_owned()).collect()
}

#[test]
fn the_conformance_tests_are_as_many_as_is_said_and_all_are_described() {
    let tests = conformance_tests();
    assert!(tests.contains(&"low_precision".to_owned()), "{tests:?}");
    for (file, words) in [
        ("README.md", "the-conformance-suite), # tests"),
        ("CHANGELOG.md", "conformance suite of # tests"),
        ("docs/adding-a-method.md", "There are #"),
        ("docs/method-reference.md", "There are #"),
        ("docs/architecture.md", "the # conformance tests"),
        ("docs/introduction.md", "the # conformance tests"),
    ] {
        assert_eq!(count(&text(file), words), tests.len(), "{file}");
    }
    let guide = text("docs/method-reference.md");
    for test in tests {
        assert!(guide.contains(&format!("| `{test}` |")), "{test}");
    }
}

/// Folders of cases below `folder`: a checkpoint beside what it computes, or several that are composed.
fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let has = |file: &str| path.join(file).exists();
        let beside = folder.join("base").exists() && !path.ends_with("base");
        if !path.is_dir() {
            continue;
        }
        if beside && (has("adapter_config.json") || has("io.safetensors")) {
            found.push(path);
        } else {
            cases(&path, found);
        }
    }
}

/// Whether a script puts the name together: `f"waveft_{wavelet}"`.
fn puts_together(script: &str, name: &str) -> bool {
    let mut begins = script.split("f\"").skip(1);
    begins.any(|text| {
        let begin = text.split('{').next().unwrap_or_default();
        begin.len() > 3 && !begin.contains('"') && name.starts_with(begin)
    })
}

#[test]
fn the_vendored_cases_are_as_many_as_is_said() {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let golden = entry.unwrap().path().join("tests/golden");
        if golden.is_dir() {
            cases(&golden, &mut found);
        }
    }
    let page = text("crates/peft-parity/tests/golden/README.md");
    assert_eq!(count(&page, "runs all # cases"), found.len());
    // Files as other tools respell them; no script writes them.
    let (respelled, found): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|path| path.parent().unwrap().ends_with("llama_spellings"));
    // Of a composition, the files are in folders below. Of a start, only what an adapter begins with is there.
    let peft = |path: &PathBuf| {
        let below = fs::read_dir(path).unwrap();
        let below = below.map(|entry| entry.unwrap().path());
        let file = |folder: &Path| folder.join("adapter_model.safetensors").exists();
        file(path)
            || path.join("init.safetensors").exists()
            || below.into_iter().any(|path| file(&path))
    };
    let (of_peft, of_hub): (Vec<_>, Vec<_>) = found.iter().partition(|path| peft(path));
    let readme = text("README.md");
    assert_eq!(count(&readme, "The repository has # cases"), of_peft.len());
    assert_eq!(count(&readme, "wrote, # of AdapterHub"), of_hub.len());
    assert_eq!(
        count(&readme, "and # files as other tools"),
        respelled.len()
    );
    // What is measured is there, and by whom it was written.
    for path in &found {
        assert!(path.join("io.safetensors").exists(), "{}", path.display());
    }
    let scripts = [
        "generate_hf_peft.py",
        "generate_hf_more.py",
        "generate_seeded.py",
        "generate_starts.py",
        "generate_shadow.py",
    ];
    let scripts = scripts.map(|script| text(&format!("crates/peft-parity/tests/golden/{script}")));
    for path in &of_peft {
        let name = path.file_name().unwrap().to_str().unwrap();
        let named = |script: &String| {
            script.contains(&format!("\"{name}\"")) || puts_together(script, name)
        };
        assert!(scripts.iter().any(named), "no script writes {name}");
    }
    let script = text("crates/peft-parity/tests/golden/generate_adapterhub.py");
    for path in &of_hub {
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = name.strip_prefix("adapterhub_").unwrap_or(name);
        assert!(
            script.contains(&format!("\"{name}\"")) || puts_together(&script, name),
            "no script writes {name}"
        );
    }
}

#[test]
fn bitsandbytes_cases_are_as_many_as_is_said() {
    let file = "crates/peft-quantization/tests/golden/bitsandbytes.safetensors";
    let bytes = fs::read(root().join(file)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header = String::from_utf8_lossy(&bytes[8..8 + usize::try_from(length).unwrap()]);
    let cases = header.matches(".packed\"").count();
    assert_eq!(count(&text("README.md"), "bit by bit, # cases"), cases);
}

/// The methods of the default suite, and the two references.
#[test]
fn the_comparison_has_as_many_configurations_as_is_said() {
    let suites = text("benches/compare/suites.toml");
    let (_, default) = suites.split_once("name = \"default\"").unwrap();
    let (_, methods) = default.split_once("methods = [").unwrap();
    let (methods, _) = methods.split_once(']').unwrap();
    let all = methods.matches('"').count() / 2 + 2;
    let said = count(&text("README.md"), "transposed: # configurations");
    let page = text("docs/comparison.md");
    assert_eq!(count(&page, "steps) × # configurations"), said);
    assert_eq!(count(&page, "with one seed: # runs"), 3 * said);
    assert_eq!(said, all);
}

#[test]
fn crates_depend_on_what_the_architecture_says() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    let short = |name: &str| name.strip_prefix("peft-").unwrap_or(name).to_owned();
    let mut real: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let names: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    for package in &metadata.packages {
        let ours = package.dependencies.iter().filter(|dependency| {
            dependency.kind == DependencyKind::Normal && names.contains(dependency.name.as_str())
        });
        let ours = ours.map(|dependency| short(&dependency.name)).collect();
        real.insert(short(package.name.as_str()), ours);
    }
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, table) = page.split_once("| crate | holds | depends on |").unwrap();
    let mut said = BTreeMap::new();
    let mut families = BTreeSet::new();
    for row in table.lines().skip(2).take_while(|row| row.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [crates, _, on] = cells[..] else {
            panic!("{row}")
        };
        let names = crates.split('`').skip(1).step_by(2);
        let crates: Vec<String> = names
            .filter(|name| !name.ends_with('/'))
            .map(short)
            .collect();
        if crates.len() > 1 {
            families.extend(crates.clone());
        }
        let words = on.split([',', ';']).map(str::trim);
        let on: BTreeSet<String> = words
            .filter(|word| !word.contains("Burn"))
            .map(short)
            .collect();
        for name in crates {
            said.insert(name, on.clone());
        }
    }
    for on in said.values_mut() {
        if on.remove("families") {
            on.extend(families.clone());
        }
    }
    assert_eq!(said, real);
}

#[test]
fn the_ratios_of_qlora_are_those_that_were_measured() {
    let (readme, measured) = (text("README.md"), text("docs/performance.md"));
    let (_, cell) = readme
        .split_once("QLoRA over LoRA: peak memory; step | ")
        .unwrap();
    let (memory, steps) = cell.split('|').next().unwrap().split_once("; ").unwrap();
    let (narrow, all) = steps.trim().split_once(", ").unwrap();
    for (said, row) in [
        (figure(memory, "# (q, v)"), "QLoRA q, v, peak memory"),
        (
            figure(memory, "# (all-linear)"),
            "QLoRA all-linear, peak memory",
        ),
        (narrow, "QLoRA q, v, step"),
        (all, "QLoRA all-linear, step"),
    ] {
        let words = format!("| {row} over LoRA's | # ");
        assert_eq!(said, figure(&measured, &words), "{row}");
    }
}

#[test]
fn the_versions_that_are_asked_for_are_those_that_are_needed() {
    let manifest = text("Cargo.toml");
    let rust = figure(&manifest, "rust-version = \"#\"");
    let burn = figure(&manifest, "burn = { version = \"=#\"");
    for file in ["README.md", "CHANGELOG.md"] {
        let page = text(file);
        assert_eq!(figure(&page, "Rust #"), rust, "{file}");
        assert_eq!(figure(&page, "`=#`"), burn, "{file}");
    }
}

/// Files of the user's are written in `peft_core::files`, where a kill and a full disk were thought of.
#[test]
fn one_place_writes_files() {
    // `peft-fetch` links no Burn and has the same in a file of its own; what it downloads lies in folders that get
    // their names when they are whole. The others only serve tests.
    let apart = ["peft-fetch", "peft-testing", "peft-conformance"];
    let mut found = BTreeSet::new();
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let mut folders: Vec<PathBuf> = crates
        .map(|entry| entry.unwrap().path())
        .filter(|path| !apart.iter().any(|name| path.ends_with(name)))
        .map(|path| path.join("src"))
        .collect();
    folders.push(root().join("benches/src"));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let code = fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]").next().unwrap();
            let writes = |line: &&str| {
                ["fs::write(", "fs::rename(", "File::create("]
                    .iter()
                    .any(|call| line.contains(call))
            };
            let place = path.strip_prefix(root()).unwrap().display().to_string();
            let lines = code.lines().filter(writes);
            found.extend(lines.map(|line| format!("{place}: {}", line.trim())));
        }
    }
    found.retain(|line| !line.starts_with("crates/peft-core/src/files.rs: "));
    let no_files = [
        "crates/peft-compare/src/measure.rs: let _ = fs::write(\"/proc/self/clear_refs\", \"5\");",
        "crates/peft-compare/src/suite.rs: let lock = std::fs::File::create(&path).map_err(io(&path))?;",
        "crates/peft-train/src/memory.rs: let _ = fs::write(\"/proc/self/clear_refs\", \"5\");",
    ];
    assert_eq!(found, no_files.map(String::from).into());
}
