//! Loading published checkpoints.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use peft_core::KeyMapping;

use super::token_classifier::ANSWERS;
use super::{Bert, BertClassifier, BertConfig, BertTokenClassifier, Pooling, RENAMES};
use crate::LoadError;
use crate::checkpoint::{Checkpoint, fill, wanted};

/// As [`RENAMES`], with the head of a model that answers questions.
const RENAMES_OF_ANSWERS: &[(&str, &str)] = &[RENAMES[0], RENAMES[1], ("classifier", ANSWERS)];

/// Name of a tensor, as all checkpoints of the family agree on: those of whole task models put the
/// encoder under `bert.`, and TensorFlow's old ones call norms' parameters gamma and beta.
fn canonical(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    for (old, new) in [
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
    ] {
        if let Some(module) = name.strip_suffix(old) {
            return format!("{module}{new}");
        }
    }
    name.to_string()
}

/// Buffers that upstream's older versions save, and the heads of pretraining.
fn harmless(name: &str) -> bool {
    matches!(
        name,
        "embeddings.position_ids" | "embeddings.token_type_ids"
    ) || name.starts_with("cls.")
}

/// The module with the checkpoint's values, after everything that the headers can tell is checked.
fn load<M: Module>(
    module: M,
    names: &KeyMapping,
    checkpoint: &mut Checkpoint,
    harmless: impl Fn(&str) -> bool,
) -> Result<M, LoadError> {
    let mut tensors = wanted(&module, names);
    for (name, _) in &mut tensors {
        *name = canonical(name);
    }
    checkpoint.check(&tensors, harmless)?;
    fill(module, names, checkpoint, &canonical, None)
}

fn has_pooler(checkpoint: &Checkpoint) -> bool {
    // One of the two is enough: the other is then missing, and loading says so.
    checkpoint.has("pooler.dense.weight") || checkpoint.has("pooler.dense.bias")
}

impl Bert {
    /// Loads the encoder from a folder in Hugging Face's layout: `config.json` and
    /// `model.safetensors`, or shards and their `model.safetensors.index.json`.
    ///
    /// Read are f32, f16 and bf16 tensors (all become f32), and the 4-bit quantized matrices of the
    /// crate `pocket-encoder` with its `shapes.json`. Names may have the prefix `bert.`. Heads
    /// (`cls.*`, `classifier.*`, `qa_outputs.*`) are left out. A checkpoint without a pooler gives a model without
    /// one. Files are read one tensor at a time, so memory holds the model once.
    ///
    /// Parameters are trainable, as Burn's fresh ones are; attaching an adapter freezes them.
    ///
    /// # Errors
    ///
    /// [`LoadError`], naming the file, field or tensor: another architecture, an unsupported
    /// setting, a damaged file, tensors that are missing, left over, of another shape or number
    /// format, or not finite.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = BertConfig::load(dir)?;
        let mut checkpoint = Checkpoint::open(dir, canonical)?;
        let bert = config.build(has_pooler(&checkpoint), device);
        load(bert, &KeyMapping::new(RENAMES), &mut checkpoint, |name| {
            let heads = ["classifier.", "qa_outputs."];
            harmless(name) || heads.iter().any(|head| name.starts_with(head))
        })
    }
}

impl BertClassifier {
    /// Loads a `BertForSequenceClassification` or `BertForMultipleChoice` checkpoint, as [`Bert::load`] does but with its head
    /// `classifier`; it pools by [`Pooling::Cls`]. The number of classes is the head's.
    ///
    /// A checkpoint of the encoder alone has no head: [`Bert::load`] and
    /// [`new_head`](Self::new_head) are for it.
    ///
    /// # Errors
    ///
    /// As [`Bert::load`].
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = BertConfig::load(dir)?;
        let mut checkpoint = Checkpoint::open(dir, canonical)?;
        let classes = match checkpoint.shape("classifier.weight") {
            Some([classes, _]) => *classes,
            // Missing or of another rank, which loading reports.
            _ => 1,
        };
        let dropout = config.head_dropout();
        let bert = config.build(true, device);
        let model = Self::build(bert, classes, Pooling::Cls, dropout, device);
        load(model, &KeyMapping::new(RENAMES), &mut checkpoint, harmless)
    }
}

impl BertTokenClassifier {
    /// Loads a `BertForTokenClassification` or `BertForQuestionAnswering` checkpoint, as [`Bert::load`] does but with its head:
    /// `classifier`, whose rows are the labels, or `qa_outputs`. A pooler is left out.
    ///
    /// A checkpoint of the encoder alone has no head: [`Bert::load`], [`new_head`](Self::new_head) and
    /// [`new_answers`](Self::new_answers) are for it.
    ///
    /// # Errors
    ///
    /// As [`Bert::load`].
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = BertConfig::load(dir)?;
        let mut checkpoint = Checkpoint::open(dir, canonical)?;
        let has = |field: &str| checkpoint.has(&format!("{ANSWERS}.{field}"));
        let labels = if has("weight") || has("bias") {
            None
        } else {
            match checkpoint.shape("classifier.weight") {
                Some([labels, _]) => Some(*labels),
                // Missing or of another rank, which loading reports.
                _ => Some(1),
            }
        };
        let head = labels.map(|labels| (labels, config.head_dropout()));
        let model = Self::build(config.build(false, device), head, device);
        let names = match labels {
            Some(_) => KeyMapping::new(RENAMES),
            None => KeyMapping::new(RENAMES_OF_ANSWERS),
        };
        load(model, &names, &mut checkpoint, |name| {
            harmless(name) || name.starts_with("pooler.")
        })
    }
}
