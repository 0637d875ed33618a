//! Floating-point formats that are not quantized.

use half::{bf16, f16};

pub(super) fn from_f32(bytes: &[u8], values: &mut Vec<f32>) {
    let numbers = bytes.as_chunks::<4>().0.iter();
    values.extend(numbers.map(|number| f32::from_le_bytes(*number)));
}

pub(super) fn from_f16(bytes: &[u8], values: &mut Vec<f32>) {
    let halves = bytes.as_chunks::<2>().0.iter();
    values.extend(halves.map(|half| f16::from_le_bytes(*half).to_f32()));
}

pub(super) fn from_bf16(bytes: &[u8], values: &mut Vec<f32>) {
    let halves = bytes.as_chunks::<2>().0.iter();
    values.extend(halves.map(|half| bf16::from_le_bytes(*half).to_f32()));
}
