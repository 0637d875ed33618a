//! Products of few rows, where the `gemm` crate is slow: it brings a weight into its own order for every product, which
//! costs more than the product if few rows share that, and it reads a wide weight by columns.

/// Up to so many rows are few, where the columns of the second matrix are contiguous.
const ROWS_OF_DOTS: usize = 24;
/// The same where its rows are.
const ROWS_OF_SLICES: usize = 32;
/// Numbers that a sum of products has at least to be faster one by one.
const DEPTH: usize = 64;
/// Rows and columns whose sums are in registers together.
pub(super) const TILE: usize = 4;
/// Rows of a wide weight that are read together: below the number of pages that a processor knows at once.
pub(super) const SLICE: usize = 48;
/// Columns of a wide weight that are read together.
pub(super) const STRIP: usize = 1024;
/// Rows that lie a multiple of a page apart meet in the same places of all caches.
const PAGE: usize = 1024;

/// How a product of few rows is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A sum of products for every number, of rows and columns that are contiguous.
    Dots,
    /// In slices of the second matrix, whose rows are contiguous.
    Slices,
}

/// The way that is faster than the `gemm` crate's for `[rows, depth]` times `[depth, columns]`, if there is one. Strides
/// are those from row to row and from column to column.
pub(super) fn way(
    [rows, depth, columns]: [usize; 3],
    lhs: [usize; 2],
    rhs: [usize; 2],
) -> Option<Way> {
    let [along_rows, along_columns] = rhs;
    if rows == 0 || columns == 0 || depth < DEPTH || lhs[1] != 1 {
        return None;
    }
    if along_rows == 1 && rows <= ROWS_OF_DOTS {
        return Some(Way::Dots);
    }
    let wide = along_columns == 1 && along_rows.is_multiple_of(PAGE) && columns >= STRIP;
    (wide && (2..=ROWS_OF_SLICES).contains(&rows)).then_some(Way::Slices)
}

/// Rows of so many numbers, so far apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
    pub(super) len: usize,
}

impl<'a> Rows<'a> {
    fn row(self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.len]
    }
}

/// Adds `alpha` times the sums of products of every row of `lhs` with every one of `rhs`: `out` has a slice for each row of
/// `lhs`, with a number for each row of `rhs`.
pub(super) fn add_dots(out: &mut [&mut [f32]], lhs: Rows<'_>, rhs: Rows<'_>, alpha: f32) {
    pulp::Arch::new().dispatch(Dots {
        out,
        lhs,
        rhs,
        alpha,
    });
}

struct Dots<'a, 'b> {
    out: &'a mut [&'b mut [f32]],
    lhs: Rows<'a>,
    rhs: Rows<'a>,
    alpha: f32,
}

impl pulp::WithSimd for Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let columns = self.out.first().map_or(0, |out| out.len());
        let whole = columns / TILE * TILE;
        for column in (0..whole).step_by(TILE) {
            self.columns::<S, TILE>(simd, column);
        }
        for column in whole..columns {
            self.columns::<S, 1>(simd, column);
        }
    }
}

impl Dots<'_, '_> {
    /// So many columns from `first` on.
    #[inline(always)]
    fn columns<S: pulp::Simd, const COLUMNS: usize>(&mut self, simd: S, first: usize) {
        let columns: [&[f32]; COLUMNS] = std::array::from_fn(|at| self.rhs.row(first + at));
        let rows = self.out.len();
        let whole = rows / TILE * TILE;
        for row in (0..whole).step_by(TILE) {
            self.tile::<S, TILE, COLUMNS>(simd, [row, first], columns);
        }
        match rows - whole {
            1 => self.tile::<S, 1, COLUMNS>(simd, [whole, first], columns),
            2 => self.tile::<S, 2, COLUMNS>(simd, [whole, first], columns),
            3 => self.tile::<S, 3, COLUMNS>(simd, [whole, first], columns),
            _ => {}
        }
    }

    #[inline(always)]
    fn tile<S: pulp::Simd, const ROWS: usize, const COLUMNS: usize>(
        &mut self,
        simd: S,
        [row, column]: [usize; 2],
        columns: [&[f32]; COLUMNS],
    ) {
        let rows: [&[f32]; ROWS] = std::array::from_fn(|at| self.lhs.row(row + at));
        let dots = dots(simd, rows, columns);
        for (out, dots) in self.out[row..].iter_mut().zip(&dots) {
            for (out, dot) in out[column..].iter_mut().zip(dots) {
                *out += self.alpha * dot;
            }
        }
    }
}

/// Sums of products of every row with every column.
#[inline(always)]
fn dots<S: pulp::Simd, const ROWS: usize, const COLUMNS: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    columns: [&[f32]; COLUMNS],
) -> [[f32; COLUMNS]; ROWS] {
    let rows = rows.map(S::as_simd_f32s);
    let columns = columns.map(S::as_simd_f32s);
    let len = rows[0].0.len();
    // Slices of one length: no access is checked in the loop.
    let row_vectors = rows.map(|(vectors, _)| &vectors[..len]);
    let column_vectors = columns.map(|(vectors, _)| &vectors[..len]);
    let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
    for at in 0..len {
        for (sums, row) in sums.iter_mut().zip(row_vectors) {
            for (sum, column) in sums.iter_mut().zip(column_vectors) {
                *sum = simd.mul_add_f32s(row[at], column[at], *sum);
            }
        }
    }
    // Loops and no closures: a closure is not compiled for the processor's vectors.
    let mut dots = [[0.0; COLUMNS]; ROWS];
    for ((dots, sums), (_, row)) in dots.iter_mut().zip(sums).zip(rows) {
        for ((dot, sum), (_, column)) in dots.iter_mut().zip(sums).zip(columns) {
            let mut rest = 0.0;
            for (a, b) in row.iter().zip(column) {
                rest += a * b;
            }
            *dot = simd.reduce_sum_f32s(sum) + rest;
        }
    }
    dots
}
