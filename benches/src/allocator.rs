//! The allocator of all programs here.

use std::alloc::System;

/// The system's allocator, counting what is live.
#[global_allocator]
pub(crate) static ALLOCATOR: cap::Cap<System> = cap::Cap::new(System, usize::MAX);
