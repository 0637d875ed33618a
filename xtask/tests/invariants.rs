//! The invariants of docs/architecture.md that are about something that the code does not contain. Each is a search.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The workspace's root, where cargo runs this: one target folder may serve several checkouts.
fn root() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    folder.parent().unwrap().to_owned()
}

/// A line of code: without comments, and of no test at the end of a file.
struct Line {
    file: String,
    code: String,
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

fn lines(folder: &str) -> Vec<Line> {
    let mut files = Vec::new();
    rust_files(&root().join(folder), &mut files);
    let mut found = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root()).unwrap().to_str().unwrap();
        let file = file.replace('\\', "/");
        let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for line in before_tests.lines() {
            let code = line.split("//").next().unwrap().trim().to_owned();
            found.push(Line {
                file: file.clone(),
                code,
            });
        }
    }
    assert!(found.len() > 100, "{folder} has no code");
    found
}

/// Lines of `folder` in which `is_wrong` finds something, outside of files that begin with one of `but_in`.
fn violations(folder: &str, but_in: &[&str], is_wrong: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = lines(folder).into_iter();
    let wrong = lines.filter(|line| {
        is_wrong(&line.code) && !but_in.iter().any(|place| line.file.starts_with(place))
    });
    wrong
        .map(|line| format!("{}: {}", line.file, line.code))
        .collect()
}

/// Words of a line, in lower case; a name in snake case or camel case is several words.
fn words(code: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut last = ' ';
    for letter in code.chars() {
        if !letter.is_ascii_alphanumeric() || (letter.is_uppercase() && last.is_lowercase()) {
            words.push(String::new());
        }
        if letter.is_ascii_alphanumeric() {
            let word = words.last_mut().unwrap();
            word.push(letter.to_ascii_lowercase());
        }
        last = letter;
    }
    words
}

#[test]
fn names_are_split_into_words() {
    let found = words("let x = LoraConfig::new(lora_alpha)");
    for word in ["lora", "config", "new", "alpha"] {
        assert!(found.iter().any(|other| other == word), "{word}: {found:?}");
    }
}

#[test]
fn core_knows_no_method() {
    let methods = [
        "lora",
        "adalora",
        "dora",
        "rslora",
        "pissa",
        "olora",
        "eva",
        "loha",
        "lokr",
        "krona",
        "vera",
        "randlora",
        "vblora",
        "hira",
        "miss",
        "oft",
        "boft",
        "hra",
        "c3a",
        "fourierft",
        "said",
        "ia3",
        "houlsby",
        "pfeiffer",
        "compacter",
        "adapterplus",
        "adapterdrop",
        "sparseadapter",
        "adamix",
        "bitfit",
        "qlora",
        "loftq",
        "shira",
        "reft",
        "lst",
        "shadow",
    ];
    // The values of upstream's field `bias`, which several methods share.
    let shared = "lora_only";
    let found = violations("crates/peft-core/src", &[], |code| {
        let code = code.replace(shared, "");
        words(&code)
            .iter()
            .any(|word| methods.contains(&word.as_str()))
    });
    assert_eq!(found, Vec::<String>::new());
}

/// `ModuleVisitor` and `ModuleMapper` are how every Burn module is walked through; only these belong to adapters.
#[test]
fn one_folder_uses_burns_mechanism() {
    let mechanism = ["Reparameterization", "Reparameterizer"];
    let is_wrong = |code: &str| {
        // The family of methods that has the same name.
        let code = code.replace("Family::Reparameterization", "");
        let code = code.replace("family = Reparameterization", "");
        let code = if code == "Reparameterization," || code.starts_with("Self::Reparameterization")
        {
            ""
        } else {
            code.as_str()
        };
        let mut names = code.split(|letter: char| !letter.is_alphanumeric());
        names.any(|name| mechanism.contains(&name))
    };
    // `slot.rs` has the name under which Burn shows the mechanism to visitors.
    let but_in = [
        "crates/peft-core/src/attached/",
        "crates/peft-core/src/slot.rs",
    ];
    assert_eq!(
        violations("crates", &but_in, is_wrong),
        Vec::<String>::new()
    );
    let there = violations("crates/peft-core/src/attached", &[], is_wrong);
    assert!(
        !there.is_empty(),
        "the mechanism has other names: change them here"
    );
}

#[test]
fn one_file_of_core_names_backends() {
    let is_wrong = |code: &str| {
        let names = [
            "\"flex\"",
            "\"ndarray\"",
            "\"cuda\"",
            "\"wgpu\"",
            "Device::flex",
            "Device::ndarray",
            "Device::cuda",
            "Device::wgpu",
            "Device::cpu",
        ];
        names.iter().any(|name| code.contains(name))
    };
    let but_in = ["crates/peft-core/src/device.rs"];
    assert_eq!(
        violations("crates/peft-core/src", &but_in, is_wrong),
        Vec::<String>::new()
    );
    assert!(!violations("crates/peft-core/src", &[], is_wrong).is_empty());
}

#[test]
fn nine_files_have_unsafe_code() {
    let but_in = [
        "crates/peft-ops/src/cpu/bf16/amx.rs",
        "crates/peft-ops/src/cpu/bf16/amx/tiles.rs",
        "crates/peft-ops/src/cpu/bf16/avx512.rs",
        "crates/peft-ops/src/cpu/bf16/avx512/packing.rs",
        "crates/peft-ops/src/cpu/buffers.rs",
        "crates/peft-ops/src/cpu/matrix.rs",
        "crates/peft-ops/src/cpu/product.rs",
        "crates/peft-ops/src/cpu/right.rs",
        "crates/peft-ops/src/memory.rs",
    ];
    let is_wrong = |code: &str| {
        code.split(|letter: char| !letter.is_alphanumeric())
            .any(|word| word == "unsafe")
    };
    for folder in ["crates", "benches", "xtask/src"] {
        assert_eq!(violations(folder, &but_in, is_wrong), Vec::<String>::new());
    }
    for file in but_in {
        assert!(
            violations("crates/peft-ops/src", &[], is_wrong)
                .iter()
                .any(|line| line.starts_with(file))
        );
    }
}

/// An invariant that is searched for is marked in the page. Two more are tested in `claims.rs`: what crates depend on, and
/// who writes files.
#[test]
fn the_page_marks_what_is_searched_for() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let marked: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("- ● "))
        .collect();
    for words in [
        "knows no method",
        "on no other family",
        "uses Burn's mechanism",
        "names a Burn backend",
        "writes the user's files",
        "have unsafe code",
        "links no model, no tensor and no network",
    ] {
        let count = marked.iter().filter(|line| line.contains(words)).count();
        assert_eq!(count, 1, "{words}");
    }
    assert_eq!(marked.len(), 7, "what is new is searched for here");
}

/// Headings of a page, as links name them.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text
                .chars()
                .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

#[test]
fn links_between_pages_lead_to_a_file_and_a_heading() {
    let docs = root().join("docs");
    let mut pages: Vec<PathBuf> = [docs.clone(), docs.join("methods")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    pages.push(root().join("README.md"));
    let mut links = 0;
    for page in pages {
        // Code is no text: every other part between fences.
        let text = fs::read_to_string(&page).unwrap();
        let text: String = text.split("```").step_by(2).collect();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(
                    there.iter().any(|other| other == anchor),
                    "{}: {link}",
                    page.display()
                );
            }
            links += 1;
        }
    }
    assert!(links > 50);
}
