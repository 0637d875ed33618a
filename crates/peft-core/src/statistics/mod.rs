//! Statistics of a model on data: what layers see, and the gradients of parameters.

pub(crate) mod calibration;
pub(crate) mod gradients;
pub(crate) mod inputs;
pub(crate) mod refusal;
pub(crate) mod wanted;
