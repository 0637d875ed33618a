//! Where the model and the texts are.

use std::env;
use std::path::{Path, PathBuf};

/// The language model, as `cargo xtask fetch` calls it.
pub(crate) const LLAMA: &str = "SmolLM2-135M-Instruct";

/// The novels to learn from. The sixth, Persuasion, is held out.
pub(crate) const NOVELS: [&str; 5] = [
    "sense-and-sensibility",
    "pride-and-prejudice",
    "mansfield-park",
    "emma",
    "northanger-abbey",
];

/// The novel to measure on.
pub(crate) const HELD_OUT: &str = "persuasion";

/// The folder of the language model, in `PEFT_ASSETS` or `peft` in the user's cache folder.
///
/// # Errors
///
/// Where it is looked for, and the command that brings it.
pub(crate) fn llama() -> Result<PathBuf, String> {
    let cache = env::var_os("PEFT_ASSETS")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("peft")));
    let folder = cache.map(|cache| cache.join(LLAMA));
    match folder {
        Some(folder) if folder.is_dir() => Ok(folder),
        Some(folder) => Err(format!(
            "no {}; `cargo xtask fetch {LLAMA}` brings it",
            folder.display()
        )),
        None => Err(format!(
            "no cache folder; set PEFT_ASSETS to one, and `cargo xtask fetch {LLAMA}`"
        )),
    }
}

/// A vendored novel, compressed.
pub(crate) fn novel(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/peft-compare/data/austen");
    folder.join(format!("{name}.txt.gz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_novels_are_there() {
        for name in NOVELS.into_iter().chain([HELD_OUT]) {
            assert!(novel(name).is_file(), "{name}");
        }
    }
}
