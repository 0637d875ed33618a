//! Products with sparse matrices.

use std::collections::BTreeSet;

use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;

use super::*;
use crate::Sparse;

/// Different places of a matrix, in no order, that depend on the seed only.
fn places([d_in, d_out]: [usize; 2], count: usize, seed: u64) -> [Vec<i64>; 2] {
    let all = d_in * d_out;
    let mut seen = BTreeSet::new();
    let mut drawn = Vec::new();
    for draw in 0.. {
        if drawn.len() == count.min(all) {
            break;
        }
        let at = crate::cpu::math::coin(seed, draw) as usize % all;
        // As good as drawn, where draws repeat themselves.
        let at = if draw < 8 * all { at } else { draw % all };
        if seen.insert(at) {
            drawn.push(at as i64);
        }
    }
    let width = d_out as i64;
    [
        drawn.iter().map(|at| at / width).collect(),
        drawn.iter().map(|at| at % width).collect(),
    ]
}

fn integers(values: &[i64], device: &Device) -> Tensor<1, Int> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, device)
}

fn sparse(values: &Tensor<1>, [inputs, outputs]: &[Vec<i64>; 2], shape: [usize; 2]) -> Sparse {
    Sparse {
        values: values.clone(),
        inputs: integers(inputs, &values.device()),
        outputs: integers(outputs, &values.device()),
        shape,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_sparse_product_is_its_reference(
        batch in 1_usize..4, seq in 1_usize..120, d_in in 1_usize..70, d_out in 1_usize..70,
        share in 0.0_f64..1.0, trained: [bool; 5], seed: u64,
    ) {
        let trained = if trained[..3].contains(&true) { trained } else { [true; 5] };
        let shape = [d_in, d_out];
        let count = ((d_in * d_out) as f64 * share) as usize;
        let places = places(shape, count.max(1), seed ^ 7);
        let inputs = || (
            input([batch, seq, d_out], seed, trained[0]),
            input([batch, seq, d_in], seed ^ 1, trained[1]),
            input([places[0].len()], seed ^ 2, trained[2]),
        );
        compare!(inputs(), [y, x, values],
            crate::add_sparse(y.clone(), x.clone(), sparse(&values, &places, shape)),
            reference::add_sparse(y.clone(), x.clone(), sparse(&values, &places, shape)));
    }

    #[test]
    fn rows_of_a_sparse_table_are_those_of_the_dense_one(
        batch in 1_usize..4, seq in 1_usize..20, rows in 1_usize..30, width in 1_usize..20,
        count in 1_usize..60, trained: [bool; 5], seed: u64,
    ) {
        let trained = if trained[..2].contains(&true) { trained } else { [true; 5] };
        let shape = [rows, width];
        let places = places(shape, count, seed ^ 7);
        let ids: Vec<i64> = (0..batch * seq)
            .map(|at| (crate::cpu::math::coin(seed ^ 9, at) as usize % rows) as i64)
            .collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, seq]), &device());
        let inputs = || (
            input([batch, seq, width], seed, trained[0]),
            input([places[0].len()], seed ^ 2, trained[1]),
        );
        compare!(inputs(), [y, values],
            crate::add_sparse_rows(y.clone(), ids.clone(), sparse(&values, &places, shape)),
            y.clone() + burn::tensor::module::embedding(sparse(&values, &places, shape).dense(), ids.clone()));
    }
}

#[test]
fn a_matrix_without_elements_adds_nothing() {
    let x = input([1, 5, 4], 1, false);
    let y = input([1, 5, 3], 2, false);
    let values = Tensor::<1>::zeros([0], &device());
    let none = sparse(&values, &[Vec::new(), Vec::new()], [4, 3]);
    let added = crate::add_sparse(y.clone(), x, none);
    assert_eq!(added.into_data(), y.into_data());
}

#[test]
#[should_panic(expected = "an element outside of the matrix [4, 3]")]
fn an_element_outside_of_the_matrix_is_refused() {
    let (x, y) = (input([1, 5, 4], 1, false), input([1, 5, 3], 2, false));
    let values = Tensor::<1>::ones([1], &device());
    let _ = crate::add_sparse(y, x, sparse(&values, &[vec![1], vec![3]], [4, 3]));
}
