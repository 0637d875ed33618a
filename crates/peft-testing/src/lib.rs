#![doc = include_str!("../README.md")]

mod distance;
mod skip;

pub use distance::{farthest, largest};
pub use skip::{Kind, REQUIRE_ALL, SKIPS, Skip, does_not_apply, fetched, skip};
