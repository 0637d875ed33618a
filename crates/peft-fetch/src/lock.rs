//! What first came from sources that `assets.toml` does not pin: the commit and the bytes. Later fetches must bring the
//! same.
//!
//! One file in the cache's root, beside the folders of the assets: an asset that is deleted and fetched again is still
//! the one that it was.

use crate::{
    cache::{FileRecord, Provenance},
    catalog::Source,
    error::FetchError,
    files,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

const NAME: &str = "unpinned.json";

/// The file's content, by [`Source::id`].
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    sources: BTreeMap<String, Locked>,
}

/// What first came from one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Locked {
    /// The hub's commit, if it said one.
    pub(crate) commit: Option<String>,
    /// UTC.
    first_fetched_at: String,
    /// SHA-256 by the files' names in the cache.
    files: BTreeMap<String, String>,
}

impl Lock {
    /// The lock of a cache; an empty one where nothing unpinned was fetched yet.
    pub(crate) fn read(root: &Path) -> Result<Self, FetchError> {
        let path = root.join(NAME);
        let sources = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| FetchError::Lock {
                path: path.clone(),
                message: error.to_string(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(FetchError::io("read", path)(error)),
        };
        Ok(Self { path, sources })
    }

    /// What first came from a source; `None` of one that is pinned, or was not fetched yet.
    pub(crate) fn of(&self, source: &Source) -> Option<&Locked> {
        self.sources
            .get(&source.id())
            .filter(|_| !source.is_pinned())
    }

    /// That the files of a source are those that first came.
    ///
    /// # Errors
    /// [`FetchError::Checksum`] for the first that is another.
    pub(crate) fn check(&self, source: &Source, records: &[FileRecord]) -> Result<(), FetchError> {
        let Some(locked) = self.of(source) else {
            return Ok(());
        };
        for record in records {
            match locked.files.get(&record.name) {
                Some(first) if *first != record.sha256 => {
                    return Err(FetchError::Changed {
                        file: record.name.clone(),
                        origin: source.id(),
                        first: first.clone(),
                        found: record.sha256.clone(),
                        lock: self.path.clone(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps what came from a source that is not pinned, if it is the first time.
    ///
    /// # Errors
    /// A disk that refuses.
    pub(crate) fn keep(
        &mut self,
        source: &Source,
        provenance: &Provenance,
    ) -> Result<(), FetchError> {
        if source.is_pinned() {
            return Ok(());
        }
        let locked = self.sources.entry(source.id()).or_insert_with(|| Locked {
            commit: provenance.commit.clone(),
            first_fetched_at: provenance.fetched_at.clone(),
            files: BTreeMap::new(),
        });
        let before = locked.clone();
        for record in &provenance.files {
            locked
                .files
                .entry(record.name.clone())
                .or_insert_with(|| record.sha256.clone());
        }
        if *locked == before {
            return Ok(());
        }
        let json = serde_json::to_string_pretty(&self.sources).expect("plain strings serialize");
        files::write(&self.path, (json + "\n").as_bytes())
    }
}
