//! Digests, as text.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// What `hasher` was given, as 64 hexadecimal digits.
pub(crate) fn hex(hasher: Sha256) -> String {
    let digit = |mut text: String, byte: &u8| {
        let _ = write!(text, "{byte:02x}");
        text
    };
    hasher.finalize().iter().fold(String::new(), digit)
}
