//! Products whose sides are rounded to bfloat16 and whose sums are `f32`.
//!
//! The right side is packed once: 32 columns at a time, two neighbours of a column in one 32-bit element. That
//! is the order in which the units of today's processors want it: `vdpbf16ps` multiplies such elements, and so do the
//! tiles of AMX, for which a panel is two tiles wide. The left side is rounded while it is brought into the kernel's
//! order, block by block.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

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
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Unit),
    Portable,
}

static UNIT: AtomicBool = AtomicBool::new(true);

/// Whether the processor's unit may be used, where there is one.
pub(crate) fn set_unit(on: bool) {
    UNIT.store(on, Ordering::Relaxed);
}

/// The processor's unit, as its maker calls it, if there is one that a kernel is written for.
pub(crate) fn unit() -> Option<&'static str> {
    match kernel() {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512(_) => Some("avx512_bf16"),
        Kernel::Portable => None,
    }
}

fn kernel() -> Kernel {
    static FOUND: OnceLock<Kernel> = OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if let Some(unit) = avx512::Unit::detect() {
            return Kernel::Avx512(unit);
        }
        Kernel::Portable
    });
    if UNIT.load(Ordering::Relaxed) {
        found
    } else {
        Kernel::Portable
    }
}

impl Kernel {
    /// Packs up to 16 rows as pairs along their length: the pair `p` of row `i` to `to[p·stride + i]`, zeros behind
    /// the last row and behind an odd length.
    fn pack(self, rows: Matrix<'_>, to: &mut [u32], stride: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => avx512::pack(unit, rows, to, stride),
            Self::Portable => portable::pack(rows, to, stride),
        }
    }

    /// Packs up to 32 columns.
    fn pack_panel(self, columns: Matrix<'_>, to: &mut [u32]) {
        let rows = columns.t();
        let count = rows.size()[0];
        let low = count.min(LANES);
        self.pack(rows.rows(0, low), to, COLUMNS);
        if low < count {
            self.pack(rows.rows(low, count - low), &mut to[LANES..], COLUMNS);
        } else {
            for pairs in to.chunks_exact_mut(COLUMNS) {
                pairs[LANES..].fill(0);
            }
        }
    }

    fn transpose(self, from: Panels<'_>, first: usize, to: &mut [u32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => avx512::transpose(unit, from, first, to),
            Self::Portable => portable::transpose(from, first, to),
        }
    }

    /// A block of the product, on this thread.
    fn multiply(
        self,
        dst: &mut MatrixMut<'_>,
        start: Start<'_>,
        lhs: Matrix<'_>,
        rhs: Panels<'_>,
        alpha: f32,
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(unit) => {
                let [rows, inner] = lhs.size();
                let all = rhs.pairs();
                let parts = all.div_ceil(PAIRS).max(1);
                let most = all.div_ceil(parts).max(1);
                with_scratch(&LEFT_SIDE, |packed| {
                    let mut first = 0;
                    loop {
                        let pairs = most.min(all - first);
                        let columns = (2 * first)..(2 * (first + pairs)).min(inner);
                        let part = lhs.columns(columns.start, columns.len());
                        let size = row_panels(rows).len() * pairs * LANES;
                        if packed.len() < size {
                            packed.resize(size, 0);
                        }
                        for (index, (row, count)) in row_panels(rows).enumerate() {
                            let to = &mut packed[index * pairs * LANES..][..pairs * LANES];
                            self.pack(part.rows(row, count), to, LANES);
                        }
                        let start = if first == 0 { start } else { Start::There };
                        avx512::multiply(unit, dst, start, packed, rhs, [first, pairs], alpha);
                        first += pairs;
                        if first >= all {
                            return;
                        }
                    }
                });
            }
            Self::Portable => portable::multiply(dst, start, lhs, rhs, alpha),
        }
    }
}

/// Rows of the left side in panels of like size, of [`ROWS`] at most: the first of each and how many.
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
    /// Columns of a right side that is packed for one product.
    static RIGHT_SIDE: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
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

/// Columns of a right side, packed: see [`Packed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    pairs: &'a [u32],
    rows: usize,
    columns: usize,
}

impl<'a> Panels<'a> {
    fn new(pairs: &'a [u32], [rows, columns]: [usize; 2]) -> Self {
        assert_eq!(pairs.len(), packed_len([rows, columns]));
        Self {
            pairs,
            rows,
            columns,
        }
    }

    /// Pairs of a column.
    fn pairs(&self) -> usize {
        self.rows.div_ceil(2)
    }

    /// 32 columns: their first pairs, their second ones, and so on.
    fn panel(&self, index: usize) -> &'a [u32] {
        let len = self.pairs() * COLUMNS;
        &self.pairs[index * len..(index + 1) * len]
    }

    /// `count` columns from `first` on, which begins a panel.
    fn columns(self, first: usize, count: usize) -> Self {
        assert!(first.is_multiple_of(COLUMNS) && first + count <= self.columns);
        let len = self.pairs() * COLUMNS;
        let panels = first / COLUMNS..first / COLUMNS + count.div_ceil(COLUMNS);
        Self {
            pairs: &self.pairs[panels.start * len..panels.end * len],
            rows: self.rows,
            columns: count,
        }
    }
}

/// Elements of a packed matrix.
fn packed_len([rows, columns]: [usize; 2]) -> usize {
    rows.div_ceil(2) * columns.next_multiple_of(COLUMNS)
}

/// A matrix in bfloat16 as the right side of products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pairs: Vec<u32>,
    size: [usize; 2],
}

impl Packed {
    /// Rounds to the nearest.
    pub(crate) fn new(matrix: Matrix<'_>) -> Self {
        let size = matrix.size();
        let mut pairs = vec![0; packed_len(size)];
        pack(matrix, 0, &mut pairs, true);
        Self { pairs, size }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(&self) -> Self {
        let [columns, rows] = self.size;
        let mut pairs = vec![0; packed_len([rows, columns])];
        transpose(self.panels(), 0, &mut pairs, true);
        Self {
            pairs,
            size: [rows, columns],
        }
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels::new(&self.pairs, self.size)
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }
}

/// Packs the columns of `matrix` from `first` on, as many as there is room for.
fn pack(matrix: Matrix<'_>, first: usize, to: &mut [u32], parallel: bool) {
    let [rows, columns] = matrix.size();
    let len = rows.div_ceil(2) * COLUMNS;
    if len == 0 {
        return;
    }
    let kernel = kernel();
    let run = |(index, to): (usize, &mut [u32])| {
        let from = first + index * COLUMNS;
        let count = COLUMNS.min(columns - from);
        kernel.pack_panel(matrix.columns(from, count), to);
    };
    if parallel {
        to.par_chunks_exact_mut(len).enumerate().for_each(run);
    } else {
        to.chunks_exact_mut(len).enumerate().for_each(run);
    }
}

/// Packs columns of the transposed of `from`, from the column `first` on, as many as there is room for.
fn transpose(from: Panels<'_>, first: usize, to: &mut [u32], parallel: bool) {
    let len = from.columns.div_ceil(2) * COLUMNS;
    if len == 0 {
        return;
    }
    let kernel = kernel();
    let run = |(index, to): (usize, &mut [u32])| {
        kernel.transpose(from, first / 2 + index * (COLUMNS / 2), to);
    };
    if parallel {
        to.par_chunks_exact_mut(len).enumerate().for_each(run);
    } else {
        to.chunks_exact_mut(len).enumerate().for_each(run);
    }
}

/// `dst = start + alpha·lhs·rhs`; on all threads if it is large and `parallel`.
pub(crate) fn multiply(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    parallel: bool,
) {
    let ([rows, inner], columns) = (lhs.size(), rhs.columns);
    assert_eq!(
        (dst.size(), inner),
        ([rows, columns], rhs.rows),
        "shapes of a product"
    );
    if rows == 0 || columns == 0 {
        return;
    }
    let kernel = kernel();
    let work = rows.saturating_mul(columns).saturating_mul(inner);
    let threads = if parallel && work >= PARALLEL {
        rayon::current_num_threads()
    } else {
        1
    };
    let [block_rows, block_columns] = blocks(rows, rhs, threads);
    let run = |([row, column], mut block): ([usize; 2], MatrixMut<'_>)| {
        let [rows, columns] = block.size();
        let (lhs, rhs) = (lhs.rows(row, rows), rhs.columns(column, columns));
        let start = start.columns(column, columns);
        kernel.multiply(&mut block, start, lhs, rhs, alpha);
    };
    let grid = dst.grid(block_rows, block_columns);
    if threads == 1 {
        grid.into_iter().for_each(run);
    } else {
        grid.into_par_iter().for_each(run);
    }
}

/// Rows and columns of the blocks that a product is split into.
fn blocks(rows: usize, rhs: Panels<'_>, threads: usize) -> [usize; 2] {
    let panels = rhs.columns.div_ceil(COLUMNS);
    let pairs = rhs.pairs().clamp(1, PAIRS);
    // What is packed at a time fits the cache.
    let fitting = (LEFT / (pairs * LANES) * ROWS).max(ROWS);
    let mut across = rows.div_ceil(fitting);
    if threads == 1 {
        return [rows.div_ceil(across), rhs.columns];
    }
    // A few blocks for each thread: they do not all take the same time.
    let wanted = 4 * threads;
    across = across.max(wanted.min(rows / (4 * ROWS)).max(1));
    let along = wanted.div_ceil(across).min(panels);
    [rows.div_ceil(across), panels.div_ceil(along) * COLUMNS]
}

/// [`multiply`] with a right side that is packed for this product, a part at a time.
pub(crate) fn multiply_by(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    alpha: f32,
    parallel: bool,
) {
    let fill = |part: &Part, to: &mut [u32]| {
        pack(rhs.rows(part.row, part.rows), part.column, to, parallel);
    };
    in_parts(dst, start, lhs, rhs.size(), alpha, parallel, fill);
}

/// [`multiply`] with the transposed of what is packed, which is brought into order a part at a time.
pub(crate) fn multiply_by_transposed(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    alpha: f32,
    parallel: bool,
) {
    let size = [rhs.columns, rhs.rows];
    let fill = |part: &Part, to: &mut [u32]| {
        transpose(rhs.columns(part.row, part.rows), part.column, to, parallel);
    };
    in_parts(dst, start, lhs, size, alpha, parallel, fill);
}

/// A part of a right side.
struct Part {
    row: usize,
    rows: usize,
    column: usize,
}

/// Hands `fill` a part of a right side of `[rows, columns]`, and room for it; multiplies with it.
fn in_parts(
    dst: &mut MatrixMut<'_>,
    start: Start<'_>,
    lhs: Matrix<'_>,
    [rows, columns]: [usize; 2],
    alpha: f32,
    parallel: bool,
    fill: impl Fn(&Part, &mut [u32]),
) {
    let most = |all: usize, most: usize| all.div_ceil(all.div_ceil(most).max(1));
    let deep = most(rows, 2 * PAIRS).next_multiple_of(COLUMNS).max(1);
    let wide = CHUNK / deep.div_ceil(2);
    let wide = most(columns, wide).next_multiple_of(COLUMNS).max(1);
    with_scratch(&RIGHT_SIDE, |scratch| {
        for column in (0..columns).step_by(wide) {
            let width = wide.min(columns - column);
            let mut dst = dst.column_block(column, width);
            let mut row = 0;
            loop {
                let part = Part {
                    row,
                    rows: deep.min(rows - row),
                    column,
                };
                let size = [part.rows, width];
                let needed = packed_len(size);
                if scratch.len() < needed {
                    scratch.resize(needed, 0);
                }
                let packed = &mut scratch[..needed];
                fill(&part, packed);
                let start = if row == 0 {
                    start.columns(column, width)
                } else {
                    Start::There
                };
                let (lhs, rhs) = (lhs.columns(row, part.rows), Panels::new(packed, size));
                multiply(&mut dst, start, lhs, rhs, alpha, parallel);
                row += part.rows;
                if row >= rows {
                    break;
                }
            }
        }
    });
}
