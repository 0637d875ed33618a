//! What Hugging Face PEFT and AdapterHub call things: the conventions of their files and configurations.

/// The configuration's file name.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The tensors' file name.
pub const MODEL_FILE: &str = "adapter_model.safetensors";

/// The tensors' file name in AdapterHub's layout.
pub const ADAPTERHUB_FILE: &str = "adapter.safetensors";

/// Files that Python wrote by pickling: they can run whatever they like, and are not read.
pub(crate) const PICKLED_FILES: &[&str] = &["adapter_model.bin", "pytorch_adapter.bin"];

/// In front of the names of models, in Hugging Face PEFT's files.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The same for soft prompts, where the model is in no tuner.
pub(crate) const PROMPT_PREFIX: &str = "base_model.";

/// Between the name of an adapted layer and the layer's own parameters.
pub(crate) const BASE_LAYER: &str = ".base_layer";

/// The wrapper of a module that is saved whole, in the keys of state dicts.
pub(crate) const MODULES_TO_SAVE: &str = "modules_to_save";

/// What `torch.compile` puts in front of the modules that it wraps.
pub(crate) const COMPILED: &str = "_orig_mod";

/// The name of a language model's head, also where that is the embedding table.
pub(crate) const LM_HEAD: &str = "lm_head";

/// Heads of models that do not say which their heads are.
pub(crate) const USUAL_HEADS: &[&str] = &[LM_HEAD, "score", "classifier", "qa_outputs"];

/// Names of a classifier's head. Configurations list both, and a model has one of them.
pub(crate) const CLASSIFIER_HEADS: &[&str] = &["classifier", "score"];

/// Tasks that train and save the model's heads whole.
pub(crate) const TASKS_WITH_HEAD: &[&str] = &["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];
