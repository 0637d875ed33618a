//! The front page of each crate names all of its methods.

use std::fs;

use peft::core::method::MethodInfo;

/// The crates with methods.
const CRATES: [(&str, &[&MethodInfo]); 5] = [
    ("peft-additive", peft::additive::METHODS),
    ("peft-hybrid", peft::hybrid::METHODS),
    ("peft-reparameterization", peft::reparameterization::METHODS),
    ("peft-selective", peft::selective::METHODS),
    ("peft-soft-prompt", peft::soft_prompt::METHODS),
];

#[test]
fn a_front_page_has_a_row_for_every_method() {
    let mut known = 0;
    for (name, methods) in CRATES {
        let path = format!("{}/../{name}/README.md", env!("CARGO_MANIFEST_DIR"));
        let page = fs::read_to_string(path).unwrap();
        let rows: Vec<String> = page
            .lines()
            .filter(|line| line.starts_with("| "))
            .map(str::to_lowercase)
            .collect();
        for info in methods {
            known += 1;
            let title = info.title.to_lowercase();
            assert!(
                rows.iter().any(|row| row.contains(&title)),
                "{name}'s README has no row for {}",
                info.title
            );
        }
        let after: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .collect();
        let rows = after
            .iter()
            .take_while(|line| line.starts_with('|'))
            .count();
        let all = page.lines().filter(|line| line.starts_with('|')).count();
        assert_eq!(rows, all, "{name}'s README has rows outside of its table");
    }
    assert_eq!(known, peft::methods().len());
}
