//! Where the workspace is, and which cargo builds it.

use crate::error::Error;
use cargo_metadata::{Metadata, MetadataCommand};
use std::{env, ffi::OsString, path::PathBuf};

/// The cargo that runs us.
pub(crate) fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// This package's folder: where cargo runs it, for one target folder may serve several checkouts, and the
/// program may have been compiled in another one.
pub(crate) fn manifest_dir() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let mut root = manifest_dir();
    root.pop();
    root
}

/// What cargo knows of the workspace, without its dependencies.
///
/// # Errors
/// What cargo says.
pub(crate) fn metadata() -> Result<Metadata, Error> {
    MetadataCommand::new()
        .cargo_path(program())
        .current_dir(root())
        .no_deps()
        .exec()
        .map_err(|source| Error::Metadata { source })
}

/// Where cargo builds.
///
/// # Errors
/// As [`metadata`].
pub(crate) fn target_dir() -> Result<PathBuf, Error> {
    Ok(metadata()?.target_directory.into_std_path_buf())
}
