//! What the tests that ask Python have in common.

pub(crate) mod python;
