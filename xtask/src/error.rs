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

    #[error("{}:{line} is no Rust: {source}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        source: syn::Error,
    },

    #[error("cargo cannot say which crates there are: {source}")]
    Metadata { source: cargo_metadata::Error },

    #[error("there is no crate `{name}` in the workspace; there are {known}")]
    NoCrate { name: String, known: String },

    #[error(
        "folders must import downward only:\n{text}Move what both sides need into a file below them; `cargo xtask layers` lists the imports of a crate"
    )]
    Circles { text: String },

    #[error(
        "`{name}` is no name for a method: take small letters, digits and single hyphens, a letter first, as in `column-scale`"
    )]
    MethodName { name: String },

    #[error("{} is there already: give another name, or another --folder", path.display())]
    Exists { path: PathBuf },

    #[error(
        "a crate outside the workspace built these again, which the workspace has: {packages}. Its dependencies have other \
         features there: `cargo tree -e features` in both says which, and FEATURES in xtask/src/outside.rs adds them"
    )]
    BuiltAgain { packages: String },

    #[error("the comparison ran, and {} has no run of `{name}`", path.display())]
    NotCompared { name: &'static str, path: PathBuf },

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

    #[error("LLVM for the features `cuda` and `cpu`: {message}")]
    NoLlvm { message: String },

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
