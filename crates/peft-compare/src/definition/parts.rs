//! Entries that are built from others.

use std::collections::BTreeSet;

use super::Definitions;
use crate::{Error, Result};

impl Definitions {
    /// Refuses parts that cannot be meant: of entries that are not there, train nothing or have parts themselves, or two
    /// of one name.
    pub(super) fn check_parts(&self, file: &str) -> Result<()> {
        for entry in &self.methods {
            let refuse = |reason: String| {
                Err(Error::Definition {
                    file: file.into(),
                    reason: format!("method `{}`: {reason}", entry.name),
                })
            };
            let mut names = BTreeSet::new();
            for part in &entry.parts {
                if !names.insert(&part.name) {
                    return refuse(format!("two of its parts are called `{}`", part.name));
                }
                let Some(found) = self.methods.iter().find(|other| other.name == part.entry) else {
                    return refuse(format!(
                        "its part `{}` is of the entry `{}`, which is not there",
                        part.name, part.entry
                    ));
                };
                if !found.trains() || !found.parts.is_empty() {
                    return refuse(format!(
                        "its part `{}` is of the entry `{}`; a part is an adapter that is trained by itself",
                        part.name, part.entry
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn parts_that_cannot_be_meant_are_refused() {
        let refused = |parts: &str| {
            let entry = format!(
                "[[method]]\nname = \"fused\"\nmethod = \"adapter-fusion\"\nlearning_rates = [1e-4, 1e-3, 1e-2]\n\
                 config = {{ adapter_names = [\"a\", \"b\"] }}\nparts = [{parts}]\n"
            );
            let registry = Registry::library().with_entries(entry);
            Definitions::load(None, &registry).map_err(|error| error.to_string())
        };
        let pfeiffer = "{ name = \"a\", entry = \"pfeiffer\" }";
        let definitions = refused(pfeiffer).unwrap();
        let fused = definitions
            .methods
            .iter()
            .find(|entry| entry.name == "fused");
        assert_eq!(fused.unwrap().parts[0].entry, "pfeiffer");
        for (parts, reason) in [
            (format!("{pfeiffer}, {pfeiffer}"), "two of its parts"),
            ("{ name = \"a\", entry = \"pfeifer\" }".into(), "not there"),
            (
                "{ name = \"a\", entry = \"base\" }".into(),
                "trained by itself",
            ),
            (
                "{ name = \"a\", entry = \"fused\" }".into(),
                "trained by itself",
            ),
        ] {
            let error = refused(&parts).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
