//! The one set of features that everything is built with.

/// The crates whose features choose the backend.
pub(crate) const BACKEND_CRATES: [&str; 15] = [
    "peft-ops",
    "peft-bench",
    "peft-core",
    "peft-additive",
    "peft-selective",
    "peft-reparameterization",
    "peft-soft-prompt",
    "peft-hybrid",
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

/// What cargo gets for a build that tests and checks: our crates are hardly optimised, except for the kernels.
///
/// Their time is in Burn and in `peft-ops`, which are as fast as ever; compiling them with optimisation takes three times
/// as long. Two of them call generic linear algebra, which is compiled with the caller: without any optimisation a singular
/// value decomposition takes twenty times as long. Whoever calls cargo without these options gets everything optimised.
pub(crate) fn built_quickly() -> Vec<String> {
    let level = |package: &str| match package {
        "peft-ops" => None,
        "peft-quantization" | "peft-reparameterization" => Some(1),
        _ => Some(0),
    };
    let option = |package: &&str| {
        let level = level(package)?;
        Some(format!(
            "profile.release.package.{package}.opt-level={level}"
        ))
    };
    BACKEND_CRATES
        .iter()
        .filter_map(option)
        .flat_map(|option| ["--config".to_owned(), option])
        .collect()
}
