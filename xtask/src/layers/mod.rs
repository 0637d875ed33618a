//! The layers of each crate: folders import downward only, so no files and no folders import each other in a circle.

mod imports;
mod rooms;
mod source;

use crate::{error::Error, workspace};
use cargo_metadata::TargetKind;
use rooms::{Arrow, Floor};
use source::Source;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// What to print.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these crates; without a name, all of the workspace
    crates: Vec<String>,
    /// Also the imports, name by name
    #[arg(long)]
    names: bool,
}

/// A library or a program of the workspace.
struct Package {
    name: String,
    folder: PathBuf,
    floors: Vec<Floor>,
}

/// Prints the folders of each crate from the top down, and what each imports.
///
/// # Errors
/// A name that no crate has; a source that cannot be read.
pub(crate) fn print(arguments: &Arguments) -> Result<(), Error> {
    let packages = packages()?;
    for name in &arguments.crates {
        if !packages.iter().any(|package| package.name == *name) {
            let mut known: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
            known.dedup();
            return Err(Error::NoCrate {
                name: name.clone(),
                known: known.join(", "),
            });
        }
    }
    for package in packages {
        if arguments.crates.is_empty() || arguments.crates.contains(&package.name) {
            print!("{}", package.list(arguments.names));
        }
    }
    Ok(())
}

/// Refuses circles.
///
/// # Errors
/// The circles with the imports that tie them.
pub(crate) fn check() -> Result<(), Error> {
    let text: String = packages()?.iter().map(Package::circles).collect();
    if text.is_empty() {
        Ok(())
    } else {
        Err(Error::Circles { text })
    }
}

/// The libraries and programs of the workspace, each read.
fn packages() -> Result<Vec<Package>, Error> {
    let metadata = workspace::metadata()?;
    let mut packages = Vec::new();
    for package in &metadata.packages {
        let folder = package
            .manifest_path
            .parent()
            .map_or_else(PathBuf::new, Into::into);
        for target in &package.targets {
            let code = [TargetKind::Lib, TargetKind::Bin, TargetKind::ProcMacro];
            if code.iter().any(|kind| target.kind.contains(kind)) {
                packages.push(Package::read(
                    &package.name,
                    &folder,
                    target.src_path.as_std_path(),
                )?);
            }
        }
    }
    Ok(packages)
}

impl Package {
    /// Reads the crate whose root is the file `root`.
    fn read(name: &str, folder: &Path, root: &Path) -> Result<Self, Error> {
        let source = Source::read(root)?;
        let imports = imports::imports(&source);
        Ok(Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            floors: rooms::floors(&source, imports),
        })
    }

    /// The circles as text, empty where there is none.
    fn circles(&self) -> String {
        let mut text = String::new();
        for floor in &self.floors {
            for (rooms, arrows) in floor.circles() {
                let _ = writeln!(
                    text,
                    "{}: in `{}`, {} import each other in a circle:",
                    self.name,
                    floor.module,
                    rooms.join(", ")
                );
                for arrow in arrows {
                    text.push_str(&self.arrow(arrow, true));
                }
            }
        }
        text
    }

    /// The folders and their imports as text.
    fn list(&self, names: bool) -> String {
        let mut text = String::new();
        for floor in &self.floors {
            let _ = writeln!(text, "{}: `{}`, from the top down", self.name, floor.module);
            for room in &floor.rooms {
                for arrow in floor
                    .arrows
                    .iter()
                    .filter(|arrow| room.contains(&arrow.from))
                {
                    let mark = if arrow.to_parent {
                        "  (its parent)"
                    } else if room.contains(&arrow.to) {
                        "  (in a circle)"
                    } else {
                        ""
                    };
                    let line = self.arrow(arrow, names);
                    match line.split_once('\n') {
                        Some((first, rest)) => {
                            let _ = write!(text, "{first}{mark}\n{rest}");
                        }
                        None => text.push_str(&line),
                    }
                }
            }
        }
        text
    }

    /// An arrow with the number of its imports, or with each.
    fn arrow(&self, arrow: &Arrow, names: bool) -> String {
        let mut text = format!(
            "  {} -> {}: {}\n",
            arrow.from,
            arrow.to,
            arrow.imports.len()
        );
        if names {
            for import in &arrow.imports {
                let _ = writeln!(
                    text,
                    "    {}:{} takes {} from {}",
                    imports::shown(&import.from, &self.folder),
                    import.line,
                    import.name,
                    imports::shown(&import.to, &self.folder)
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests;
