//! Cargo and the programs of this workspace that it builds.

use crate::{
    embedded,
    error::Error,
    features::{both_cpu_backends, built_quickly},
    workspace::{program, root},
};
use cargo_metadata::{Artifact, Message, camino::Utf8PathBuf};
use std::{
    env,
    ffi::OsStr,
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// A call of cargo in the workspace's root.
pub(crate) fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program());
    command.current_dir(root()).args(arguments);
    command
}

/// A program that the workspace builds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program<'a> {
    /// The program of the package of the same name.
    Bin(&'a str),
    /// An example of any package.
    Example(&'a str),
}

impl<'a> Program<'a> {
    /// The option of cargo, and the name.
    fn selection(self) -> [&'a str; 2] {
        match self {
            Self::Bin(name) => ["--bin", name],
            Self::Example(name) => ["--example", name],
        }
    }

    /// Whether cargo built this.
    fn is(self, artifact: &Artifact) -> bool {
        let target = &artifact.target;
        match self {
            Self::Bin(name) => target.is_bin() && target.name == name,
            Self::Example(name) => target.is_example() && target.name == name,
        }
    }
}

/// How a program is built.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Build {
    /// As tests are: with checks of overflow, and quickly.
    Checked,
    /// For programs whose times are read.
    Timed,
}

impl Build {
    fn options(self) -> Vec<String> {
        match self {
            Self::Checked => [vec!["--release".to_owned()], built_quickly()].concat(),
            Self::Timed => vec!["--profile".to_owned(), "bench".to_owned()],
        }
    }
}

/// Builds a program and returns the executable's path. Cargo's progress is shown.
///
/// `features` are besides those that everything has.
///
/// Of the workspace one program is built, but with the features that all of it together asks for: `-p PACKAGE` would
/// choose fewer, and Burn would be built anew for each package.
pub(crate) fn build(
    program: Program<'_>,
    how: Build,
    features: Option<&str>,
) -> Result<PathBuf, Error> {
    let [kind, name] = program.selection();
    let all = match features {
        Some(features) => format!("{},{features}", both_cpu_backends()),
        None => both_cpu_backends(),
    };
    let mut command = cargo(["build", "--workspace"]);
    command
        .args(how.options())
        .args([kind, name, "--features", &all]);
    let artifacts = artifacts(command, name)?;
    let found = artifacts
        .into_iter()
        .filter(|artifact| program.is(artifact))
        .find_map(|artifact| artifact.executable);
    found
        .map(Utf8PathBuf::into_std_path_buf)
        .ok_or_else(|| Error::NoExecutable {
            package: name.to_owned(),
        })
}

/// Runs a build and returns what cargo says it made; `name` is what errors call it.
pub(crate) fn artifacts(mut command: Command, name: &str) -> Result<Vec<Artifact>, Error> {
    command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let shown = show(&command);
    let run = |source| Error::Run {
        command: shown.clone(),
        source,
    };
    let mut child = command.spawn().map_err(run)?;
    let mut artifacts = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(artifact) = message.map_err(run)? {
                artifacts.push(artifact);
            }
        }
    }
    let status = child.wait().map_err(run)?;
    if status.success() {
        Ok(artifacts)
    } else {
        Err(Error::Build {
            package: name.to_owned(),
            status,
        })
    }
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
