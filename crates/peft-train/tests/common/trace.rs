//! What a program asked the disk for: its system calls, by `strace`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program under `strace` and gives what each of its threads asked of files in `dir`; an error says why
/// there is nothing to give. The program must succeed.
pub(crate) fn traced(program: &mut Command, dir: &Path) -> Result<Vec<Thread>, String> {
    let log = tempfile::tempdir().unwrap();
    let mut strace = Command::new("strace");
    strace
        .args(["-ff", "-y", "-s", "4096", "-e", "signal=none", "-e"])
        .arg("trace=openat,creat,fsync,fdatasync,rename,renameat,renameat2")
        .arg("-o")
        .arg(log.path().join("log"))
        .arg(program.get_program())
        .args(program.get_args());
    for (name, value) in program.get_envs() {
        strace.env(name, value.unwrap());
    }
    let output = strace
        .output()
        .map_err(|error| format!("no strace: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("ptrace") {
        return Err(format!("processes may not be traced: {errors}"));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{errors}");
    let logs = fs::read_dir(log.path()).unwrap();
    let threads = logs.map(|log| {
        let text = fs::read_to_string(log.unwrap().path()).unwrap();
        let calls = text.lines().filter_map(|line| Call::read(line, dir));
        Thread(calls.collect())
    });
    Ok(threads.collect())
}

/// A system call that succeeded.
#[derive(Debug)]
enum Call {
    /// A file is opened for writing.
    Create(PathBuf),
    /// A file or folder is on the disk when this returns.
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Call {
    /// None for calls that failed, or are not about `dir`.
    fn read(line: &str, dir: &Path) -> Option<Self> {
        let (call, result) = line.rsplit_once(" = ")?;
        let (name, arguments) = call.split_once('(')?;
        if result.starts_with('-') {
            return None;
        }
        let quoted: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
        let call = match name {
            "openat" if arguments.contains("O_CREAT") => Self::Create(quoted[0].into()),
            "creat" => Self::Create(quoted[0].into()),
            "fsync" | "fdatasync" => {
                let (_, path) = arguments.split_once('<')?;
                Self::Sync(path.rsplit_once('>')?.0.into())
            }
            _ if name.starts_with("rename") => Self::Rename(quoted[0].into(), quoted[1].into()),
            _ => return None,
        };
        let (Self::Create(path) | Self::Sync(path) | Self::Rename(path, _)) = &call;
        path.starts_with(dir).then_some(call)
    }
}

/// What a thread asked for, in order.
#[derive(Debug)]
pub(crate) struct Thread(Vec<Call>);

impl Thread {
    /// The names that files and folders got, last parts only. Each was on the disk before it got its name, and its
    /// folder after it; none was written under it.
    pub(crate) fn names(&self, temporary: &[&str]) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut synced = BTreeSet::new();
        // Renamed, but their folder is not on the disk yet.
        let mut waiting: Vec<&Path> = Vec::new();
        for call in &self.0 {
            match call {
                Call::Create(path) => {
                    let name = last(path);
                    let known = temporary.iter().any(|start| name.starts_with(start));
                    assert!(known, "{} is written under its name", path.display());
                }
                Call::Sync(path) => {
                    waiting.retain(|renamed| renamed.parent() != Some(path));
                    synced.insert(path.clone());
                }
                Call::Rename(from, to) => {
                    assert!(
                        synced.remove(from),
                        "{} was not on the disk when it became {}",
                        from.display(),
                        to.display()
                    );
                    synced.insert(to.clone());
                    waiting.push(to);
                    names.insert(last(to));
                }
            }
        }
        assert!(waiting.is_empty(), "folders not on the disk: {waiting:?}");
        names
    }
}

fn last(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
