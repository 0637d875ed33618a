//! Whether products are computed in mixed precision, and with which unit of the processor.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::options::MixedPrecision;

static PRECISION: AtomicU8 = AtomicU8::new(MixedPrecision::Off as u8);

/// Sets in which precision fused operations multiply, for the whole process. It is [`MixedPrecision::Off`] at the
/// start.
///
/// An operation's backward pass has the precision that its forward pass had. With [`MixedPrecision::Off`], what was
/// rounded for products is freed.
pub fn set_mixed_precision(precision: MixedPrecision) {
    PRECISION.store(precision as u8, Ordering::Relaxed);
    #[cfg(feature = "flex")]
    if precision == MixedPrecision::Off {
        crate::extension::forget_rounded();
    }
}

/// What [`set_mixed_precision`] set.
pub fn mixed_precision() -> MixedPrecision {
    if PRECISION.load(Ordering::Relaxed) == MixedPrecision::Bf16 as u8 {
        MixedPrecision::Bf16
    } else {
        MixedPrecision::Off
    }
}

/// Whether the processor's unit for bfloat16 may be used, for the whole process: for comparisons, and for finding
/// out whether a difference comes from it. It may at the start.
///
/// Without it, mixed precision rounds the same numbers and multiplies them in `f32`: nothing gets faster.
pub fn set_bf16_unit(on: bool) {
    #[cfg(feature = "flex")]
    {
        use crate::cpu::bf16::{Units, set_units};
        set_units(if on { Units::Tiles } else { Units::None });
    }
    #[cfg(not(feature = "flex"))]
    let _ = on;
}

/// The unit with which products of mixed precision are computed, by the name that Linux has for it (`amx_bf16` or
/// `avx512_bf16`);
/// none where the processor has no such unit, where it was turned off, and without Burn's CPU backend.
pub fn bf16_unit() -> Option<&'static str> {
    #[cfg(feature = "flex")]
    return crate::cpu::bf16::unit();
    #[cfg(not(feature = "flex"))]
    None
}
