//! Every checkpoint of a Python library that the repository has, against what that library computes from it: outputs,
//! merged outputs, gradients. A file for each family of methods.
//!
//! The checkpoints lie in the crates of the methods, in `tests/golden`; the bases are those of `peft-models`. `README.md`
//! says which program wrote them.

mod adapterhub;
mod additive;
mod compositions;
mod configurations;
mod convolutions;
mod hybrid;
mod mixtures;
mod reparameterization;
mod selective;
mod soft_prompt;
mod spellings;
mod starts;
mod task_heads;
#[path = "../common/tensors.rs"]
mod tensors;

/// Paths from this crate, which is where cargo runs its tests.
const BERT: &str = "../peft-models/tests/golden/bert/base";
/// The table is the head, too.
const LLAMA_TIED: &str = "../peft-reparameterization/tests/golden/llama_tied/base";
/// Convolutions, norms over batches, and a linear head.
const CNN: &str = "../peft-reparameterization/tests/golden/cnn/base";
const LLAMA: &str = "../peft-models/tests/golden/llama/base";
