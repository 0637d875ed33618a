//! What a model consists of, as adapters see it, and the selection of what they act on.

pub(crate) mod key_mapping;
pub(crate) mod model_layout;
pub(crate) mod quantizer;
pub(crate) mod scan;
pub(crate) mod site_kind;
pub(crate) mod targets;
