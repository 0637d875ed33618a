//! Matrices turned in memory.

use burn::tensor::TensorData;

/// Side of the squares that are turned one after another, so that both matrices' lines stay in the first cache.
const TILE: usize = 32;

/// A row-major `[rows, columns]` matrix as a row-major `[columns, rows]`.
///
/// # Panics
///
/// If `values` has another number of elements.
#[must_use]
pub fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    assert_eq!(
        values.len(),
        rows * columns,
        "the size of a {rows} × {columns} matrix"
    );
    // Every element is overwritten.
    let mut turned = values.to_vec();
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for column in left..columns.min(left + TILE) {
                for row in top..rows.min(top + TILE) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}

/// [`transposed`] of elements of `N` bytes.
pub(crate) fn transposed_bytes<const N: usize>(bytes: &[u8], shape: [usize; 2]) -> Vec<u8> {
    let (elements, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty(), "elements of {N} bytes");
    transposed(elements, shape).into_flattened()
}

/// The last two axes of row-major data, swapped.
pub(crate) fn transpose(data: TensorData) -> TensorData {
    let [rows, columns] = [data.shape()[0], data.shape()[1]];
    let (source, shape) = (data.as_bytes(), [rows, columns]);
    let bytes = match data.dtype().size() {
        1 => transposed_bytes::<1>(source, shape),
        2 => transposed_bytes::<2>(source, shape),
        4 => transposed_bytes::<4>(source, shape),
        8 => transposed_bytes::<8>(source, shape),
        size => unreachable!("no tensor of a file has elements of {size} bytes"),
    };
    TensorData::from_bytes_vec(bytes, vec![columns, rows], data.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_larger_than_a_tile_is_turned() {
        let (rows, columns) = (33, 70);
        let values: Vec<u32> = (0..rows * columns).map(|value| value as u32).collect();
        let turned = transposed(&values, [rows, columns]);
        for row in 0..rows {
            for column in 0..columns {
                assert_eq!(turned[column * rows + row], values[row * columns + column]);
            }
        }
        assert_eq!(transposed(&turned, [columns, rows]), values);
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let expected: Vec<u8> = turned
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(transposed_bytes::<4>(&bytes, [rows, columns]), expected);
    }

    #[test]
    fn a_matrix_without_elements_is_turned() {
        assert!(transposed::<f32>(&[], [0, 3]).is_empty());
    }
}
