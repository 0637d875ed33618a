//! Files of adapters: names, layouts, strict reading.

pub(crate) mod read;
pub(crate) mod respelled;
pub(crate) mod transpose;
pub(crate) mod write;

pub use read::{ADAPTERHUB_FILE, CONFIG_FILE, MODEL_FILE, read_config};
pub use transpose::transposed;
pub use write::{TensorSource, stage_file, write_file, write_tensors};
