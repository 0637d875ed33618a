//! Upstream's checkpoints and the values that upstream computes from them.
//!
//! A case is a folder with a checkpoint as upstream writes it, and beside it `io.safetensors`
//! (`input_ids` and `attention_mask`, or `input`; `output`, where the rows have tasks `task_ids`, where upstream can merge `merged`;
//! metadata `trainable`) and, where upstream's gradients are known, `grads.safetensors`: those of
//! mean(output²), by checkpoint key. Where upstream trains an encoder and stores what that computes,
//! `encoder.safetensors` holds the encoder, and the gradients are those of its parameters.
//!
//! A case of several adapters is a folder with `io.safetensors` and one sub-folder for each checkpoint. Its name says how
//! they are composed: `composition_stack`, `composition_average` (weights 0.3 and 0.7), `composition_fuse`. No
//! `trainable` is needed there. With `arrow.json` in it, it is one of Arrow's. X-LoRA's experts are sub-folders of a
//! case whose `encoder.safetensors` is the classifier. An average is computed as `adapters` 1.3 does, which divides the weighted mean of n adapters by n
//! once more; [`Composition::Weighted`](peft_core::Composition::Weighted) does not.

mod case;
mod cnn;
mod compare;
mod composed;
mod counted;
mod gradients;
mod lost;
mod measure;
mod rounding;
mod routed;
mod shared;
mod tolerance;
mod upstream_average;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use peft_core::method::MethodInfo;

use case::is_composed;
pub use case::{SAYS_LESS, UPSTREAM_IS_WRONG_UNMERGED, UPSTREAM_MERGES_WRONG, is_case, peft_type};
pub use cnn::{ARCHITECTURE_FILE, Cnn};
pub use counted::Counted;
pub use measure::measure;
pub use rounding::Rounding;
pub use tolerance::{EXCUSED_BY_ROUNDING, MOST_EXCUSED, ROUNDINGS, Tolerance, tolerance};

type Tensors = BTreeMap<String, TensorData>;

/// Fields of upstream's, each with the method, that are refused here and whose page says why.
pub const REFUSED: &[(&str, &str)] = &[
    ("LoRA", "layer_replication"),
    // Upstream makes an adapter of nothing.
    ("LoReFT", "output_reft"),
    ("NoReFT", "output_reft"),
    ("DiReFT", "output_reft"),
    // A rotation of the whole stream, which is no edit of a subspace.
    ("LoReFT", "r"),
    // Upstream makes an IA3 of the one, and draws matrices for the others that it does not use.
    ("MTL-LoRA", "composition_mode"),
    ("MTL-LoRA", "vera_d"),
    ("MTL-LoRA", "vera_b"),
];

/// What a case was found to be.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Largest difference of the outputs.
    pub output: f32,
    /// Largest difference of the merged model's outputs, where upstream can merge.
    pub merged: Option<f32>,
    /// Largest difference of the gradients, over the largest gradient, where they are known.
    pub gradients: Option<f32>,
    /// Elements that are trained here.
    pub trainable: usize,
    /// How many numbers upstream's file lacks, which were found from its outputs: what all adapters share, in a model
    /// without a head.
    pub lost: usize,
    /// Elements that upstream trains, in the form that the file holds; not known of several adapters, and where
    /// `io.safetensors` does not say it.
    pub expected: Option<usize>,
    /// What upstream's own count is of, where that is another form.
    pub counted: Option<Counted>,
    /// What rounding does to this case; measured where something is beyond [`tolerance()`].
    pub rounding: Option<Rounding>,
}

impl Measured {
    /// Of a distance of outputs and a count, with nothing else measured.
    fn of_output(output: f32, trainable: usize, expected: Option<usize>) -> Self {
        Self {
            output,
            merged: None,
            gradients: None,
            trainable,
            lost: 0,
            expected,
            counted: None,
            rounding: None,
        }
    }
}

/// Why a case could not be measured.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// There is no such method, or no such model, here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// It is refused here by name, as its method's page says.
    #[error("refused, as its page says: {0}")]
    Refused(String),
    /// The case could not be read or run.
    #[error("{0}")]
    Failed(String),
}

impl Problem {
    fn new(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> Self + '_ {
        move |reason| Self::Failed(format!("{}: {reason}", path.display()))
    }
}

impl From<peft_core::Error> for Problem {
    fn from(error: peft_core::Error) -> Self {
        match error {
            peft_core::Error::UnknownMethod { found, .. } => Self::Unsupported(found),
            peft_core::Error::Config { method, field, .. }
                if REFUSED.contains(&(method, field)) =>
            {
                Self::Refused(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Checks cases on every CPU device, within [`tolerance()`].
///
/// # Panics
///
/// Naming case, device and distances.
pub fn check(base: &Path, cases: &Path, names: &[&str], methods: &[&MethodInfo]) {
    for (device_name, device) in peft_core::device::cpu_devices() {
        for name in names {
            let measured = measure(base, &cases.join(name), methods, &device)
                .unwrap_or_else(|problem| panic!("{name} on {device_name}: {problem}"));
            println!("{name} on {device_name}: {measured:?}");
            let counted = measured.expected.is_some() || is_composed(&cases.join(name));
            assert!(counted, "{name}: io.safetensors says no `trainable`");
            let tolerance = tolerance(&cases.join(name));
            assert!(
                measured.fits(tolerance),
                "{name} on {device_name}: {measured:?}, wanted {tolerance:?}"
            );
        }
    }
}
