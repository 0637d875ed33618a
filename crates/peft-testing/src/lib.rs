//! What the tests of all crates share.
//!
//! - [`farthest`] and [`largest`] measure numbers and see what is no number: `f32::max` overlooks NaN, so a
//!   distance that is folded with it is 0 where outputs are NaN, and passes every bound.
//! - [`skip`] is what a test calls that cannot run here, so that nobody takes it for one that passed.
//!
//! The crate knows no tensor and no backend. `Tensor::max` of Burn 0.22 gives NaN where one element is NaN;
//! `peft-conformance` has a test for that, so `(a - b).abs().max()` on tensors is a distance, too.

mod distance;
mod skip;

pub use distance::{farthest, largest};
pub use skip::{Kind, REQUIRE_ALL, SKIPS, Skip, does_not_apply, fetched, skip};
