//! Checkpoints of Python libraries, and what those libraries compute from them.
//!
//! [`golden`] loads a checkpoint through the public API and measures how far outputs, merged outputs and gradients are
//! from the library's. The tests of this crate do that for every checkpoint in the repository. The program, `cargo
//! xtask parity`, does it for any folder of such checkpoints.
//!
//! [`methods`] makes README's table of methods of what these tests and the registry say.

pub mod golden;
pub mod methods;
