//! What can go wrong, said so that the reader knows what to do next.

use std::{io, path::PathBuf, process::ExitStatus};

/// Why a command of the project did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot run `{command}`: {source}")]
    Run { command: String, source: io::Error },

    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("`{package}` was not built ({status}); cargo's messages are above")]
    Build { package: String, status: ExitStatus },

    #[error(
        "cargo built `{package}` but named no executable `{package}`: is `[[bin]]` still in its Cargo.toml?"
    )]
    NoExecutable { package: String },

    #[error(
        "the embedded model's package could not be fetched by cargo:\n{message}\n\
         Check the network, or a proxy's settings, and run it again; or set PEFT_EMBEDDED_MODEL to a folder that holds {files}"
    )]
    EmbeddedFetch { message: String, files: String },

    #[error(
        "cargo knows of no package `{package}` although {manifest} asks for it: restore that file and its Cargo.lock"
    )]
    EmbeddedPackage {
        package: &'static str,
        manifest: String,
    },

    #[error(
        "`{}` is not the file that the suite was written for:\n  SHA-256 {found}\n  pinned  {pinned}\n\
         Remove the folder {} and run it again: cargo then unpacks the package anew", path.display(), folder.display()
    )]
    EmbeddedDigest {
        path: PathBuf,
        folder: PathBuf,
        found: String,
        pinned: &'static str,
    },

    #[error("the packages of the published crates: {message}")]
    Package { message: String },

    #[error("{what} cannot run, and {} is set: {why}", peft_testing::REQUIRE_ALL)]
    Missing {
        what: &'static str,
        why: &'static str,
    },

    #[error(
        "step `{step}` failed ({status}). Its messages are above; to run it alone: cargo xtask check --only {step}"
    )]
    Step {
        step: &'static str,
        status: ExitStatus,
    },
}

impl Error {
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
