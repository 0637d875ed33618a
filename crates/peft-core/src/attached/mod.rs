//! The adapters on a model: how they are held, found and placed.

pub(crate) mod base_norms;
pub(crate) mod composition;
pub(crate) mod kept_weight;
pub(crate) mod nested;
pub(crate) mod stack;
pub(crate) mod traversal;
pub(crate) mod view;
