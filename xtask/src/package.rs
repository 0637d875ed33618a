//! The crates that are published: packed as they would be uploaded, and compiled from these packages.

use crate::{cargo::cargo, error::Error, workspace};
use cargo_metadata::{Metadata, Package};
use flate2::read::GzDecoder;
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::Command,
};
use tar::Archive;

/// No package is larger, in bytes. Golden files or data that slip in are.
const LARGEST: u64 = 512 << 10;

/// Files that every package has.
const NEEDED: [&str; 4] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"];

/// Packs all crates that are published, looks into the packages, and checks the types of what is in them.
///
/// Cargo's own verification would compile Burn again, in another profile. So the packages become a workspace with
/// our lock file, profiles and target folder, which has Burn already. `run` runs a command.
///
/// # Errors
/// What cargo refuses; a package that is too large, or that lacks one of the files above.
pub(crate) fn check(
    features: &str,
    run: impl Fn(&mut Command) -> Result<(), Error>,
) -> Result<(), Error> {
    let metadata = workspace::metadata()?;
    let packages: Vec<&Package> = published(&metadata).collect();
    let mut command = cargo(["package", "--no-verify", "--offline", "--allow-dirty"]);
    command.args(packages.iter().flat_map(|package| ["-p", &package.name]));
    run(&mut command)?;

    let target = metadata.target_directory.as_std_path();
    let folder = target.join("package/workspace");
    for package in &packages {
        let name = format!("{}-{}.crate", package.name, package.version);
        unpack(
            &target.join("package").join(name),
            &folder.join("crates").join(package.name.as_str()),
        )?;
    }
    write_workspace(&folder, &packages)?;
    let mut command = cargo(["check", "--release", "--workspace", "--offline"]);
    let names: Vec<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let features: Vec<&str> = features
        .split(',')
        .filter(|feature| {
            names
                .iter()
                .any(|name| feature.starts_with(&format!("{name}/")))
        })
        .collect();
    command
        .args(["--features", &features.join(",")])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", target);
    run(&mut command)
}

fn published(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    let packages = metadata.packages.iter();
    packages.filter(|package| package.publish.as_ref().is_none_or(|to| !to.is_empty()))
}

/// Unpacks a package into `folder`. A file that is there already with the same content keeps its time, so that cargo
/// compiles only what changed; a file that is not in the package is removed.
fn unpack(package: &Path, folder: &Path) -> Result<(), Error> {
    let wrong = |message: String| Error::Package {
        message: format!("{}: {message}", package.display()),
    };
    let size = fs::metadata(package)
        .map_err(Error::io("read", package))?
        .len();
    if size > LARGEST {
        return Err(wrong(format!(
            "{size} bytes are more than {LARGEST}; keep tests and data out by `include` in its Cargo.toml"
        )));
    }
    let file = fs::File::open(package).map_err(Error::io("read", package))?;
    let mut archive = Archive::new(GzDecoder::new(file));
    let mut names = BTreeSet::new();
    for entry in archive.entries().map_err(Error::io("read", package))? {
        let mut entry = entry.map_err(Error::io("read", package))?;
        let path = entry.path().map_err(Error::io("read", package))?;
        // The first segment is the package's name and version.
        let name: PathBuf = path.components().skip(1).collect();
        let mut content = Vec::new();
        entry
            .read_to_end(&mut content)
            .map_err(Error::io("read", package))?;
        write_if_changed(&folder.join(&name), &content)?;
        names.insert(name);
    }
    for needed in NEEDED {
        if !names.contains(Path::new(needed)) {
            return Err(wrong(format!("`{needed}` is missing")));
        }
    }
    remove_others(folder, folder, &names)
}

fn remove_others(folder: &Path, root: &Path, names: &BTreeSet<PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            remove_others(&path, root, names)?;
        } else if path
            .strip_prefix(root)
            .is_ok_and(|name| !names.contains(name))
        {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The workspace of the unpacked crates: our manifest with other members, in which each crate stands for the one of
/// the same name on the registry.
fn write_workspace(folder: &Path, packages: &[&Package]) -> Result<(), Error> {
    let ours = workspace::root();
    let read = |name: &str| {
        let path = ours.join(name);
        fs::read_to_string(&path).map_err(Error::io("read", path))
    };
    let members: Vec<String> = packages
        .iter()
        .map(|package| format!("\"crates/{}\"", package.name))
        .collect();
    let mut manifest = with_members(&read("Cargo.toml")?, &members.join(", "));
    manifest.push_str("\n[patch.crates-io]\n");
    for package in packages {
        let _ = writeln!(manifest, "{0} = {{ path = \"crates/{0}\" }}", package.name);
    }
    write_if_changed(&folder.join("Cargo.toml"), manifest.as_bytes())?;
    write_if_changed(&folder.join("Cargo.lock"), read("Cargo.lock")?.as_bytes())
}

/// A manifest with other members, and without default members.
fn with_members(manifest: &str, members: &str) -> String {
    let lines = manifest.lines().filter_map(|line| {
        if line.starts_with("default-members = ") {
            None
        } else if line.starts_with("members = ") {
            Some(format!("members = [{members}]\n"))
        } else {
            Some(format!("{line}\n"))
        }
    });
    lines.collect()
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), Error> {
    match fs::read(path) {
        Ok(old) if old == content => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    fs::write(path, content).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};

    fn pack(path: &Path, files: &[(&str, &[u8])]) {
        let encoder = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
        let mut archive = tar::Builder::new(encoder);
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let name = format!("one-0.1.0/{name}");
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap();
    }

    #[test]
    fn a_package_is_unpacked_over_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("one.crate"), folder.path().join("one"));
        let all: Vec<(&str, &[u8])> = NEEDED.iter().map(|name| (*name, &b"text"[..])).collect();
        pack(&file, &[&all[..], &[("src/old.rs", b"old")]].concat());
        unpack(&file, &out).unwrap();
        let time = fs::metadata(out.join("src/lib.rs"))
            .unwrap()
            .modified()
            .unwrap();
        assert!(out.join("src/old.rs").exists());
        pack(&file, &[&all[..], &[("src/new.rs", b"new")]].concat());
        unpack(&file, &out).unwrap();
        let again = fs::metadata(out.join("src/lib.rs"))
            .unwrap()
            .modified()
            .unwrap();
        assert_eq!(time, again);
        assert!(!out.join("src/old.rs").exists());
        assert_eq!(fs::read(out.join("src/new.rs")).unwrap(), b"new");
    }

    #[test]
    fn a_package_without_a_licence_and_one_with_data_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("one.crate"), folder.path().join("one"));
        pack(&file, &[("README.md", b"text"), ("LICENSE-MIT", b"text")]);
        let error = unpack(&file, &out).unwrap_err().to_string();
        assert!(error.contains("`LICENSE-APACHE` is missing"), "{error}");
        // What does not compress: every byte by a generator.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(1 << 20)
        .collect();
        pack(&file, &[("tests/golden/model.safetensors", &noise)]);
        let error = unpack(&file, &out).unwrap_err().to_string();
        assert!(error.contains("more than 524288"), "{error}");
    }

    #[test]
    fn other_members_take_the_place_of_ours() {
        let ours = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        let other = with_members(&ours, "\"crates/one\"");
        assert!(other.contains("\nmembers = [\"crates/one\"]\n"), "{other}");
        assert!(!other.contains("\"xtask\""), "{other}");
        assert!(other.contains("\n[profile.release]\n"), "{other}");
    }
}
