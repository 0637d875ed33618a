//! Files of adapters: names, layouts, strict reading.

pub(crate) mod base_table;
pub(crate) mod folder;
pub(crate) mod heads;
pub(crate) mod pickled;
pub(crate) mod read;
pub(crate) mod respelled;
pub(crate) mod stored;
pub(crate) mod tensors;
pub(crate) mod transpose;
pub(crate) mod write;

pub use crate::upstream::{ADAPTERHUB_FILE, CONFIG_FILE, MODEL_FILE};
pub use read::{read_config, read_tensors};
pub use transpose::transposed;
pub use write::{TensorSource, stage_file, write_tensors};
