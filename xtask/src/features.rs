//! The one set of features that everything is built with.

/// The crates whose features choose the backend.
pub(crate) const BACKEND_CRATES: [&str; 14] = [
    "peft-ops",
    "peft-bench",
    "peft-core",
    "peft-additive",
    "peft-selective",
    "peft-reparameterization",
    "peft-soft-prompt",
    "peft-models",
    "peft-quantization",
    "peft-train",
    "peft-conformance",
    "peft-parity",
    "peft-compare",
    "peft",
];

/// `flex` is the default feature of each crate; this adds the other.
pub(crate) fn both_cpu_backends() -> String {
    BACKEND_CRATES
        .map(|package| format!("{package}/ndarray"))
        .join(",")
}
