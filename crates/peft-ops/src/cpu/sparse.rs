//! Products with a sparse matrix: a block of rows is turned, so that one element of the matrix meets all of its rows
//! in one vector.

use rayon::prelude::*;

use super::buffers::change_blocks;
use super::math::vectors;

/// Rows of a block.
const LANES: usize = 32;
/// Inputs and outputs that are turned at a time: of a row, a line of the cache.
const TILE: usize = 16;
/// Sums over rows are of no more parts than this: each part has sums of its own in memory.
const PARTS: usize = 16;

/// Where a sparse matrix `[in, out]` has elements, ordered by output.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    d_in: usize,
    /// Where the elements of each output begin, and where the last one's end: `out + 1` numbers.
    starts: Vec<u32>,
    /// The input of each element.
    inputs: Vec<u32>,
    /// The place of each element among the values as they were given.
    order: Vec<u32>,
}

impl Pattern {
    /// Of elements at these inputs and outputs of a matrix `[in, out]`.
    pub(crate) fn new(inputs: &[i64], outputs: &[i64], [d_in, d_out]: [usize; 2]) -> Self {
        assert_eq!(inputs.len(), outputs.len(), "an input for each output");
        let within = |index: i64, size: usize| usize::try_from(index).is_ok_and(|at| at < size);
        let fits = |(input, output): (&i64, &i64)| within(*input, d_in) && within(*output, d_out);
        assert!(
            inputs.iter().zip(outputs).all(fits),
            "an element outside of the matrix [{d_in}, {d_out}]"
        );
        let mut starts = vec![0_u32; d_out + 1];
        for output in outputs {
            starts[*output as usize + 1] += 1;
        }
        for output in 0..d_out {
            starts[output + 1] += starts[output];
        }
        let mut next = starts.clone();
        let (mut sorted, mut order) = (vec![0; inputs.len()], vec![0; inputs.len()]);
        for (at, (input, output)) in inputs.iter().zip(outputs).enumerate() {
            let place = &mut next[*output as usize];
            sorted[*place as usize] = *input as u32;
            order[*place as usize] = at as u32;
            *place += 1;
        }
        Self {
            d_in,
            starts,
            inputs: sorted,
            order,
        }
    }

    /// Widths of what goes in and what comes out.
    pub(crate) fn widths(&self) -> [usize; 2] {
        [self.d_in, self.starts.len() - 1]
    }

    /// The values in the pattern's own order.
    fn sorted(&self, values: &[f32]) -> Vec<f32> {
        self.order.iter().map(|at| values[*at as usize]).collect()
    }

    /// The elements of an output.
    fn of_output(&self, output: usize) -> std::ops::Range<usize> {
        self.starts[output] as usize..self.starts[output + 1] as usize
    }

    /// Adds `x S` to rows of outputs.
    pub(crate) fn add(&self, values: &[f32], x: &[f32], y: &mut [f32]) {
        let [d_in, d_out] = self.widths();
        let values = self.sorted(values);
        change_blocks(y, d_out, LANES, |first, part| {
            let rows = part.len() / d_out;
            let turned = turned(&x[first * d_in..(first + rows) * d_in], d_in);
            vectors(
                #[inline(always)]
                |fma| {
                    for first in (0..d_out).step_by(TILE) {
                        let last = d_out.min(first + TILE);
                        if self.starts[first] == self.starts[last] {
                            continue;
                        }
                        let mut tile = [[0.0_f32; LANES]; TILE];
                        for (output, sums) in (first..last).zip(&mut tile) {
                            let range = self.of_output(output);
                            let inputs = &self.inputs[range.clone()];
                            for (value, input) in values[range].iter().zip(inputs) {
                                let column = &turned[*input as usize];
                                for (sum, x) in sums.iter_mut().zip(column) {
                                    *sum = fma.add(*value, *x, *sum);
                                }
                            }
                        }
                        for (lane, row) in part.chunks_exact_mut(d_out).enumerate() {
                            for (y, sums) in row[first..last].iter_mut().zip(&tile) {
                                *y += sums[lane];
                            }
                        }
                    }
                },
            );
        });
    }

    /// The same elements of the transpose.
    fn transposed(&self) -> Self {
        let [d_in, d_out] = self.widths();
        let mut starts = vec![0_u32; d_in + 1];
        for input in &self.inputs {
            starts[*input as usize + 1] += 1;
        }
        for input in 0..d_in {
            starts[input + 1] += starts[input];
        }
        let mut next = starts.clone();
        let (mut outputs, mut order) = (vec![0; self.inputs.len()], vec![0; self.inputs.len()]);
        for output in 0..d_out {
            for element in self.of_output(output) {
                let place = &mut next[self.inputs[element] as usize];
                outputs[*place as usize] = output as u32;
                order[*place as usize] = self.order[element];
                *place += 1;
            }
        }
        Self {
            d_in: d_out,
            starts,
            inputs: outputs,
            order,
        }
    }

    /// `dy Sᵀ`, `[rows, in]`.
    pub(crate) fn input_gradient(&self, values: &[f32], dy: &[f32]) -> Vec<f32> {
        let [d_in, d_out] = self.widths();
        let mut gradient = vec![0.0; dy.len() / d_out * d_in];
        self.transposed().add(values, dy, &mut gradient);
        gradient
    }

    /// The gradient of the values: of each the sum over all rows of its input's number times its output's gradient.
    ///
    /// The partial sums are added in order, so the result does not depend on the threads.
    pub(crate) fn value_gradient(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let [d_in, d_out] = self.widths();
        let rows = dy.len() / d_out;
        let part = rows.div_ceil(PARTS).next_multiple_of(LANES);
        let partial: Vec<Vec<f32>> = (0..rows.div_ceil(part))
            .into_par_iter()
            .map(|index| {
                let range = index * part..rows.min((index + 1) * part);
                self.value_gradient_of(
                    &x[range.start * d_in..range.end * d_in],
                    &dy[range.start * d_out..range.end * d_out],
                )
            })
            .collect();
        let mut gradient = vec![0.0; self.order.len()];
        for partial in partial {
            for (at, partial) in self.order.iter().zip(partial) {
                gradient[*at as usize] += partial;
            }
        }
        gradient
    }

    /// The same of some rows, in the pattern's own order.
    fn value_gradient_of(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let [d_in, d_out] = self.widths();
        // Each has a vector of sums, which is added up once, at the end.
        let mut sums = vec![[0.0_f32; LANES / 2]; self.inputs.len()];
        for (x, dy) in x.chunks(LANES * d_in).zip(dy.chunks(LANES * d_out)) {
            let (x, dy) = (turned(x, d_in), turned(dy, d_out));
            vectors(
                #[inline(always)]
                |fma| {
                    for (output, dy) in dy.iter().enumerate() {
                        let range = self.of_output(output);
                        for (sum, input) in sums[range.clone()].iter_mut().zip(&self.inputs[range])
                        {
                            add_products(fma, &x[*input as usize], dy, sum);
                        }
                    }
                },
            );
        }
        sums.into_iter().map(|sums| sums.iter().sum()).collect()
    }
}

/// Adds xᵢ yᵢ of two columns to sums, of which each takes two products.
#[inline(always)]
fn add_products(
    fma: super::math::Fma,
    x: &[f32; LANES],
    y: &[f32; LANES],
    sums: &mut [f32; LANES / 2],
) {
    for (lane, sum) in sums.iter_mut().enumerate() {
        let upper = lane + LANES / 2;
        *sum = fma.add(x[lane], y[lane], fma.add(x[upper], y[upper], *sum));
    }
}

/// At most [`LANES`] rows as columns; what is missing is 0.
fn turned(rows: &[f32], width: usize) -> Vec<[f32; LANES]> {
    let mut columns = vec![[0.0; LANES]; width];
    // A tile of columns stays in the cache while all rows write into it.
    for (tile, columns) in columns.chunks_mut(TILE).enumerate() {
        for (lane, row) in rows.chunks_exact(width).enumerate() {
            for (column, value) in columns.iter_mut().zip(&row[tile * TILE..]) {
                column[lane] = *value;
            }
        }
    }
    columns
}
