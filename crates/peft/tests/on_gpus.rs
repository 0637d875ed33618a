//! What runs on a device with kernels, in one program, as such a program is large: the conformance tests of all families,
//! and packed bases.
//!
//! `PEFT_TEST_DEVICES=cpu cargo test --release -p peft --features cpu --test on_gpus` runs it on CubeCL's CPU runtime,
//! `PEFT_TEST_DEVICES=cuda` and the feature `cuda` on a GPU. Without the variable it runs on the other CPU backends, too.
#![cfg(any(feature = "cuda", feature = "wgpu", feature = "cpu"))]

#[path = "../../peft-additive/tests/conformance.rs"]
mod additive;
#[path = "../../peft-hybrid/tests/conformance.rs"]
mod hybrid;
#[path = "on_gpus/operations.rs"]
mod operations;
#[path = "on_gpus/packed.rs"]
mod packed;
#[path = "../../peft-reparameterization/tests/conformance.rs"]
mod reparameterization;
#[path = "../../peft-selective/tests/conformance.rs"]
mod selective;
#[path = "../../peft-soft-prompt/tests/conformance.rs"]
mod soft_prompt;
