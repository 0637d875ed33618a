//! The model hub, by its own client, with a watchdog: a network that swallows packets must not cost minutes.

use crate::{
    cache::{Checked, FileRecord},
    catalog::{FileSpec, HubSource},
    digest,
    error::FetchError,
    files, progress,
};
use hf_hub::{
    Repo, RepoType,
    api::{
        Progress,
        sync::{ApiBuilder, ApiRepo},
    },
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

/// What the downloading thread reports.
enum Event {
    Started { bytes: u64 },
    Received { bytes: u64 },
    Done(Result<PathBuf, String>),
}

/// Passes the client's progress on as events. Whoever listened may be gone: then nobody minds.
struct Reporter(Sender<Event>);

impl Progress for Reporter {
    fn init(&mut self, size: usize, _filename: &str) {
        let _ = self.0.send(Event::Started { bytes: size as u64 });
    }

    fn update(&mut self, size: usize) {
        let _ = self.0.send(Event::Received { bytes: size as u64 });
    }

    fn finish(&mut self) {}
}

/// Fetches every file of `source` into `folder`. Returns the records and the hub's commit.
///
/// All files are of one commit: of `commit` where an earlier fetch knows it, else of the one that the first file came
/// from, whatever happens to the branch meanwhile.
///
/// The client keeps its own cache (`HF_HOME`), shared with Python's: a file that is there is not downloaded again.
///
/// # Errors
/// The client's failure; nothing received for `patience`; bytes that differ from what was pinned or stated.
pub(crate) fn fetch(
    source: &HubSource,
    folder: &Path,
    commit: Option<&str>,
    patience: Duration,
) -> Result<(Vec<FileRecord>, Option<String>), FetchError> {
    let api = ApiBuilder::from_env()
        .with_progress(false)
        .build()
        .map_err(|error| FetchError::Hub {
            repo: source.repo.clone(),
            file: "(no file yet)".to_owned(),
            message: error.to_string(),
        })?;
    let mut records = Vec::new();
    let mut commit = commit.map(str::to_owned);
    for spec in &source.files {
        let revision = commit.as_ref().unwrap_or(&source.revision);
        let repo = Repo::with_revision(source.repo.clone(), RepoType::Model, revision.clone());
        let path = get(api.repo(repo.clone()), repo, source, &spec.from, patience)?;
        commit = commit.or_else(|| commit_of(&path));
        records.push(take(source, spec, &path, folder)?);
    }
    Ok((records, commit))
}

/// The file's path in the client's cache, downloaded if need be.
fn get(
    api: ApiRepo,
    repo: Repo,
    source: &HubSource,
    file: &str,
    patience: Duration,
) -> Result<PathBuf, FetchError> {
    if let Some(path) = hf_hub::Cache::from_env().repo(repo).get(file) {
        return Ok(path);
    }
    let (sender, events) = mpsc::channel();
    let name = file.to_owned();
    // The client has no timeouts and cannot be interrupted: when patience ends, the thread is left behind
    // and dies with the program.
    thread::spawn(move || {
        let result = api.download_with_progress(&name, Reporter(sender.clone()));
        let _ = sender.send(Event::Done(result.map_err(|error| error.to_string())));
    });
    let bar = progress::bytes(&format!("hub {file}"), 0);
    loop {
        match events.recv_timeout(patience) {
            Ok(Event::Started { bytes }) => bar.set_length(bytes),
            Ok(Event::Received { bytes }) => bar.inc(bytes),
            Ok(Event::Done(result)) => {
                bar.finish_and_clear();
                return result.map_err(|message| FetchError::Hub {
                    repo: source.repo.clone(),
                    file: file.to_owned(),
                    message,
                });
            }
            Err(RecvTimeoutError::Timeout) => {
                bar.finish_and_clear();
                return Err(FetchError::HubStalled {
                    repo: source.repo.clone(),
                    seconds: patience.as_secs(),
                });
            }
            Err(RecvTimeoutError::Disconnected) => {
                bar.finish_and_clear();
                return Err(FetchError::Hub {
                    repo: source.repo.clone(),
                    file: file.to_owned(),
                    message: "its thread ended without a result".to_owned(),
                });
            }
        }
    }
}

/// Copies a file out of the client's cache and checks it.
fn take(
    source: &HubSource,
    spec: &FileSpec,
    path: &Path,
    folder: &Path,
) -> Result<FileRecord, FetchError> {
    let target = folder.join(spec.to());
    let mut from = File::open(path).map_err(FetchError::io("open", path))?;
    let mut to = File::create(&target).map_err(FetchError::io("create", &target))?;
    let (bytes, found) =
        digest::copy(&mut from, &mut to).map_err(FetchError::io("write", &target))?;
    files::sync(&to, &target)?;
    let (expected, by, checked) = match (&spec.sha256, stated_digest(path)) {
        (Some(pin), _) => (Some(pin.clone()), "assets.toml", Checked::Pinned),
        (None, Some(stated)) => (Some(stated), "the hub", Checked::SourceDigest),
        (None, None) => (None, "", Checked::NotPinned),
    };
    match expected {
        Some(expected) if expected != found => Err(FetchError::Checksum {
            file: spec.to().to_owned(),
            origin: format!("{} on the hub", source.repo),
            by,
            expected,
            found,
        }),
        _ => Ok(FileRecord {
            name: spec.to().to_owned(),
            bytes,
            sha256: found,
            checked,
        }),
    }
}

/// The SHA-256 that the hub states for large files: the client names the blob by it, and links to the blob.
fn stated_digest(path: &Path) -> Option<String> {
    let blob = path.canonicalize().ok()?;
    let name = blob.file_name()?.to_str()?;
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| name.to_lowercase())
}

/// The commit in `…/snapshots/COMMIT/FILE`.
fn commit_of(path: &Path) -> Option<String> {
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    parts.find(|part| part == "snapshots")?;
    parts.next().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_read_off_the_clients_path() {
        let path = Path::new("/h/hub/models--a--b/snapshots/4ca7/config.json");
        assert_eq!(commit_of(path).as_deref(), Some("4ca7"));
        assert_eq!(commit_of(Path::new("/h/config.json")), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_differs_from_the_digest_the_hub_stated_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("ab".repeat(32));
        std::fs::write(&blob, b"weights").unwrap();
        let link = dir.path().join("model.safetensors");
        std::os::unix::fs::symlink(&blob, &link).unwrap();
        let source: HubSource = toml::from_str(
            "repo = 'a/b'\nrevision = 'main'\ndownload_mb = 1\nfiles = [{ from = 'model.safetensors' }]",
        )
        .unwrap();
        let out = tempfile::tempdir().unwrap();
        let error = take(&source, &source.files[0], &link, out.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the hub says") && error.contains("abab"),
            "{error}"
        );
    }
}
