//! The tiles of AMX, and what they need of the operating system.
//!
//! Unsafe code: the instructions, which only a unit that was found lets one call, and the system call that asks for them.

#![allow(unsafe_code)]
#![expect(
    clippy::unused_self,
    reason = "`self` shows that this thread's tiles have shapes"
)]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use crate::cpu::bf16::LANES;

/// Elements of a tile: 16 rows of 16 pairs.
pub(super) const TILE: usize = LANES * LANES;

/// Whether the processor has tiles that multiply bfloat16, and the operating system lets this process use them.
pub(super) fn permitted() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let there = __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE;
    there && ask()
}

/// Asks Linux for the tiles' registers, which are 8 KiB of each thread's state. The permission is the process's.
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads two numbers and no memory; a system that does not know it says so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// As `ldtilecfg` reads it: all eight tiles have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs instructions for tile after tile: places go on by what a tile has, which are two on the right side.
macro_rules! each_pair_of_tiles {
    ($left:ident, $below:ident, $right:ident, $count:ident, $($instruction:literal)+) => {
        asm!(
            "2:",
            $($instruction,)+
            "add {left}, 1024",
            "add {below}, 1024",
            "add {right}, 2048",
            "dec {count}",
            "jnz 2b",
            left = inout(reg) $left => _,
            below = inout(reg) $below => _,
            right = inout(reg) $right => _,
            count = inout(reg) $count => _,
            row = in(reg) 4 * LANES,
            options(nostack, readonly)
        )
    };
}

/// Gives this thread's tiles their shapes until it is dropped.
///
/// Sums are in the tiles 0 to 3: those of 16 rows and 16 columns, of the columns beside them, of the rows below, and of both.
pub(in crate::cpu::bf16) struct Shaped {
    /// Shapes are a thread's: what shows them stays on it.
    thread: PhantomData<*const ()>,
}

impl Shaped {
    /// # Safety
    ///
    /// Tiles are [`permitted`].
    pub(super) unsafe fn new() -> Self {
        // SAFETY: 64 bytes that describe tiles; the instruction is there, as the caller says.
        unsafe {
            asm!("ldtilecfg [{shapes}]", shapes = in(reg) &raw const SHAPES, options(nostack, readonly));
        }
        Self {
            thread: PhantomData,
        }
    }

    /// Sets all sums to zero.
    #[inline(always)]
    pub(super) fn clear(&self) {
        // SAFETY: tiles have shapes as long as `self` is there.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
        }
    }

    /// Adds products of `count` tiles of the left side, one behind the other from `left` on, and of as many below them
    /// from `below` on, with the tiles of the right side from `right` on, 16 pairs of [`COLUMNS`] each.
    ///
    /// # Safety
    ///
    /// `count` is not 0, and there are as many tiles at all three places.
    #[inline(always)]
    pub(super) unsafe fn add_32_by_32(
        &self,
        left: *const u32,
        below: *const u32,
        right: *const u32,
        count: usize,
    ) {
        // SAFETY: as the caller says; tiles have shapes.
        unsafe {
            each_pair_of_tiles!(
                left, below, right, count,
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + 2*{row}]"
                "tileloadd tmm7, [{right} + 2*{row} + 64]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tileloadd tmm5, [{below} + {row}]"
                "tdpbf16ps tmm1, tmm4, tmm7"
                "tdpbf16ps tmm2, tmm5, tmm6"
                "tdpbf16ps tmm3, tmm5, tmm7"
            );
        }
    }

    /// The same of 16 rows: the tiles 0 and 1.
    ///
    /// # Safety
    ///
    /// `count` is not 0, and there are as many tiles at both places.
    #[inline(always)]
    pub(super) unsafe fn add_16_by_32(&self, left: *const u32, right: *const u32, count: usize) {
        // SAFETY: as the caller says; tiles have shapes.
        unsafe {
            each_pair_of_tiles!(
                left, left, right, count,
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + 2*{row}]"
                "tileloadd tmm7, [{right} + 2*{row} + 64]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tdpbf16ps tmm1, tmm4, tmm7"
            );
        }
    }

    /// The same of 32 rows and 16 columns: the tiles 0 and 2.
    ///
    /// # Safety
    ///
    /// As [`Self::add_32_by_32`].
    #[inline(always)]
    pub(super) unsafe fn add_32_by_16(
        &self,
        left: *const u32,
        below: *const u32,
        right: *const u32,
        count: usize,
    ) {
        // SAFETY: as the caller says; tiles have shapes.
        unsafe {
            each_pair_of_tiles!(
                left, below, right, count,
                "tileloadd tmm6, [{right} + 2*{row}]"
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm5, [{below} + {row}]"
                "tdpbf16ps tmm0, tmm4, tmm6"
                "tdpbf16ps tmm2, tmm5, tmm6"
            );
        }
    }

    /// Sets all sums to 32 rows of 32 numbers, `stride` apart; with 0, to the same row.
    ///
    /// # Safety
    ///
    /// The rows are there.
    #[inline(always)]
    pub(super) unsafe fn load(&self, from: *const f32, stride: usize) {
        // SAFETY: four tiles of 16 rows, side by side and below each other; they have shapes.
        unsafe {
            asm!(
                "tileloadd tmm0, [{from} + {row}]",
                "tileloadd tmm1, [{from} + {row} + 64]",
                "tileloadd tmm2, [{below} + {row}]",
                "tileloadd tmm3, [{below} + {row} + 64]",
                from = in(reg) from,
                below = in(reg) from.wrapping_add(LANES * stride),
                row = in(reg) 4 * stride,
                options(nostack, readonly)
            );
        }
    }

    /// Asks for the lines of the cache that 32 rows of 32 numbers lie in, `stride` apart, as they will be stored to. Without
    /// that, each store waits for its line, and the next sums for the store.
    #[inline(always)]
    pub(super) fn expect(&self, to: *mut f32, stride: usize) {
        // SAFETY: a prefetch of any address does nothing that can be seen; the processors that have tiles have it.
        unsafe {
            asm!(
                "2:",
                "prefetchw [{to}]",
                "prefetchw [{to} + 64]",
                "add {to}, {row}",
                "dec {count}",
                "jnz 2b",
                to = inout(reg) to => _,
                count = inout(reg) 2 * LANES => _,
                row = in(reg) 4 * stride,
                options(nostack, readonly)
            );
        }
    }

    /// Stores all sums as 32 rows of 32 numbers, `stride` apart.
    ///
    /// # Safety
    ///
    /// The rows may be written.
    #[inline(always)]
    pub(super) unsafe fn store(&self, to: *mut f32, stride: usize) {
        // SAFETY: as above.
        unsafe {
            asm!(
                "tilestored [{to} + {row}], tmm0",
                "tilestored [{to} + {row} + 64], tmm1",
                "tilestored [{below} + {row}], tmm2",
                "tilestored [{below} + {row} + 64], tmm3",
                to = in(reg) to,
                below = in(reg) to.wrapping_add(LANES * stride),
                row = in(reg) 4 * stride,
                options(nostack)
            );
        }
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: the instruction is there, or `self` would not be.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
