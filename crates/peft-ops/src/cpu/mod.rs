//! Kernels on slices of `f32`. No tensor of Burn's appears here.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod buffers;
pub(crate) mod composing;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod gelu;
pub(crate) mod linear;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod quantized;
pub(crate) mod right;
pub(crate) mod rms;
pub(crate) mod rotary;
pub(crate) mod short_rows;
pub(crate) mod sparse;
pub(crate) mod swiglu;
pub(crate) mod transform;
