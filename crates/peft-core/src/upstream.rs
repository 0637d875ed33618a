//! What Hugging Face PEFT and AdapterHub call things: the conventions of their files and configurations.

/// The configuration's file name.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The tensors' file name.
pub const MODEL_FILE: &str = "adapter_model.safetensors";

/// The tensors' file name in AdapterHub's layout.
pub const ADAPTERHUB_FILE: &str = "adapter.safetensors";

/// AdapterHub's file for what a head is, and those for its tensors.
pub(crate) const HEAD_CONFIG_FILE: &str = "head_config.json";
pub(crate) const HEAD_FILE: &str = "model_head.safetensors";
pub(crate) const PICKLED_HEAD_FILE: &str = "pytorch_model_head.bin";

/// Files that Python wrote by pickling.
pub(crate) const PICKLED_FILES: &[&str] = &["adapter_model.bin", "pytorch_adapter.bin"];

/// In front of the names of models, in Hugging Face PEFT's files.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The same for soft prompts, where the model is in no tuner.
pub(crate) const PROMPT_PREFIX: &str = "base_model.";

/// Between the name of a layer and its own parameters, where that has trained rows, is adapted, or is saved whole.
pub(crate) const BASE_LAYERS: &[&str] = &[
    ".token_adapter.base_layer",
    ".base_layer",
    ".original_module",
];

/// The wrapper of a module that is saved whole, in the keys of state dicts.
pub(crate) const MODULES_TO_SAVE: &str = "modules_to_save";

/// What `torch.compile` puts in front of the modules that it wraps.
pub(crate) const COMPILED: &str = "_orig_mod";

/// The name of a language model's head, also where that is the embedding table.
pub(crate) const LM_HEAD: &str = "lm_head";

/// What a normalisation over batches has gathered, here and upstream.
pub(crate) const RUNNING_STATISTICS: [&str; 2] = ["running_mean", "running_var"];

/// How many batches it has seen: upstream's files say it beside the statistics.
pub(crate) const BATCHES_SEEN: &str = "num_batches_tracked";

/// Heads of models that do not say which their heads are.
pub(crate) const USUAL_HEADS: &[&str] = &[LM_HEAD, "score", "classifier", "qa_outputs"];

/// Names of a classifier's head. Configurations list both, and a model has one of them.
pub(crate) const CLASSIFIER_HEADS: &[&str] = &["classifier", "score"];

/// Tasks that train and save the model's heads whole.
pub(crate) const TASKS_WITH_HEAD: &[&str] = &["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];

/// The version of AdapterHub's library whose layout is written.
pub(crate) const ADAPTERHUB_VERSION: &str = "adapters.1.3.0";

/// What a linear layer of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    Query,
    Key,
    Value,
    Intermediate,
    Output,
}

/// What AdapterHub's library called its lists of modules before version 1.0, and calls them now.
pub(crate) const ADAPTERHUB_RENAMED: &[(&str, &str)] = &[
    ("attention_text_task_adapters", "adapters"),
    ("attention_text_lang_adapters", "adapters"),
    ("layer_text_task_adapters", "adapters"),
    ("layer_text_lang_adapters", "adapters"),
    ("invertible_lang_adapters", "invertible_adapters"),
];

/// First segments of keys of AdapterHub's files that are in no module of the model's.
pub(crate) const ADAPTERHUB_ROOTS: &[&str] = &[
    "prompt_tuning",
    "prefix_tuning",
    "invertible_adapters",
    "shared_parameters",
];

/// What layers are called that are queries, keys and values in one matrix.
pub(crate) const PACKED: &[&str] = &["c_attn", "qkv_proj", "query_key_value", "in_proj", "Wqkv"];

/// Ends of layers' names, and what AdapterHub takes the layers for; the first that fits.
///
/// Its Llama and Mistral call the last layer of feed-forward `intermediate` and the first `output`.
pub(crate) const PROJECTIONS: &[(&str, Option<Projection>)] = &[
    ("query", Some(Projection::Query)),
    ("q_proj", Some(Projection::Query)),
    ("q_lin", Some(Projection::Query)),
    ("key", Some(Projection::Key)),
    ("k_proj", Some(Projection::Key)),
    ("k_lin", Some(Projection::Key)),
    ("value", Some(Projection::Value)),
    ("v_proj", Some(Projection::Value)),
    ("v_lin", Some(Projection::Value)),
    ("attention.output.dense", None),
    ("intermediate.dense", Some(Projection::Intermediate)),
    ("lin1", Some(Projection::Intermediate)),
    ("fc1", Some(Projection::Intermediate)),
    ("down_proj", Some(Projection::Intermediate)),
    ("output.dense", Some(Projection::Output)),
    ("lin2", Some(Projection::Output)),
    ("fc2", Some(Projection::Output)),
    ("up_proj", Some(Projection::Output)),
];
