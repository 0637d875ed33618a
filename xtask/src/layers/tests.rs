use super::*;
use std::fs;

/// A crate of these files.
fn package(files: &[(&str, &str)]) -> (tempfile::TempDir, Package) {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join("src").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = folder.path().join("src/lib.rs");
    let package = Package::read("house", folder.path(), &root).unwrap();
    (folder, package)
}

fn circles(files: &[(&str, &str)]) -> String {
    package(files).1.circles()
}

/// A crate of the modules `a` and `b`.
fn two<'a>(a: &'a str, b: &'a str) -> [(&'static str, &'a str); 3] {
    [("lib.rs", "mod a;\nmod b;\n"), ("a.rs", a), ("b.rs", b)]
}

#[test]
fn a_circle_of_two_files_is_named_with_what_ties_it() {
    let text = circles(&[
        ("lib.rs", "mod a;\nmod b;\n"),
        ("a.rs", "use crate::b::Down;\npub struct Up(Down);\n"),
        (
            "b.rs",
            "\npub struct Down;\nfn up() { let _: Option<super::a::Up> = None; }\n",
        ),
    ]);
    assert_eq!(
        text,
        "house: in `crate`, a, b import each other in a circle:\n  \
         a -> b: 1\n    src/a.rs:1 takes Down from src/b.rs\n  \
         b -> a: 1\n    src/b.rs:3 takes Up from src/a.rs\n"
    );
}

#[test]
fn imports_downward_are_no_circle() {
    let files = [
        (
            "lib.rs",
            "mod a;\nmod b;\npub use a::Up;\npub use b::Down;\n",
        ),
        ("a.rs", "use crate::Down;\npub struct Up(Down);\n"),
        ("b.rs", "pub struct Down;\n"),
    ];
    let (_folder, package) = package(&files);
    assert_eq!(package.circles(), "");
    assert_eq!(
        package.list(true),
        "house: `crate`, from the top down\n  a -> b: 1\n    src/a.rs:1 takes Down from src/b.rs\n"
    );
}

#[test]
fn folders_may_make_a_circle_where_files_make_none() {
    let text = circles(&[
        ("lib.rs", "mod a;\nmod b;\n"),
        ("a/mod.rs", "pub mod high;\npub mod low;\n"),
        ("a/high.rs", "use crate::b::middle::Middle;\n"),
        ("a/low.rs", "pub struct Low;\n"),
        ("b/mod.rs", "pub mod middle;\n"),
        (
            "b/middle.rs",
            "use crate::a::low::Low;\npub struct Middle;\n",
        ),
    ]);
    assert!(text.contains("in `crate`, a, b import"), "{text}");
    assert!(
        text.contains("src/b/middle.rs:1 takes Low from src/a/low.rs"),
        "{text}"
    );
}

#[test]
fn a_name_is_taken_from_the_file_that_defines_it() {
    // `super::Kind` leads to `kind.rs`, and `crate::Error` to `error.rs`.
    let (_folder, package) = package(&[
        (
            "lib.rs",
            "mod definition;\nmod error;\npub use error::Error;\n",
        ),
        ("error.rs", "pub struct Error;\n"),
        (
            "definition/mod.rs",
            "mod kind;\nmod load;\npub use self::kind::Kind;\npub struct Task;\npub fn run() { load::load(Kind); }\n",
        ),
        ("definition/kind.rs", "pub struct Kind;\n"),
        (
            "definition/load.rs",
            "use super::*;\npub fn load(_: Kind) -> Result<Task, crate::Error> { Ok(Task) }\n",
        ),
    ]);
    assert_eq!(
        package.list(false),
        "house: `crate`, from the top down\n  definition -> error: 1\n\
         house: `crate::definition`, from the top down\n  \
         mod.rs -> kind: 1\n  mod.rs -> load: 1\n  load -> kind: 1\n  load -> mod.rs: 1  (its parent)\n"
    );
    assert_eq!(
        package.circles(),
        "",
        "a module may use what its parent defines"
    );
}

#[test]
fn the_root_defines_nothing_that_its_modules_need() {
    let text = circles(&[
        (
            "lib.rs",
            "mod a;\npub struct Root;\npub fn f() { a::f(); }\n",
        ),
        ("a.rs", "pub fn f() -> crate::Root { crate::Root }\n"),
    ]);
    assert!(text.contains("a -> lib.rs: 1"), "{text}");
}

#[test]
fn macros_and_quoted_paths_count_and_tests_do_not() {
    let down = "use crate::a::Up;\n#[cfg(test)]\nmod tests { use crate::a::Up; }\n";
    let up = "pub struct Up;\n";
    for names_b in [
        "fn f() { println!(\"{}\", crate::b::g()); }\n",
        "#[serde(with = \"crate::b::g\")]\nstruct S;\n",
        "fn f() { use crate::b; b::g(); }\n",
        "macro_rules! m { () => { $crate::b::g() } }\n",
    ] {
        let both = format!("{up}{names_b}");
        let text = circles(&two(&both, down));
        assert!(text.contains("takes g from src/b.rs"), "{names_b}: {text}");
    }
    let tests = format!(
        "{up}#[cfg(test)]\nmod tests {{ use crate::b::g; }}\n#[test]\nfn f() {{ crate::b::g() }}\n"
    );
    assert_eq!(circles(&two(&tests, down)), "");
}

#[test]
fn what_is_no_rust_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("lib.rs");
    fs::write(&root, "fn f() {}\nfn {\n").unwrap();
    let error = Source::read(&root).unwrap_err().to_string();
    assert!(error.contains("lib.rs:2"), "{error}");
}
