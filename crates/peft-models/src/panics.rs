//! Panics of the libraries that read tokenizers and templates, as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::LoadError;

/// What `work` returns; a panic in it is an error about `path`.
///
/// The crate `tokenizers` checks little of what it reads: on some damaged files it panics while it
/// reads, on others at the first text. Where panics abort the program, they still do.
///
/// # Errors
///
/// [`LoadError::Tokenizer`] with what the panic says.
pub(crate) fn caught<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T, LoadError> {
    // Nothing is left half done: texts change no more of a tokenizer than its cache, which is not
    // used again once a panic has poisoned it.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let said = match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.as_str(),
            (None, Some(text)) => *text,
            (None, None) => "for no reason given",
        };
        LoadError::Tokenizer {
            path: path.to_path_buf(),
            reason: format!("it is damaged, or asks for what cannot be done: {said}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_what_it_said() {
        let path = Path::new("tokenizer.json");
        assert_eq!(caught(path, || 3).unwrap(), 3);
        let numbers: Vec<u32> = (0..3).collect();
        let error = caught(path, || numbers[3]).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        assert!(error.contains("out of bounds"), "{error}");
        let error = caught(path, || -> u32 { panic!("no more") });
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("no more"), "{error}");
    }
}
