//! Named members of a wheel (a zip), of a `.tar.gz`, or of a `.tar.gz` inside one of these.
//!
//! Members are taken by name and written by the caller, so no path out of an archive ever becomes a path on disk.

use crate::error::FetchError;
use flate2::read::GzDecoder;
use std::{ffi::OsStr, fs::File, io::Read, path::Path};

/// Called with the index of a wanted member and its content.
pub(crate) type Visit<'a> = dyn FnMut(usize, &mut dyn Read) -> Result<(), FetchError> + 'a;

/// Calls `visit` for each of `wanted` that the archive (or the archive `inner` inside it) holds.
///
/// # Errors
/// An archive that cannot be read, an `inner` that is not there, or what `visit` returns.
pub(crate) fn each(
    archive: &Path,
    inner: Option<&str>,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let name = archive.display().to_string();
    let Some(inner) = inner else {
        return members(archive, &name, wanted, visit);
    };
    let mut seen = false;
    members(archive, &name, &[inner], &mut |_, content| {
        seen = true;
        tar_members(content, inner, wanted, visit)
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
    archive: &Path,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let file = File::open(archive).map_err(FetchError::io("open", archive))?;
    match archive.extension().and_then(OsStr::to_str) {
        Some("whl" | "zip") => zip_members(file, name, wanted, visit),
        Some("gz" | "tgz") => tar_members(file, name, wanted, visit),
        _ => Err(FetchError::Archive {
            archive: name.to_owned(),
            message: "only .whl, .zip and .tar.gz are known".to_owned(),
        }),
    }
}

fn zip_members(
    file: File,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let unreadable = |error: zip::result::ZipError| FetchError::Archive {
        archive: name.to_owned(),
        message: error.to_string(),
    };
    let mut zip = zip::ZipArchive::new(file).map_err(unreadable)?;
    for (index, member) in wanted.iter().enumerate() {
        match zip.by_name(member) {
            Ok(mut content) => visit(index, &mut content)?,
            Err(zip::result::ZipError::FileNotFound) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(())
}

fn tar_members(
    compressed: impl Read,
    name: &str,
    wanted: &[&str],
    visit: &mut Visit<'_>,
) -> Result<(), FetchError> {
    let unreadable = |error: std::io::Error| FetchError::Archive {
        archive: name.to_owned(),
        message: error.to_string(),
    };
    let mut tar = tar::Archive::new(GzDecoder::new(compressed));
    for entry in tar.entries().map_err(unreadable)? {
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
        let mut got = Vec::new();
        each(archive, inner, wanted, &mut |index, content| {
            let mut text = String::new();
            content.read_to_string(&mut text).unwrap();
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
}
