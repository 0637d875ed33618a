//! The list of assets: what each is, its licence and size, where it goes, whether it is there.

use crate::{
    cache::{Cache, Look, State},
    catalog::{Asset, Catalog},
    error::FetchError,
};
use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// Prints the list on standard output.
///
/// # Errors
/// When the cache cannot be read. A closed standard output is none.
pub(crate) fn print(catalog: &Catalog, cache: &Cache) -> Result<(), FetchError> {
    let mut text = String::new();
    for asset in &catalog.assets {
        text += &entry(asset, cache)?;
    }
    let _ = write!(
        text,
        "All go to {} (PEFT_ASSETS names another folder).\n\
         Fetch by name, `cargo xtask fetch {}`, or with --all.\n",
        cache.root().display(),
        catalog
            .assets
            .first()
            .map_or("NAME", |asset| asset.name.as_str()),
    );
    // A reader such as `head` may close the pipe: that is no failure.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

fn entry(asset: &Asset, cache: &Cache) -> Result<String, FetchError> {
    let state = match cache.state(asset, Look::Quick)? {
        State::Absent => "not fetched".to_owned(),
        State::Damaged(wrong) => format!("to be fetched again: {wrong}"),
        State::Present(provenance) => format!(
            "present, from {} at {}",
            provenance.source, provenance.fetched_at
        ),
    };
    let sources: Vec<_> = asset
        .sources
        .iter()
        .map(|source| {
            let note = source
                .note()
                .map(|note| format!("; {note}"))
                .unwrap_or_default();
            format!("{} ({} MB{note})", source.client(), source.download_mb())
        })
        .collect();
    Ok(format!(
        "{name} ({kind})\n  what     {about}\n  from     {sources}\n  source   {citation}\n  licence  {licence}\n  state    {state}\n  folder   {folder}\n\n",
        name = asset.name,
        kind = asset.kind.word(),
        about = asset.about,
        sources = sources.join(", then "),
        citation = asset.citation,
        licence = asset.licence,
        folder = cache.folder(asset).display(),
    ))
}
