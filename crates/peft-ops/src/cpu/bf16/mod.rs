//! Products whose sides are rounded to bfloat16 and whose sums are `f32`.
//!
//! The right side is packed once: 32 columns at a time, two neighbours of a column in one 32-bit element. That
//! is the order in which the units of today's processors want it: `vdpbf16ps` multiplies such elements, and so do the
//! tiles of AMX, for which a panel is two tiles wide. The left side is rounded while it is brought into the kernel's
//! order, block by block.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod low_rank;
mod packed;
mod portable;
mod products;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use low_rank::Beside;
pub(crate) use low_rank::{Added, Factors};
pub(crate) use packed::{Packed, Panels};
pub(crate) use products::{
    multiply, multiply_by, multiply_by_rows, multiply_by_transposed, multiply_with,
};

use super::matrix::{Matrix, MatrixMut};
use super::product::Mode;

/// Columns of a panel of the right side.
pub(crate) const COLUMNS: usize = 32;
/// 32-bit elements of a vector.
const LANES: usize = 16;
/// Rows of a tile, at most: with 32 columns, 28 vectors of sums, and 3 are left for what is multiplied.
const ROWS: usize = 14;
/// Pairs that a tile adds up before its sums are stored: a panel of them is 96 KiB.
const PAIRS: usize = 768;
/// Elements of the left side that are packed at a time: half a MiB, half of a second-level cache.
const LEFT: usize = 1 << 17;
/// Elements of the right side that rows are multiplied by before the next rows are: as many.
#[cfg(target_arch = "x86_64")]
const RIGHT: usize = 1 << 17;
/// Elements that are packed, used and forgotten at a time: 2 MiB.
const CHUNK: usize = 1 << 19;
/// Products of fewer multiplications than this run on one thread.
const PARALLEL: usize = 1 << 20;

/// What the sums of a product are added to, times alpha.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Nothing: they replace what is there.
    Nothing,
    /// The same numbers in every row.
    Row(&'a [f32]),
    /// What is there.
    There,
}

impl From<Mode> for Start<'_> {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Replace => Self::Nothing,
            Mode::Add => Self::There,
        }
    }
}

impl Start<'_> {
    /// That of some columns.
    fn columns(self, first: usize, count: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[first..first + count]),
            other => other,
        }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Unit),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Unit),
    Portable,
}

/// The most that may multiply, where the processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Units {
    None,
    Vectors,
    Tiles,
}

static UNITS: AtomicU8 = AtomicU8::new(Units::Tiles as u8);

/// Which of the processor's units may be used.
pub(crate) fn set_units(most: Units) {
    UNITS.store(most as u8, Ordering::Relaxed);
}

/// The processor's unit, as Linux calls it, if there is one that a kernel is written for.
pub(crate) fn unit() -> Option<&'static str> {
    match kernel() {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Kernel::Amx(_) => Some("amx_bf16"),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512(_) => Some("avx512_bf16"),
        Kernel::Portable => None,
    }
}

fn kernel() -> Kernel {
    let allowed = UNITS.load(Ordering::Relaxed);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static FOUND: OnceLock<Option<amx::Unit>> = OnceLock::new();
        if allowed >= Units::Tiles as u8
            && let Some(unit) = *FOUND.get_or_init(amx::Unit::detect)
        {
            return Kernel::Amx(unit);
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        static FOUND: OnceLock<Option<avx512::Unit>> = OnceLock::new();
        if allowed >= Units::Vectors as u8
            && let Some(unit) = *FOUND.get_or_init(avx512::Unit::detect)
        {
            return Kernel::Avx512(unit);
        }
    }
    Kernel::Portable
}

/// A number that is packed.
pub(crate) trait Element: Copy + Send + Sync {
    /// Packs up to 16 rows as pairs along their length: the pair `p` of row `i` to `to[p·stride + i]`, zeros behind
    /// the last row and behind an odd length.
    fn pack(kernel: Kernel, rows: Matrix<'_, Self>, to: &mut [u32], stride: usize);
}

/// It is rounded.
impl Element for f32 {
    fn pack(kernel: Kernel, rows: Matrix<'_>, to: &mut [u32], stride: usize) {
        match kernel.vectors() {
            #[cfg(target_arch = "x86_64")]
            Some(unit) => avx512::pack(unit, rows, to, stride),
            _ => portable::pack(rows, to, stride, portable::round),
        }
    }
}

/// The bits of a number in bfloat16.
impl Element for u16 {
    fn pack(kernel: Kernel, rows: Matrix<'_, u16>, to: &mut [u32], stride: usize) {
        match kernel.vectors() {
            #[cfg(target_arch = "x86_64")]
            Some(unit) => avx512::pack_halves(unit, rows, to, stride),
            _ => portable::pack(rows, to, stride, u32::from),
        }
    }
}

/// There are no vectors.
#[cfg(not(target_arch = "x86_64"))]
type Vectors = std::convert::Infallible;
#[cfg(target_arch = "x86_64")]
type Vectors = avx512::Unit;

impl Kernel {
    /// What brings both sides into order.
    fn vectors(self) -> Option<Vectors> {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(unit) => Some(unit.vectors()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => Some(unit),
            Self::Portable => None,
        }
    }

    /// Rows that it multiplies at a time.
    fn rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => 2 * LANES,
            _ => ROWS,
        }
    }

    /// Packs up to 32 columns.
    fn pack_panel<T: Element>(self, columns: Matrix<'_, T>, to: &mut [u32]) {
        let rows = columns.t();
        let count = rows.size()[0];
        let low = count.min(LANES);
        T::pack(self, rows.rows(0, low), to, COLUMNS);
        if low < count {
            let to = &mut to[LANES..];
            T::pack(self, rows.rows(low, count - low), to, COLUMNS);
        } else {
            for pairs in to.chunks_exact_mut(COLUMNS) {
                pairs[LANES..].fill(0);
            }
        }
    }

    fn transpose(self, from: Panels<'_>, first: usize, to: &mut [u32]) {
        match self.vectors() {
            #[cfg(target_arch = "x86_64")]
            Some(unit) => avx512::transpose(unit, from, first, to),
            _ => portable::transpose(from, first, to),
        }
    }

    /// A block of the product, on this thread; alpha is a factor of what is computed `beside`, too.
    fn multiply(
        self,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        lhs: Matrix<'_>,
        rhs: Panels<'_>,
        alpha: f32,
        mut beside: Beside<'_>,
    ) {
        let mut halves = beside.halves(lhs.size()[0]);
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(unit) => {
                in_parts_of_sums(unit, dst, start, lhs, rhs, alpha, beside, &mut halves);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => {
                in_parts_of_sums(unit, dst, start, lhs, rhs, alpha, beside, &mut halves);
            }
            Self::Portable => {
                let rows = lhs.size()[0];
                if let Some(down) = beside.down() {
                    let mut dst = MatrixMut::new(&mut halves, rows, down.size()[1]);
                    portable::multiply(&mut dst, Start::Nothing, lhs, down.panels(), 1.0);
                }
                portable::multiply(dst, start, lhs, rhs, alpha);
                if let Some(added) = beside.complete(&halves) {
                    let left = added.left(rows);
                    let left = Matrix::new(&left, rows, added.up.rows);
                    portable::multiply(dst, Start::There, left, added.up, alpha);
                }
            }
        }
    }
}

/// A unit that wants the left side in an order of its own.
#[cfg(target_arch = "x86_64")]
trait Ordered: Copy {
    /// What a thread has while it multiplies.
    type Ready;

    fn ready(self) -> Self::Ready;

    /// Elements of the left side in that order.
    fn packed_len(rows: usize, pairs: usize) -> usize;

    /// Brings the left side into it.
    fn pack(self, lhs: Matrix<'_>, to: &mut [u32]);

    /// Rows that are multiplied at a time: the first of them, and how many.
    fn row_tiles(rows: usize) -> impl Iterator<Item = (usize, usize)>;

    /// Elements from the left side of such rows to that of the next.
    fn tile_len(pairs: usize) -> usize;

    /// `dst = start + alpha·sums`, of such rows and up to 32 columns: sums are over the pairs of each left and right side.
    fn multiply_tile(
        ready: &Self::Ready,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        sides: [[&[u32]; 2]; 2],
        alpha: f32,
    );
}

/// One of the products that are summed: some pairs of both sides.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Term<'a> {
    /// The left side's, in the unit's order.
    packed: &'a [u32],
    rhs: Panels<'a>,
    /// The first pair.
    first: usize,
    pairs: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Term<'a> {
    /// Both sides of a tile.
    fn sides<U: Ordered>(&self, tile: usize, panel: usize) -> [&'a [u32]; 2] {
        let len = U::tile_len(self.pairs);
        let end = ((tile + 1) * len).min(self.packed.len());
        let pairs = self.first * COLUMNS..(self.first + self.pairs) * COLUMNS;
        [&self.packed[tile * len..end], &self.rhs.panel(panel)[pairs]]
    }
}

/// `dst = start + alpha·(the sum of all terms)`.
///
/// Rows come before columns: outputs are written line by line, and a store that waits for its line lets all later ones wait.
/// As many columns come before the next rows as the second-level cache holds of the right side.
#[cfg(target_arch = "x86_64")]
fn multiply_terms<U: Ordered>(
    unit: U,
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    terms: &[Term<'_>],
    alpha: f32,
) {
    let [rows, columns] = dst.size();
    for term in terms {
        assert!(columns <= term.rhs.columns && term.first + term.pairs <= term.rhs.pairs());
        assert!(term.packed.len() >= U::packed_len(rows, term.pairs));
    }
    assert!(terms.len() <= 2 && !matches!(start, Start::Row(row) if row.len() != columns));
    let pairs: usize = terms.iter().map(|term| term.pairs).sum();
    let group = (RIGHT / (pairs.max(1) * COLUMNS)).max(1) * COLUMNS;
    let ready = unit.ready();
    for first in (0..columns).step_by(group) {
        let last = (first + group).min(columns);
        for (tile, (row, count)) in U::row_tiles(rows).enumerate() {
            let mut dst = dst.row_block(row, count);
            for column in (first..last).step_by(COLUMNS) {
                let width = COLUMNS.min(columns - column);
                let mut sides = [[&[][..]; 2]; 2];
                for (sides, term) in sides.iter_mut().zip(terms) {
                    *sides = term.sides::<U>(tile, column / COLUMNS);
                }
                let mut dst = dst.column_block(column, width);
                let start = start.columns(column, width);
                U::multiply_tile(&ready, &mut dst, start, sides, alpha);
            }
        }
    }
}

/// A block of the product, on this thread: the left side is packed for a part of the sums at a time.
#[cfg(target_arch = "x86_64")]
fn in_parts_of_sums<U: Ordered>(
    unit: U,
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    mut beside: Beside<'_>,
    halves: &mut [f32],
) {
    let [rows, inner] = lhs.size();
    let all = rhs.pairs();
    let parts = all.div_ceil(PAIRS).max(1);
    let most = all.div_ceil(parts).next_multiple_of(LANES);
    with_scratch(&LEFT_SIDE, |packed| {
        let mut first = 0;
        loop {
            let pairs = most.min(all - first);
            let columns = (2 * first)..(2 * (first + pairs)).min(inner);
            let packed = aligned(packed, U::packed_len(rows, pairs));
            unit.pack(lhs.columns(columns.start, columns.len()), packed);
            let term = |rhs| Term {
                packed,
                rhs,
                first,
                pairs,
            };
            let then = |start| if first == 0 { start } else { Start::There };
            if let Some(down) = beside.down() {
                let mut dst = MatrixMut::new(halves, rows, down.size()[1]);
                let term = term(down.panels());
                multiply_terms(unit, &mut dst, then(Start::Nothing), &[term], 1.0);
            }
            let (start, term) = (then(start), term(rhs));
            first += pairs;
            if first < all {
                multiply_terms(unit, dst, start, &[term], alpha);
                continue;
            }
            let Some(added) = beside.complete(halves) else {
                return multiply_terms(unit, dst, start, &[term], alpha);
            };
            return with_scratch(&LEFT_OF_ADDED, |packed| {
                let (left, up) = (added.left(rows), added.up);
                let packed = aligned(packed, U::packed_len(rows, up.pairs()));
                unit.pack(Matrix::new(&left, rows, up.rows), packed);
                let added = Term {
                    packed,
                    rhs: up,
                    first: 0,
                    pairs: up.pairs(),
                };
                multiply_terms(unit, dst, start, &[term, added], alpha);
            });
        }
    });
}

/// Rows of the left side in panels of like size, of [`ROWS`] at most: the first of each and how many.
#[cfg(target_arch = "x86_64")]
fn row_panels(rows: usize) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let panels = rows.div_ceil(ROWS);
    let (least, more) = (rows / panels.max(1), rows % panels.max(1));
    (0..panels).map(move |index| {
        (
            index * least + index.min(more),
            least + usize::from(index < more),
        )
    })
}

thread_local! {
    /// The left side of a block.
    static LEFT_SIDE: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// That of what is added to it.
    static LEFT_OF_ADDED: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// Columns of a right side that is packed for one product.
    static RIGHT_SIDE: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// As many elements as `needed` of a buffer that grows to that, beginning with a line of the cache: tiles are read two to
/// three times as fast then.
fn aligned(buffer: &mut Vec<u32>, needed: usize) -> &mut [u32] {
    const MORE: usize = LANES - 1;
    if buffer.len() < needed + MORE {
        buffer.resize(needed + MORE, 0);
    }
    let first = buffer.as_ptr().align_offset(size_of::<[u32; LANES]>());
    &mut buffer[first.min(MORE)..][..needed]
}

/// Memory that is kept from one product to the next: what comes and goes with each leaves holes between outputs
/// that stay.
fn with_scratch<R>(
    slot: &'static std::thread::LocalKey<Cell<Vec<u32>>>,
    work: impl FnOnce(&mut Vec<u32>) -> R,
) -> R {
    let mut scratch = slot.take();
    let result = work(&mut scratch);
    slot.set(scratch);
    result
}
