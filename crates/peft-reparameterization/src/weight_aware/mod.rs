//! Methods whose change is made of the weight itself.

pub(crate) mod deft;
pub(crate) mod deft_schedule;
pub(crate) mod deft_state;
pub(crate) mod peanut;
