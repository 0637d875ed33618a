//! Which layers IA³ adapts where its configuration names none: upstream's choice, by the kind of model.

use peft_core::Selection;

/// The layers of some kinds of models.
struct Defaults {
    /// The kinds, by their `model_type` in Hugging Face's `config.json`.
    model_types: &'static [&'static str],
    targets: &'static [&'static str],
    feedforward: &'static [&'static str],
}

const DEFAULTS: &[Defaults] = &[
    Defaults {
        model_types: &["bert", "roberta"],
        targets: &["key", "value", "output.dense"],
        feedforward: &["output.dense"],
    },
    Defaults {
        model_types: &["llama", "mistral"],
        targets: &["k_proj", "v_proj", "down_proj"],
        feedforward: &["down_proj"],
    },
    Defaults {
        model_types: &["qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"],
        targets: &["q_proj", "v_proj", "down_proj"],
        feedforward: &["down_proj"],
    },
    Defaults {
        model_types: &["opt"],
        targets: &["q_proj", "k_proj", "fc2"],
        feedforward: &["fc2"],
    },
    Defaults {
        model_types: &["phi"],
        targets: &["q_proj", "v_proj", "fc2"],
        feedforward: &["fc2"],
    },
    Defaults {
        model_types: &["gpt2"],
        targets: &["c_attn", "mlp.c_proj"],
        feedforward: &["mlp.c_proj"],
    },
    Defaults {
        model_types: &["t5"],
        targets: &["k", "v", "wo"],
        feedforward: &["wo"],
    },
];

/// `target_modules` and `feedforward_modules` for a kind of model; none for one that is not known.
pub(super) fn of(model_type: Option<&str>) -> Option<(Selection, Selection)> {
    let model_type = model_type?;
    let known = DEFAULTS
        .iter()
        .find(|defaults| defaults.model_types.contains(&model_type))?;
    Some((known.targets.into(), known.feedforward.into()))
}
