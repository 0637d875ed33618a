//! Cargo and the programs of this workspace that it builds.

use crate::{embedded, error::Error};
use cargo_metadata::Message;
use std::{
    env,
    ffi::{OsStr, OsString},
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

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

/// A call of cargo in the workspace's root.
pub(crate) fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program());
    command.current_dir(root()).args(arguments);
    command
}

/// Builds a package's program of the same name and returns the executable's path. Cargo's progress is shown.
///
/// The profile is `release`, which checks as tests do, or `bench` for programs whose times are read.
/// `selection` says what to build: `-p PACKAGE`, features and the like.
pub(crate) fn build(package: &str, profile: &str, selection: &[&str]) -> Result<PathBuf, Error> {
    let mut command = cargo(["build", "--message-format=json-render-diagnostics"]);
    command
        .args(["--profile", profile])
        .args(selection)
        .stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::Run {
        command: show(&command),
        source,
    })?;
    let mut executable = None;
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            let message = message.map_err(|source| Error::Run {
                command: show(&command),
                source,
            })?;
            if let Message::CompilerArtifact(artifact) = message
                && artifact.target.is_bin()
                && artifact.target.name == package
            {
                executable = artifact.executable.or(executable);
            }
        }
    }
    let status = child.wait().map_err(|source| Error::Run {
        command: show(&command),
        source,
    })?;
    if !status.success() {
        return Err(Error::Build {
            package: package.to_owned(),
            status,
        });
    }
    executable
        .map(cargo_metadata::camino::Utf8PathBuf::into_std_path_buf)
        .ok_or_else(|| Error::NoExecutable {
            package: package.to_owned(),
        })
}

/// A call of a program of ours, told where the models and data are.
///
/// The embedded model is not needed by every call, so one that cannot be fetched is a note here and an error only
/// where it is used. Wrong bytes are an error at once.
pub(crate) fn ours(executable: &Path) -> Result<Command, Error> {
    let mut command = Command::new(executable);
    match embedded::folder() {
        Ok(folder) => {
            command.env(embedded::VARIABLE, folder);
        }
        Err(error @ (Error::EmbeddedFetch { .. } | Error::EmbeddedPackage { .. })) => {
            eprintln!("note: {error}\nnote: going on without it; runs that need it will say so");
        }
        Err(error) => return Err(error),
    }
    if let Some(assets) = assets() {
        command.env("PEFT_ASSETS", assets);
    }
    Ok(command)
}

/// Where `fetch` puts things: `PEFT_ASSETS`, or the folder `peft` in the user's cache folder.
pub(crate) fn assets() -> Option<PathBuf> {
    env::var_os("PEFT_ASSETS")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("peft")))
}

/// Becomes the program, so that signals, terminal and exit status are the program's own.
#[cfg(unix)]
pub(crate) fn hand_over(mut command: Command) -> Result<ExitCode, Error> {
    use std::os::unix::process::CommandExt;
    let source = command.exec();
    Err(Error::Run {
        command: show(&command),
        source,
    })
}

/// Runs the program and passes its exit status on. Console signals reach both; the program ends first.
#[cfg(not(unix))]
pub(crate) fn hand_over(mut command: Command) -> Result<ExitCode, Error> {
    let status = command.status().map_err(|source| Error::Run {
        command: show(&command),
        source,
    })?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), quoted(value?))));
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = [program].into_iter().chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains(char::is_whitespace) {
        format!("'{word}'")
    } else {
        word.into_owned()
    }
}
