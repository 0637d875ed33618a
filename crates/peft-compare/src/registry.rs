//! Which methods can be compared.

use peft_core::method::MethodInfo;

use crate::base::UNTRAINED;
use crate::{Error, Result};

/// The methods of a comparison. A program of one's own adds its methods and becomes the comparison:
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use peft::core::method::MethodInfo;
/// use peft_compare::Registry;
///
/// fn compare_with(mine: &'static MethodInfo) -> ExitCode {
///     peft_compare::main(&Registry::library().with(mine))
/// }
/// ```
///
/// A method needs no more than that: it is compared with its default configuration and the learning rates of its
/// family. [`with_entries`](Self::with_entries) gives it others.
#[derive(Clone, Debug)]
pub struct Registry {
    methods: Vec<&'static MethodInfo>,
    /// `[[method]]` tables besides those of `methods.toml`.
    entries: Vec<String>,
}

impl Registry {
    /// The library's methods, and the model as it came.
    pub fn library() -> Self {
        let mut methods = peft::methods();
        methods.push(&UNTRAINED);
        Self {
            methods,
            entries: Vec::new(),
        }
    }

    /// Adds a method.
    #[must_use]
    pub fn with(mut self, method: &'static MethodInfo) -> Self {
        self.methods.push(method);
        self
    }

    /// Adds configurations, as `[[method]]` tables of TOML with the fields of `benches/compare/methods.toml`. They
    /// are read when a comparison starts.
    #[must_use]
    pub fn with_entries(mut self, toml: impl Into<String>) -> Self {
        self.entries.push(toml.into());
        self
    }

    /// The methods, in the order in which they were added.
    pub fn methods(&self) -> &[&'static MethodInfo] {
        &self.methods
    }

    /// The method called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`].
    pub fn method(&self, name: &str) -> Result<&'static MethodInfo> {
        let found = self.methods.iter().find(|info| info.name == name);
        found.copied().ok_or_else(|| Error::Unknown {
            kind: "registered method",
            name: name.into(),
            known: self.names(),
        })
    }

    /// The names, for people.
    pub(crate) fn names(&self) -> String {
        let names: Vec<_> = self.methods.iter().map(|info| info.name).collect();
        names.join(", ")
    }

    /// Texts of more entries.
    pub(crate) fn entries(&self) -> &[String] {
        &self.entries
    }

    /// Refuses two methods of one name: a definition could mean either.
    pub(crate) fn check(&self) -> Result<()> {
        for (index, info) in self.methods.iter().enumerate() {
            let same =
                |other: &&MethodInfo| other.name == info.name || other.peft_type == info.peft_type;
            if let Some(other) = self.methods[..index].iter().copied().find(same) {
                return Err(Error::Definition {
                    file: "the registry".into(),
                    reason: format!(
                        "two methods share a name or a peft_type: `{}` ({}) and `{}` ({}); give yours one of its own",
                        other.name, other.peft_type, info.name, info.peft_type
                    ),
                });
            }
        }
        Ok(())
    }
}

impl Default for Registry {
    /// [`library`](Self::library).
    fn default() -> Self {
        Self::library()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_has_every_method_and_the_model_as_it_came() {
        let registry = Registry::library();
        assert_eq!(registry.methods().len(), peft::methods().len() + 1);
        assert_eq!(registry.method("base").unwrap().peft_type, "BASE");
        registry.check().unwrap();
        let error = registry.method("lorra").unwrap_err().to_string();
        assert!(error.contains("lorra") && error.contains("lora"), "{error}");
    }

    #[test]
    fn a_name_that_is_taken_is_refused() {
        let error = Registry::library().with(&UNTRAINED).check().unwrap_err();
        assert!(error.to_string().contains("`base` (BASE)"), "{error}");
    }
}
