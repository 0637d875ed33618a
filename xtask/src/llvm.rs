//! LLVM, which compiles the kernels of the features `cuda` and `cpu`: brought here by pip, as a build finds it.
//!
//! The build script of those features takes LLVM from the folder `tracel/tracel-llvm-VERSION` of `XDG_DATA_HOME`, and
//! downloads nothing if the file `.tracel-llvm-installed` lies there. PyPI has the same release as static libraries.

use crate::{error::Error, workspace::root};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What pip installs, and nothing else: static libraries and headers of LLVM 23.1, for x86-64 and for all other targets.
const REQUIREMENTS: &str = "\
mlc-llvm-static==23.1.1.post0 \
--hash=sha256:dcfec888abfaa418be77d41af585805f31463584cf9c90582992c00f392c1ac5
mlc-llvm-static-extra-targets==23.1.1.post0 \
--hash=sha256:c36e834d9a4e9cf9759f27fece65711ece7a2fc2b5a96dbb15d66f5e9e787929
";

/// The CUDA API that calls are generated for: 13.0, which drivers from 580 on have.
const CUDA_API: (&str, &str) = ("CUDARC_CUDA_VERSION", "13000");

/// The mark of a finished installation, which the build script looks for.
const MARK: &str = ".tracel-llvm-installed";

/// What `setup-cuda` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where LLVM goes: 92 MB to download, 423 MB unpacked [default: `peft-llvm` in the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Installs LLVM where it is not yet, and prints the variables that a build needs.
///
/// # Errors
/// No pip, no network, another platform than Linux on x86-64; a file that cannot be written.
pub(crate) fn setup(arguments: &Arguments) -> Result<(), Error> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Error::NoLlvm {
            message: "PyPI has it for Linux on x86-64 only; there, Burn's build downloads its own"
                .to_owned(),
        });
    }
    let folder = match &arguments.folder {
        Some(folder) => std::path::absolute(folder).map_err(Error::io("resolve", folder))?,
        None => default_folder()?,
    };
    let installed = link(&folder)?;
    if !installed.join(MARK).is_file() {
        install(&folder, &installed)?;
    }
    println!(
        "# LLVM is in {}. For every call of cargo with the feature `cuda` or `cpu`:",
        folder.display()
    );
    for (name, value) in variables(&data(&folder)) {
        println!("export {name}={}", value.display());
    }
    Ok(())
}

/// The variables of a build, if `setup-cuda` has run, into its own folder or into that of `XDG_DATA_HOME`.
///
/// # Errors
/// `Cargo.lock` cannot be read.
pub(crate) fn environment() -> Result<Option<Vec<(&'static str, OsString)>>, Error> {
    let name = linked_name()?;
    let set = env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let folders = [set, Some(data(&default_folder()?))];
    let found = folders
        .into_iter()
        .flatten()
        .find(|data| data.join(&name).join(MARK).is_file());
    Ok(found.map(|data| variables(&data)))
}

/// `XDG_DATA_HOME` of a build.
fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn variables(data: &Path) -> Vec<(&'static str, OsString)> {
    vec![
        ("XDG_DATA_HOME", data.into()),
        (CUDA_API.0, CUDA_API.1.into()),
    ]
}

fn default_folder() -> Result<PathBuf, Error> {
    let cache = dirs::cache_dir().ok_or_else(|| Error::NoLlvm {
        message: "the user has no cache folder; give one with --folder".to_owned(),
    })?;
    Ok(cache.join("peft-llvm"))
}

/// Where the build script looks.
fn link(folder: &Path) -> Result<PathBuf, Error> {
    Ok(data(folder).join(linked_name()?))
}

/// Its place below `XDG_DATA_HOME`, which holds the version of the build script.
fn linked_name() -> Result<PathBuf, Error> {
    let path = root().join("Cargo.lock");
    let lock = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let version = version_of(&lock, "tracel-llvm-bundler").ok_or_else(|| Error::NoLlvm {
        message: format!("{} has no package tracel-llvm-bundler", path.display()),
    })?;
    Ok(Path::new("tracel").join(format!("tracel-llvm-{version}")))
}

/// The version of a package in the text of a `Cargo.lock`.
fn version_of<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let version = lines.nth(1)?.strip_prefix("version = \"")?;
    version.strip_suffix('"')
}

fn install(folder: &Path, link: &Path) -> Result<(), Error> {
    let packages = pip(folder, "pip", REQUIREMENTS)?;
    let data = link.parent().unwrap_or(folder);
    fs::create_dir_all(data).map_err(Error::io("create", data))?;
    let libraries = packages.join("mlc_llvm_static/static");
    if !libraries.join("bin/llvm-config").is_file() {
        return Err(Error::NoLlvm {
            message: format!("the package has no {}/bin/llvm-config", libraries.display()),
        });
    }
    if link.is_symlink() {
        fs::remove_file(link).map_err(Error::io("remove", link))?;
    }
    symlink(&libraries, link)?;
    let mark = link.join(MARK);
    fs::write(&mark, "").map_err(Error::io("write", &mark))
}

/// Installs packages into a folder of this name, which is returned.
fn pip(folder: &Path, name: &str, requirements: &str) -> Result<PathBuf, Error> {
    let packages = folder.join(name);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let list = folder.join(format!("{name}.txt"));
    fs::write(&list, requirements).map_err(Error::io("write", &list))?;
    let mut command = Command::new("python3");
    command
        .args([
            "-m",
            "pip",
            "install",
            "--require-hashes",
            "--no-deps",
            "--no-compile",
            "--upgrade",
        ])
        .arg("--target")
        .arg(&packages)
        .arg("--requirement")
        .arg(&list)
        // What it says must not be read as variables to set.
        .stdout(std::io::stderr());
    let shown = crate::cargo::show(&command);
    eprintln!("  {shown}");
    let status = command.status().map_err(|source| Error::Run {
        command: shown,
        source,
    })?;
    if status.success() {
        Ok(packages)
    } else {
        Err(Error::NoLlvm {
            message: format!("pip failed ({status}); its messages are above"),
        })
    }
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> Result<(), Error> {
    std::os::unix::fs::symlink(from, to).map_err(Error::io("create", to))
}

#[cfg(not(unix))]
fn symlink(_from: &Path, to: &Path) -> Result<(), Error> {
    Err(Error::NoLlvm {
        message: format!("{} cannot be a link on this system", to.display()),
    })
}

/// What a check writes that needs LLVM and has none.
pub(crate) const MISSING: &str = "no LLVM to compile kernels with: cargo xtask setup-cuda";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_lock_file() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0-4\"\n";
        assert_eq!(version_of(lock, "b"), Some("2.0.0-4"));
        assert_eq!(version_of(lock, "c"), None);
        assert!(linked_name().unwrap().starts_with("tracel"));
    }

    #[test]
    fn every_package_has_a_hash() {
        for line in REQUIREMENTS.lines() {
            let (_, hash) = line.split_once(" --hash=sha256:").unwrap();
            assert_eq!(hash.len(), 64);
        }
    }
}
