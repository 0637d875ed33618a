//! The contract of an adapter's state, and what a state is made of.

pub(crate) mod any_adapter;
pub(crate) mod any_tensor;
pub(crate) mod attention_context;
pub(crate) mod base;
pub(crate) mod checkpoint_key;
pub(crate) mod contract;
pub(crate) mod erased;
pub(crate) mod forward_context;
pub(crate) mod handed_on;
pub(crate) mod indices;
pub(crate) mod init;
pub(crate) mod low_rank;
pub(crate) mod matrix_view;
pub(crate) mod quantized_base;
pub(crate) mod role;
pub(crate) mod routing;
pub(crate) mod shared;
pub(crate) mod site_context;
pub(crate) mod site_type;
pub(crate) mod task_ids;
pub(crate) mod trainable;
