//! How the parameters of a state lie in a file's tensors.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::TensorData;

use crate::adapter::checkpoint_key::{CheckpointKey, Columns, Form, Style};
use crate::adapter::erased::ErasedModule;
use crate::adapter::indices::Indices;
use crate::checkpoint::transpose::transpose;

/// Where one parameter of an adapter's state is in a file.
pub(crate) struct Stored {
    /// None of what is not saved.
    pub(crate) key: Option<String>,
    transposed: bool,
    form: Form,
    shaped: Option<Vec<usize>>,
    columns: Option<Columns>,
    rows: Option<Columns>,
    /// What integers point into.
    pub(crate) indices: Option<Indices>,
}

impl Stored {
    /// The tensor's shape in the file, for a parameter of `shape`.
    pub(crate) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        match &self.shaped {
            Some(shaped) => shaped.clone(),
            None => self.laid_out(shape),
        }
    }

    /// The same before it gets another shape of its own.
    fn laid_out(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        if let (Some(columns), Some(last)) = (self.columns, whole.last_mut()) {
            *last = columns.of;
        }
        if let (Some(rows), Some(first)) = (self.rows, whole.first_mut()) {
            *first = rows.of;
        }
        if self.transposed {
            whole.reverse();
        }
        match self.form {
            Form::Same => {}
            Form::Upright => whole.push(1),
            Form::Flat => drop(whole.remove(0)),
        }
        whole
    }

    /// The same of rows of the file's tensor.
    fn put_rows(&self, rows: Columns, before: Option<TensorData>, value: TensorData) -> TensorData {
        let shape = value.shape().to_vec();
        let (whole, dtype) = (self.shape(&shape), value.dtype());
        let before = before.unwrap_or_else(|| {
            let size = whole.iter().product::<usize>() * dtype.size();
            TensorData::from_bytes_vec(vec![0; size], whole.clone(), dtype)
        });
        let own = Self {
            key: self.key.clone(),
            rows: None,
            shaped: None,
            indices: None,
            ..*self
        };
        let mut bytes = before.as_bytes().to_vec();
        let range = row_bytes(&before, rows, shape[0]);
        // Other places may have left columns of these rows there.
        let mut part = whole.clone();
        part[0] = shape[0];
        let there = self
            .columns
            .map(|_| TensorData::from_bytes_vec(bytes[range.clone()].to_vec(), part, dtype));
        bytes[range].copy_from_slice(own.put(there, value).as_bytes());
        TensorData::from_bytes_vec(bytes, whole, dtype)
    }

    /// How a parameter of `shape` lies in the file's tensor.
    fn runs(&self, shape: &[usize]) -> Runs {
        let (width, others) = shape.split_last().expect("a part has an axis");
        let others = others.iter().product();
        let (outer, inner) = if self.transposed {
            (1, others)
        } else {
            (others, 1)
        };
        Runs {
            outer,
            width: *width,
            inner,
        }
    }

    /// The value of a parameter of `shape`, from the file's tensor, which has the right shape.
    pub(crate) fn value(&self, tensor: &TensorData, shape: &[usize]) -> TensorData {
        if self.shaped.is_some() {
            let value = with_shape(tensor.clone(), self.laid_out(shape));
            return if self.transposed {
                transpose(value)
            } else {
                value
            };
        }
        if self.form != Form::Same {
            return with_shape(tensor.clone(), shape.to_vec());
        }
        let mut value = match self.rows {
            None => tensor.clone(),
            Some(rows) => {
                let mut part = tensor.shape().to_vec();
                part[0] = shape[0];
                let bytes = tensor.as_bytes()[row_bytes(tensor, rows, shape[0])].to_vec();
                TensorData::from_bytes_vec(bytes, part, tensor.dtype())
            }
        };
        if let Some(columns) = self.columns {
            let runs = self.runs(shape);
            let (size, whole) = (tensor.dtype().size(), value.as_bytes());
            let mut bytes = Vec::with_capacity(runs.outer * runs.width * runs.inner * size);
            for run in 0..runs.outer {
                bytes.extend_from_slice(&whole[runs.bytes(columns, run, size)]);
            }
            let mut own = shape.to_vec();
            if self.transposed {
                own.reverse();
            }
            value = TensorData::from_bytes_vec(bytes, own, tensor.dtype());
        }
        if self.transposed {
            transpose(value)
        } else {
            value
        }
    }

    /// Which part of the file's tensor it is.
    pub(crate) fn part(&self) -> Part {
        Part {
            rows: self.rows,
            columns: self.columns,
        }
    }

    /// The file's tensor with a parameter's `value` in it; `before` is what other places left there.
    ///
    /// # Panics
    ///
    /// If there is something in the place of the value already.
    pub(crate) fn put(&self, before: Option<TensorData>, value: TensorData) -> TensorData {
        if let Some(rows) = self.rows {
            return self.put_rows(rows, before, value);
        }
        let shape = value.shape().to_vec();
        let value = if self.transposed {
            transpose(value)
        } else {
            value
        };
        let Some(columns) = self.columns else {
            assert!(
                before.is_none(),
                "two places of the adapter write {:?}",
                self.key
            );
            return with_shape(value, self.shape(&shape));
        };
        let (whole, dtype) = (self.shape(&shape), value.dtype());
        let mut bytes = match before {
            Some(before) => before.as_bytes().to_vec(),
            None => vec![0; whole.iter().product::<usize>() * dtype.size()],
        };
        let runs = self.runs(&shape);
        let run_bytes = runs.width * runs.inner * dtype.size();
        for (run, part) in value.as_bytes().chunks_exact(run_bytes).enumerate() {
            bytes[runs.bytes(columns, run, dtype.size())].copy_from_slice(part);
        }
        TensorData::from_bytes_vec(bytes, whole, dtype)
    }
}

/// The same elements in another shape.
fn with_shape(data: TensorData, shape: Vec<usize>) -> TensorData {
    let dtype = data.dtype();
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), shape, dtype)
}

/// Some rows of some columns of a tensor; all of them where it says none.
pub(crate) struct Part {
    rows: Option<Columns>,
    columns: Option<Columns>,
}

impl Part {
    /// Whether it is of the same tensor, and begins elsewhere.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        let apart = |a: Option<Columns>, b: Option<Columns>| match (a, b) {
            (Some(a), Some(b)) => a.of == b.of && a.from != b.from,
            _ => false,
        };
        apart(self.rows, other.rows) || apart(self.columns, other.columns)
    }
}

/// Where the bytes of `count` rows of a tensor are.
fn row_bytes(whole: &TensorData, rows: Columns, count: usize) -> Range<usize> {
    let row = whole.as_bytes().len() / rows.of;
    rows.from * row..(rows.from + count) * row
}

/// Row-major data as a part lies in it: `outer` runs of `width` of the `of` elements of the axis, each of
/// `inner` numbers.
struct Runs {
    outer: usize,
    width: usize,
    inner: usize,
}

impl Runs {
    /// Where the bytes of run `run` of `columns` are in the whole.
    fn bytes(&self, columns: Columns, run: usize, size: usize) -> Range<usize> {
        let from = (run * columns.of + columns.from) * self.inner * size;
        from..from + self.width * self.inner * size
    }
}

/// By field, for every parameter of an adapter's state: where it is, and where its twins are.
pub(crate) type Specs = HashMap<String, (Stored, Vec<Stored>)>;

pub(crate) fn specs_by_field(
    adapter: &dyn ErasedModule,
    style: Style,
    layer: &str,
    name: &str,
) -> Specs {
    let stored = |spec: &CheckpointKey| Stored {
        key: spec.key(style, layer, name),
        transposed: spec.transposed,
        form: spec.form,
        shaped: spec.shaped.clone(),
        columns: spec.columns,
        rows: spec.rows,
        indices: spec.indices.clone(),
    };
    adapter
        .tensors()
        .into_iter()
        .map(|spec| {
            let own = spec.of(style);
            let twins = own.twins.iter().map(stored).collect();
            (spec.field.clone(), (stored(own), twins))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(transposed: bool, from: usize, of: usize) -> Stored {
        Stored {
            key: Some("key".into()),
            transposed,
            form: Form::Same,
            shaped: None,
            columns: Some(Columns { from, of }),
            rows: None,
            indices: None,
        }
    }

    fn data(values: &[f32], shape: [usize; 2]) -> TensorData {
        TensorData::new(values.to_vec(), shape)
    }

    #[test]
    fn places_share_a_tensor_by_columns() {
        let whole = data(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let (left, right) = (
            data(&[1.0, 4.0], [2, 1]),
            data(&[2.0, 3.0, 5.0, 6.0], [2, 2]),
        );
        let (first, second) = (stored(false, 0, 3), stored(false, 1, 3));
        assert_eq!(second.shape(&[2, 2]), [2, 3]);
        assert_eq!(first.value(&whole, &[2, 1]), left);
        assert_eq!(second.value(&whole, &[2, 2]), right);
        let half = second.put(None, right);
        assert_eq!(first.put(Some(half), left), whole);
    }

    #[test]
    fn places_share_a_tensor_by_rows_and_columns() {
        let whole = data(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [3, 3]);
        let parts = [
            (0, 1, 0, data(&[1.0], [1, 1])),
            (0, 1, 1, data(&[2.0, 3.0], [1, 2])),
            (1, 2, 0, data(&[4.0, 7.0], [2, 1])),
            (1, 2, 1, data(&[5.0, 6.0, 8.0, 9.0], [2, 2])),
        ];
        let mut put = None;
        for (row, rows, column, part) in parts {
            let stored = Stored {
                rows: Some(Columns { from: row, of: 3 }),
                ..stored(false, column, 3)
            };
            let shape = [rows, part.shape().to_vec()[1]];
            assert_eq!(stored.shape(&shape), [3, 3]);
            assert_eq!(stored.value(&whole, &shape), part);
            put = Some(stored.put(put, part));
        }
        assert_eq!(put, Some(whole));
    }

    #[test]
    fn columns_are_counted_before_transposing() {
        // As above, transposed.
        let whole = data(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0], [3, 2]);
        let right = data(&[2.0, 3.0, 5.0, 6.0], [2, 2]);
        let second = stored(true, 1, 3);
        assert_eq!(second.shape(&[2, 2]), [3, 2]);
        assert_eq!(second.value(&whole, &[2, 2]), right);
        let first = stored(true, 0, 3);
        let half = second.put(None, right);
        assert_eq!(first.put(Some(half), data(&[1.0, 4.0], [2, 1])), whole);
    }

    #[test]
    fn a_vector_is_stored_upright() {
        let upright = Stored {
            form: Form::Upright,
            columns: None,
            ..stored(false, 0, 0)
        };
        let (vector, column) = (
            TensorData::new(vec![1.0_f32, 2.0], [2]),
            data(&[1.0, 2.0], [2, 1]),
        );
        assert_eq!(upright.shape(&[2]), [2, 1]);
        assert_eq!(upright.value(&column, &[2]), vector);
        assert_eq!(upright.put(None, vector), column);
    }

    #[test]
    fn a_matrix_is_stored_as_a_kernel() {
        let as_kernel = |transposed, shape: [usize; 3]| Stored {
            shaped: Some(shape.to_vec()),
            columns: None,
            ..stored(transposed, 0, 0)
        };
        let matrix = data(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]);
        let same = TensorData::new(vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 1, 2]);
        let turned = TensorData::new(vec![1.0_f32, 3.0, 5.0, 2.0, 4.0, 6.0], [2, 3, 1]);
        for (stored, kernel) in [
            (as_kernel(false, [3, 1, 2]), same),
            (as_kernel(true, [2, 3, 1]), turned),
        ] {
            assert_eq!(stored.shape(&[3, 2]), kernel.shape().to_vec());
            assert_eq!(stored.value(&kernel, &[3, 2]), matrix);
            assert_eq!(stored.put(None, matrix.clone()), kernel);
        }
    }

    #[test]
    fn a_row_is_stored_flat() {
        let flat = Stored {
            form: Form::Flat,
            columns: None,
            ..stored(false, 0, 0)
        };
        let vector = TensorData::new(vec![1.0_f32, 2.0], [2]);
        let row = data(&[1.0, 2.0], [1, 2]);
        assert_eq!(flat.shape(&[1, 2]), [2]);
        assert_eq!(flat.value(&vector, &[1, 2]), row);
        assert_eq!(flat.put(None, row), vector);
    }

    #[test]
    fn columns_of_a_vector_are_its_elements() {
        let whole = TensorData::new(vec![1.0_f32, 2.0, 3.0], [3]);
        let last = TensorData::new(vec![3.0_f32], [1]);
        assert_eq!(stored(false, 2, 3).value(&whole, &[1]), last);
        let put = stored(false, 2, 3).put(None, last);
        assert_eq!(put, TensorData::new(vec![0.0_f32, 0.0, 3.0], [3]));
    }
}
