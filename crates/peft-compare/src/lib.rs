//! The comparison suite: which method buys what, at which cost, on which model and task.
//!
//! Definitions are data (`benches/compare/*.toml`), every run is one file, and the report is made
//! from the files alone:
//!
//! | module | holds |
//! |---|---|
//! | [`definition`] | tasks, methods and suites, read from TOML |
//! | [`data`] | texts with classes and running text, and their splits |
//! | [`job`] | one training run as data, and what came out of it |
//! | [`train`] | carries out one job; runs in a process of its own |
//! | [`suite`] | plans the jobs of a suite, runs what is missing, chooses learning rates |
//! | [`record`], [`statistics`], [`report`] | results, and what can be said about them |
//!
//! [`main`] is the program; a [`Registry`] says which methods it knows.
//!
//! `docs/comparison.md` says how it measures and why.

mod base;
mod cli;
pub mod data;
pub mod definition;
mod environment;
mod error;
pub mod job;
mod kind;
mod measure;
mod progress;
pub mod record;
mod reference;
mod registry;
pub mod report;
pub mod statistics;
pub mod suite;
pub mod train;

pub use cli::main;
pub use error::{Error, Result};
pub use registry::Registry;
