//! Integer tensors that are indices into other tensors.

use burn::tensor::TensorData;

/// What the integers of a tensor point into.
#[derive(Clone, Debug)]
pub(crate) struct Indices {
    /// Sizes of the axes that they point along. With one size, every integer is an index; with several, the first axis
    /// of the tensor has an entry for each.
    axes: Vec<usize>,
    pub(crate) distinct: bool,
}

impl Indices {
    pub(crate) fn new(axes: &[usize]) -> Self {
        Self {
            axes: axes.to_vec(),
            distinct: false,
        }
    }

    /// Says the first thing that is wrong in the integers of a tensor.
    pub(crate) fn check(&self, data: &TensorData) -> Result<(), String> {
        let values: Vec<i64> = data.iter::<i64>().collect();
        // Of a matrix, each row is along an axis.
        let count = values.len() / self.axes.len().max(1);
        if count * self.axes.len() != values.len()
            || self.axes.len() > 1 && data.shape().first() != Some(&self.axes.len())
        {
            return Err(format!(
                "has shape {:?}, and its first axis must have {} entries, one for each axis of the weight",
                data.shape().to_vec(),
                self.axes.len()
            ));
        }
        for (at, value) in values.iter().enumerate() {
            let size = self.axes[at / count];
            if !usize::try_from(*value).is_ok_and(|value| value < size) {
                return Err(format!(
                    "holds index {value} at element {at}; it must be at least 0 and below {size}"
                ));
            }
        }
        if self.distinct {
            self.check_distinct(&values, count)?;
        }
        Ok(())
    }

    fn check_distinct(&self, values: &[i64], count: usize) -> Result<(), String> {
        let point = |at: usize| (0..self.axes.len()).map(move |axis| values[axis * count + at]);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| point(*a).cmp(point(*b)).then(a.cmp(b)));
        let twice = |pair: &&[usize]| point(pair[0]).eq(point(pair[1]));
        match order.windows(2).find(twice) {
            None => Ok(()),
            Some(pair) => {
                let point: Vec<String> = point(pair[0]).map(|index| index.to_string()).collect();
                Err(format!(
                    "holds the index {} twice, in places {} and {}; each may be there once",
                    point.join(", "),
                    pair[0],
                    pair[1]
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        axes: &[usize],
        distinct: bool,
        values: &[i64],
        shape: &[usize],
    ) -> Result<(), String> {
        let indices = Indices {
            distinct,
            ..Indices::new(axes)
        };
        indices.check(&TensorData::new(values.to_vec(), shape.to_vec()))
    }

    #[test]
    fn an_index_lies_within_what_it_points_into() {
        assert_eq!(check(&[6], false, &[0, 5, 5, 2], &[2, 2]), Ok(()));
        let error = check(&[6], false, &[0, 6], &[2]).unwrap_err();
        assert!(
            error.contains("index 6 at element 1") && error.contains("below 6"),
            "{error}"
        );
        let error = check(&[6], false, &[-1, 3], &[2]).unwrap_err();
        assert!(error.contains("index -1 at element 0"), "{error}");
        assert_eq!(check(&[6], true, &[], &[0]), Ok(()));
    }

    #[test]
    fn each_axis_has_its_own_bound() {
        assert_eq!(check(&[2, 4], true, &[0, 1, 1, 3, 2, 3], &[2, 3]), Ok(()));
        let error = check(&[2, 4], true, &[0, 3, 3, 2], &[2, 2]).unwrap_err();
        assert!(
            error.contains("index 3 at element 1") && error.contains("below 2"),
            "{error}"
        );
        let error = check(&[2, 4], true, &[0, 1, 0, 1], &[1, 4]).unwrap_err();
        assert!(error.contains("[1, 4]"), "{error}");
    }

    #[test]
    fn a_point_that_is_there_twice_is_named() {
        let error = check(&[6], true, &[4, 1, 4], &[3]).unwrap_err();
        assert!(
            error.contains("index 4 twice, in places 0 and 2"),
            "{error}"
        );
        let error = check(&[2, 4], true, &[1, 0, 1, 3, 3, 3], &[2, 3]).unwrap_err();
        assert!(
            error.contains("index 1, 3 twice, in places 0 and 2"),
            "{error}"
        );
    }
}
