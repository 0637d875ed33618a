//! Mixed precision by the name of a device. The setting is the whole process's, so this test has one of its own.

#![cfg(feature = "flex")]

use peft_core::device::device;
use peft_core::ops::{MixedPrecision, mixed_precision, set_mixed_precision};

#[test]
fn a_device_by_name_sets_mixed_precision() {
    let plain = device("flex").unwrap();
    assert_eq!(mixed_precision(), MixedPrecision::Off);
    assert_eq!(device("flex:bf16").unwrap(), plain);
    assert_eq!(mixed_precision(), MixedPrecision::Bf16);
    // It is turned off by its own function only.
    device("flex").unwrap();
    assert_eq!(mixed_precision(), MixedPrecision::Bf16);
    set_mixed_precision(MixedPrecision::Off);
    assert_eq!(mixed_precision(), MixedPrecision::Off);
    assert!(device("flex:f16").is_err());
}
