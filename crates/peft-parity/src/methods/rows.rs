//! The rows of the table, as `docs/methods/table.toml` and the registry have them.

use std::path::Path;

use peft_core::method::MethodInfo;
use serde::Deserialize;

use super::{Wrong, text};

/// The file of rows, from the repository's root.
const FILE: &str = "docs/methods/table.toml";

/// The registered methods by crate, in the order of [`peft::methods`].
pub(super) fn crates() -> Vec<(&'static str, &'static [&'static MethodInfo])> {
    vec![
        ("peft-selective", peft::selective::METHODS),
        ("peft-additive", peft::additive::METHODS),
        ("peft-reparameterization", peft::reparameterization::METHODS),
        ("peft-soft-prompt", peft::soft_prompt::METHODS),
        ("peft-hybrid", peft::hybrid::METHODS),
    ]
}

/// One row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Names of registered methods; none for what is no method by itself.
    #[serde(default)]
    pub methods: Vec<String>,
    /// The page in `docs/methods`.
    pub page: String,
    /// How it is called. Default: the methods' titles.
    pub title: Option<String>,
    /// What stands behind the title. Default: nothing.
    #[serde(default)]
    pub after: String,
    /// The family, where no method tells it.
    pub family: Option<String>,
    /// The crate, where no method tells it.
    pub package: Option<String>,
    /// How many parameters train on MiniLM-L6, and with which configuration.
    pub trains: String,
    /// Whether it can be merged. Default: what the registry says.
    pub merges: Option<String>,
    /// Folders of vendored cases that do not tell their method: of several adapters, say.
    #[serde(default)]
    pub cases: Vec<String>,
    /// What besides vendored checkpoints it was verified against.
    pub also: Option<String>,
    /// The tests that do this, from the repository's root.
    #[serde(default)]
    pub tests: Vec<String>,
}

impl Row {
    /// The registrations of its methods.
    pub(super) fn infos(&self) -> impl Iterator<Item = (&'static str, &'static MethodInfo)> {
        let all = crates().into_iter().flat_map(|(package, infos)| {
            let infos = infos.iter().copied();
            infos.map(move |info| (package, info))
        });
        all.filter(|(_, info)| self.methods.iter().any(|name| name == info.name))
    }

    /// Refuses what does not fit the registry or the repository.
    fn check(&self, root: &Path) -> Result<(), String> {
        let page = &self.page;
        if !root.join("docs/methods").join(page).is_file() {
            return Err(format!("`{page}` is no page of docs/methods"));
        }
        let known: Vec<&str> = self.infos().map(|(_, info)| info.name).collect();
        if let Some(name) = self
            .methods
            .iter()
            .find(|name| !known.contains(&name.as_str()))
        {
            return Err(format!("`{page}`: `{name}` is no registered method"));
        }
        let bare = self.title.is_none() || self.family.is_none() || self.package.is_none();
        if known.is_empty() && (bare || self.merges.is_none()) {
            return Err(format!(
                "`{page}`: a row without methods needs `title`, `family`, `package` and `merges`"
            ));
        }
        if self.also.is_some() == self.tests.is_empty() {
            return Err(format!(
                "`{page}`: `also` needs `tests` that do it, and they need it"
            ));
        }
        match self.tests.iter().find(|test| !root.join(test).is_file()) {
            Some(test) => Err(format!("`{page}`: there is no `{test}`")),
            None => Ok(()),
        }
    }
}

/// All rows, in the order of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// They.
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

impl Rows {
    /// Reads them. Every registered method must be in one row, and in one only.
    ///
    /// # Errors
    ///
    /// [`Wrong`].
    pub fn read(root: &Path) -> Result<Self, Wrong> {
        let path = root.join(FILE);
        let wrong = |reason: String| Wrong::new(&path, reason);
        let rows: Self = toml::from_str(&text(&path)?).map_err(|error| Wrong::new(&path, error))?;
        for row in &rows.rows {
            row.check(root).map_err(wrong)?;
        }
        for info in peft::methods() {
            let of = |row: &&Row| row.methods.iter().any(|name| name == info.name);
            match rows.rows.iter().filter(of).count() {
                1 => {}
                0 => {
                    let (name, title) = (info.name, info.title);
                    let row = "[[row]] with `methods`, `page` and `trains`";
                    return Err(wrong(format!(
                        "{title} has no row: add a {row} for `{name}`"
                    )));
                }
                count => return Err(wrong(format!("`{}` is in {count} rows", info.name))),
            }
        }
        Ok(rows)
    }
}
