//! Named members of a wheel (a zip), of a `.tar.gz`, or of a `.tar.gz` inside one of these.
//!
//! Members are taken by name and written by the caller, so no path out of an archive ever becomes a path on disk. How
//! much an archive may unpack to is bounded, members that nobody wants included.

use crate::error::FetchError;
use flate2::read::GzDecoder;
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Called with the index of a wanted member and its content.
pub(crate) type Visit<'a> = dyn FnMut(usize, &mut dyn Read) -> Result<(), FetchError> + 'a;

/// What an archive may hold.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Members.
    members: usize,
    /// Bytes that are unpacked.
    bytes: u64,
    /// Bytes that are unpacked for one of the archive. Text comes to ten, deflate can reach a thousand.
    ratio: u64,
}

const LIMITS: Limits = Limits {
    members: 20_000,
    bytes: 4 << 30,
    ratio: 100,
};

/// An archive counts as this long at least: a tar is padded.
const LEAST_PACKED: u64 = 1 << 10;

impl Limits {
    /// Bytes that an archive of `packed` bytes may unpack to.
    fn bytes_of(self, packed: u64) -> u64 {
        let packed = packed.max(LEAST_PACKED);
        self.bytes.min(packed.saturating_mul(self.ratio))
    }
}

/// Calls `visit` for each of `wanted` that the archive (or the archive `inner` inside it) holds.
///
/// # Errors
/// An archive that cannot be read or holds more than it may, an `inner` that is not there, or what `visit` returns.
pub(crate) fn each(
    archive: &Path,
    inner: Option<&str>,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    each_within(LIMITS, archive, inner, wanted, visit)
}

fn each_within(
    limits: Limits,
    archive: &Path,
    inner: Option<&str>,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let name = archive.display().to_string();
    let Some(inner) = inner else {
        return members(limits, archive, &name, wanted, visit);
    };
    let packed = File::open(archive)
        .and_then(|file| file.metadata())
        .map_err(FetchError::io("open", archive))?
        .len();
    let mut seen = false;
    members(limits, archive, &name, &[inner], &mut |_, content| {
        seen = true;
        let most = limits.bytes_of(packed);
        tar_members(limits, content, most, inner, wanted, visit)
    })?;
    if seen {
        Ok(())
    } else {
        Err(FetchError::MissingMember {
            archive: name,
            member: inner.to_owned(),
        })
    }
}

fn members(
    limits: Limits,
    archive: &Path,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let file = File::open(archive).map_err(FetchError::io("open", archive))?;
    let packed = file.metadata().map_err(FetchError::io("open", archive))?;
    let most = limits.bytes_of(packed.len());
    match archive.extension().and_then(OsStr::to_str) {
        Some("whl" | "zip") => zip_members(limits, file, most, name, wanted, visit),
        Some("gz" | "tgz") => tar_members(limits, file, most, name, wanted, visit),
        _ => Err(FetchError::Archive {
            archive: name.to_owned(),
            message: "only .whl, .zip and .tar.gz are known".to_owned(),
        }),
    }
}

fn zip_members(
    limits: Limits,
    file: File,
    most: u64,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let unreadable = |error: zip::result::ZipError| FetchError::Archive {
        archive: name.to_owned(),
        message: error.to_string(),
    };
    let mut zip = zip::ZipArchive::new(file).map_err(unreadable)?;
    if zip.len() > limits.members {
        return Err(too_many(limits, name));
    }
    let mut left = most;
    for (index, member) in wanted.iter().enumerate() {
        match zip.by_name(member) {
            Ok(content) => visit(
                index,
                &mut Limited {
                    from: content,
                    left: &mut left,
                },
            )?,
            Err(zip::result::ZipError::FileNotFound) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(())
}

fn tar_members(
    limits: Limits,
    compressed: impl Read,
    most: u64,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let unreadable = |error: io::Error| FetchError::Archive {
        archive: name.to_owned(),
        message: error.to_string(),
    };
    let mut left = most;
    let mut tar = tar::Archive::new(Limited {
        from: GzDecoder::new(compressed),
        left: &mut left,
    });
    for (count, entry) in tar.entries().map_err(unreadable)?.enumerate() {
        if count == limits.members {
            return Err(too_many(limits, name));
        }
        let mut entry = entry.map_err(unreadable)?;
        let path = entry
            .path()
            .map_err(unreadable)?
            .to_string_lossy()
            .into_owned();
        if let Some(index) = wanted.iter().position(|member| *member == path) {
            visit(index, &mut entry)?;
        }
    }
    Ok(())
}

fn too_many(limits: Limits, name: &str) -> FetchError {
    FetchError::Archive {
        archive: name.to_owned(),
        message: format!("it holds more than {} members", limits.members),
    }
}

/// A reader that fails where more comes than may.
struct Limited<'a, R> {
    from: R,
    left: &'a mut u64,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        let left = self.left.checked_sub(read as u64);
        *self.left = left.ok_or_else(|| io::Error::other("it unpacks to more than it may"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn tar_gz(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn read(
        archive: &Path,
        inner: Option<&str>,
        wanted: &[&str],
    ) -> Result<Vec<(usize, String)>, FetchError> {
        read_within(LIMITS, archive, inner, wanted)
    }

    fn read_within(
        limits: Limits,
        archive: &Path,
        inner: Option<&str>,
        wanted: &[&str],
    ) -> Result<Vec<(usize, String)>, FetchError> {
        let mut got = Vec::new();
        each_within(limits, archive, inner, wanted, &mut |index, content| {
            let mut text = String::new();
            content
                .read_to_string(&mut text)
                .map_err(FetchError::io("unpack", archive))?;
            got.push((index, text));
            Ok(())
        })?;
        Ok(got)
    }

    #[test]
    fn a_wheel_gives_the_wanted_members_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in [("m/config.json", "{}"), ("m/other", "no")] {
            zip.start_file(name, zip::write::SimpleFileOptions::default())
                .unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let got = read(&path, None, &["m/absent", "m/config.json"]).unwrap();
        assert_eq!(got, [(1, "{}".to_owned())]);
    }

    #[test]
    fn a_tar_inside_a_tar_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.tar.gz");
        let inner = tar_gz(&[("d/rows.txt", b"1\t2\n")]);
        std::fs::write(
            &path,
            tar_gz(&[("p/x.tar.gz", &inner), ("p/rows.txt", b"other")]),
        )
        .unwrap();
        let got = read(&path, Some("p/x.tar.gz"), &["d/rows.txt"]).unwrap();
        assert_eq!(got, [(0, "1\t2\n".to_owned())]);
        let error = read(&path, Some("p/y.tar.gz"), &["d/rows.txt"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("p/y.tar.gz"), "{error}");
    }

    #[test]
    fn a_broken_archive_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.whl", "a.tar.gz", "a.rar"] {
            let path = dir.path().join(name);
            std::fs::write(&path, b"not an archive").unwrap();
            let error = read(&path, None, &["x"]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn an_archive_that_unpacks_to_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let zeros = vec![b'0'; 1 << 20];
        let tar = dir.path().join("a.tar.gz");
        std::fs::write(&tar, tar_gz(&[("unwanted", &zeros), ("rows", b"1")])).unwrap();
        let wheel = dir.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        zip.start_file("rows", zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(&zeros).unwrap();
        zip.finish().unwrap();
        let inner = dir.path().join("inner.tar.gz");
        let bomb = tar_gz(&[("rows", &zeros)]);
        std::fs::write(&inner, tar_gz(&[("x.tar.gz", &bomb)])).unwrap();

        let generous = Limits {
            ratio: 10_000,
            ..LIMITS
        };
        let small = Limits {
            bytes: 1 << 19,
            ..generous
        };
        for (archive, inside) in [(&tar, None), (&wheel, None), (&inner, Some("x.tar.gz"))] {
            assert!(read_within(generous, archive, inside, &["rows"]).is_ok());
            // A megabyte of one letter is a thousand times as long as its archive.
            for limits in [LIMITS, small] {
                let error = read_within(limits, archive, inside, &["rows"]).unwrap_err();
                let error = error.to_string();
                assert!(error.contains("more than it may"), "{error}");
            }
            let none = Limits {
                members: 0,
                ..generous
            };
            let error = read_within(none, archive, inside, &["rows"]).unwrap_err();
            assert!(error.to_string().contains("more than 0 members"), "{error}");
        }
    }
}
