//! SHA-256 of files and of streams as they are copied.

use crate::error::FetchError;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

/// Hex of the SHA-256 of a file.
pub(crate) fn of_file(path: &Path) -> Result<String, FetchError> {
    let mut file = File::open(path).map_err(FetchError::io("open", path))?;
    let (_, digest) = copy(&mut file, &mut io::sink()).map_err(FetchError::io("read", path))?;
    Ok(digest)
}

/// Copies everything and returns how many bytes there were and their SHA-256 in hex.
pub(crate) fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    Ok((bytes, hex(&hasher.finalize())))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_digests() {
        let mut to = Vec::new();
        let (bytes, digest) = copy(&mut &b"abc"[..], &mut to).unwrap();
        assert_eq!((bytes, to.as_slice()), (3, &b"abc"[..]));
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
