//! The error of this crate. Its texts say what was wrong, where, and what would be right.

use std::path::{Path, PathBuf};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a model or a checkpoint was refused.
///
/// Every operation takes the model by reference and returns a new one, so after an error the
/// model is as it was; files are written under a temporary name first, so they are too.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration field holds a value that cannot work.
    #[error("{method}: `{field}` is {value}; {expected}")]
    Config {
        /// Method the configuration belongs to.
        method: &'static str,
        /// Field, as it is called in `adapter_config.json`.
        field: &'static str,
        /// The value found.
        value: String,
        /// What would be right.
        expected: String,
    },

    /// A weight cannot be stored in a quantized form.
    #[error("`{layer}` cannot be quantized: {reason}")]
    Packing {
        /// The layer's name.
        layer: String,
        /// Why not.
        reason: String,
    },

    /// The target selection matched no layer of the model.
    #[error(
        "no layer matches {targets}{excluded}. Layers of this model:\n{available}\n\
         Names match exactly or as a suffix after a dot; a single string is a regular expression for the whole name"
    )]
    NoTarget {
        /// The selection.
        targets: String,
        /// What was excluded, as text to append, or empty.
        excluded: String,
        /// The layers there are, one a line.
        available: String,
    },

    /// Some names of the target list matched nothing.
    #[error(
        "target {missing} matches no layer, the others of the list do. Layers of this model:\n{available}"
    )]
    PartialTarget {
        /// The names without a match.
        missing: String,
        /// The layers there are, one a line.
        available: String,
    },

    /// Keys of a `rank_pattern` or its like fit no adapted layer.
    #[error(
        "{method}: `{field}` has {missing}, which fits the name of no adapted layer. Adapted layers:\n{available}\n\
         A key is a regular expression for the end of the name, from the start or after a dot"
    )]
    UnusedPattern {
        /// Method.
        method: &'static str,
        /// Field, as it is called in `adapter_config.json`.
        field: &'static str,
        /// The keys.
        missing: String,
        /// The adapted layers, one a line.
        available: String,
    },

    /// A selected layer is of a kind that the method cannot adapt.
    #[error(
        "{method} cannot adapt `{layer}`, a {kind}; it adapts {supported}. Narrow the targets or exclude that layer"
    )]
    UnsupportedLayer {
        /// Method.
        method: &'static str,
        /// The layer's name.
        layer: String,
        /// The layer's kind.
        kind: String,
        /// Kinds that would do.
        supported: String,
    },

    /// A regular expression in the configuration does not compile.
    #[error("`{pattern}` is not a valid regular expression: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The parser's words.
        reason: String,
    },

    /// The method acts at sites that this model does not have.
    #[error(
        "{method} acts at {kind} sites, and this model has none{available}. Give the model a `peft_core::Site` there, or choose a method that adapts weights"
    )]
    NoSite {
        /// Method.
        method: &'static str,
        /// Kind of site asked for.
        kind: String,
        /// The sites there are, as text to append.
        available: String,
    },

    /// A name in `modules_to_save` matches no module.
    #[error(
        "modules_to_save names `{name}`, and no name of a module of this model ends so. Modules with parameters:\n{available}"
    )]
    NoModuleToSave {
        /// The name.
        name: String,
        /// The modules there are, one a line.
        available: String,
    },

    /// An adapter of this name is on the model already.
    #[error(
        "an adapter named `{name}` is attached already; detach it first or choose another name"
    )]
    AlreadyAttached {
        /// The name.
        name: String,
    },

    /// No adapter of this name is on the model.
    #[error("no adapter named `{name}` is attached; attached: {attached}")]
    UnknownAdapter {
        /// The name.
        name: String,
        /// The names there are.
        attached: String,
    },

    /// The name cannot be used.
    #[error("`{name}` cannot name an adapter: use letters, digits, `-` and `_`")]
    AdapterName {
        /// The name.
        name: String,
    },

    /// An active adapter has no place in the base weights.
    #[error(
        "`{adapter}` ({method}) at `{place}` cannot be merged: it is no change of a weight. Detach or deactivate it, or run unmerged"
    )]
    Unmergeable {
        /// The adapter.
        adapter: String,
        /// Its method.
        method: &'static str,
        /// Where it sits.
        place: String,
    },

    /// A refusal of a method's own, with an error type of its crate: see `std::error::Error::downcast_ref`.
    #[error(transparent)]
    Method(Box<dyn std::error::Error + Send + Sync>),

    /// A composition of adapters that cannot be.
    #[error("`{adapter}` cannot be composed so: {reason}")]
    Composition {
        /// The adapter.
        adapter: String,
        /// Where and why not, and what would do.
        reason: String,
    },

    /// The model is merged, so its adapters cannot be changed.
    #[error(
        "the model's adapters are merged; call `unmerge_adapters` first, or go on from the model you merged from"
    )]
    Merged,

    /// Merging would write values that are no numbers.
    #[error("merging {adapters} would put NaN or infinity into `{parameter}`; nothing was merged")]
    NotFinite {
        /// The parameter.
        parameter: String,
        /// The adapters involved.
        adapters: String,
    },

    /// A method's state has a parameter that no file would hold: a mistake in the method.
    #[error(
        "{method} at `{place}`: the state has the parameter `{field}`, and its `Adapter::tensors` does not list it; \
         list it there, as `CheckpointKey::unsaved` if the configuration says all about it"
    )]
    UnlistedTensor {
        /// The method.
        method: &'static str,
        /// Where the state is.
        place: String,
        /// The parameter's field.
        field: String,
    },

    /// Tensors that an adapter cannot take up.
    #[error("tensors for adapter `{adapter}`: {reason}")]
    Tensors {
        /// The adapter's name.
        adapter: String,
        /// What is wrong, and what would be right.
        reason: String,
    },

    /// Statistics of layers' inputs or parameters' gradients that cannot be gathered, or were not.
    #[error("calibration of `{place}`: {reason}")]
    Calibration {
        /// Upstream's name of the layer or parameter.
        place: String,
        /// What is wrong, and what would be right.
        reason: String,
    },

    /// Burn's own reparameterization is on a parameter.
    #[error(
        "`{parameter}` already carries Burn's own `{found}` reparameterization; `materialize()` the model before attaching adapters of peft"
    )]
    ForeignReparameterization {
        /// The parameter.
        parameter: String,
        /// The reparameterization's name.
        found: String,
    },

    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },

    /// A checkpoint is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong in it and what would be right.
        reason: String,
    },

    /// A checkpoint is of a method that is not known here.
    #[error("{path}: peft_type is `{found}`; this loads {known}", path = path.display())]
    UnknownMethod {
        /// The file.
        path: PathBuf,
        /// The type found.
        found: String,
        /// Types that would do.
        known: String,
    },

    /// The device is unknown or not compiled in.
    #[error("device `{found}` cannot be used here; compiled in: {available}")]
    Device {
        /// The device asked for.
        found: String,
        /// What would do.
        available: String,
    },

    /// The backend is compiled in, and the machine lacks what it needs.
    #[error("device `{found}` cannot be used on this machine: {missing}")]
    NoDevice {
        /// The device asked for.
        found: String,
        /// What is missing, and where it comes from.
        missing: String,
    },
}

impl Error {
    /// A refused configuration field.
    pub fn config(
        method: &'static str,
        field: &'static str,
        value: impl std::fmt::Debug,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config {
            method,
            field,
            value: format!("{value:?}"),
            expected: expected.into(),
        }
    }

    /// Keys of a field that fit none of `layers`, of which long lists are cut.
    pub fn unused_pattern<'a>(
        method: &'static str,
        field: &'static str,
        keys: Vec<&str>,
        layers: impl Iterator<Item = &'a str>,
    ) -> Self {
        let keys: Vec<_> = keys.into_iter().map(|key| format!("`{key}`")).collect();
        Self::UnusedPattern {
            method,
            field,
            missing: keys.join(", "),
            available: listing(layers.map(str::to_string)),
        }
    }
}

/// For `map_err`: what the system says about `path`.
pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

/// A checkpoint that is not what it should be.
pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint {
        path: path.into(),
        reason: reason.into(),
    }
}

/// A list for an error message, one a line; long ones are cut.
pub(crate) fn listing(lines: impl Iterator<Item = String>) -> String {
    const MOST: usize = 40;
    let mut lines = lines.map(|line| format!("  {line}"));
    let mut listed: Vec<_> = lines.by_ref().take(MOST).collect();
    let more = lines.count();
    if more > 0 {
        listed.push(format!(
            "  … and {more} more; print `model.layout()` for all"
        ));
    }
    listed.join("\n")
}
