//! Weights that few numbers change, and inputs that are turned in blocks.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;

use super::*;
use crate::cpu::transform;
use crate::{
    LowRank, Waves, add_hadamard, add_product, add_waves, block_diagonal, linear, scale_by_product,
    scale_columns,
};

/// At least one of the first three.
fn three_of(trained: [bool; 3]) -> [bool; 3] {
    if trained.contains(&true) {
        trained
    } else {
        [true; 3]
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_sum_with_a_product_is_its_reference(
        d_in in 1_usize..70, d_out in 1_usize..70, rank in 1_usize..40, view: bool,
        trained: [bool; 3], seed: u64,
    ) {
        let trained = three_of(trained);
        let inputs = || {
            let matrix = if view {
                input([d_out, d_in], seed, trained[0]).transpose()
            } else {
                input([d_in, d_out], seed, trained[0])
            };
            (matrix, input([d_in, rank], seed ^ 1, trained[1]), input([rank, d_out], seed ^ 2, trained[2]))
        };
        // A view is no leaf.
        compare!(
            inputs(), [matrix, down, up],
            add_product(matrix.clone(), LowRank::new(down.clone(), up.clone(), 0.3)).unsqueeze::<3>(),
            reference::add_product(matrix.clone(), LowRank::new(down.clone(), up.clone(), 0.3)).unsqueeze::<3>()
        );
        compare!(
            inputs(), [matrix, down, up],
            scale_by_product(matrix.clone(), down.clone(), up.clone()).unsqueeze::<3>(),
            reference::scale_by_product(matrix.clone(), down.clone(), up.clone()).unsqueeze::<3>()
        );
    }

    #[test]
    fn factors_of_a_high_rank_are_added_to_the_weight(
        tokens in 300_usize..400, d_in in 1_usize..40, d_out in 1_usize..40, rank in 30_usize..60,
        trained: [bool; 5], seed: u64,
    ) {
        let trained = any_of(trained);
        let inputs = || (
            input([1, tokens, d_in], seed, trained[0]),
            input([d_in, d_out], seed ^ 1, trained[1]),
            input([d_out], seed ^ 2, trained[2]),
            input([d_in, rank], seed ^ 3, trained[3]),
            input([rank, d_out], seed ^ 4, trained[4]),
        );
        compare!(
            1e-4,
            inputs(), [x, weight, bias, down, up],
            linear(x.clone(), weight.clone(), Some(bias.clone()), Some(LowRank::new(down.clone(), up.clone(), 0.5))),
            reference::linear(x.clone(), weight.clone(), Some(bias.clone()), Some(LowRank::new(down.clone(), up.clone(), 0.5)))
        );
    }

    #[test]
    fn a_fast_hadamard_transform_is_its_reference(
        elements in 1_usize..3000, power in 0_u32..9, trained: [bool; 3], seed: u64,
    ) {
        let trained = three_of([trained[0], trained[1], false]);
        let size = 1 << power;
        let blocks = elements.div_ceil(size);
        let inputs = || (
            input([1, 1, elements], seed, trained[0]),
            input([blocks, size], seed ^ 1, false),
            input([size], seed ^ 2, trained[1]),
        );
        compare!(
            inputs(), [weight, diagonals, vector],
            add_hadamard(weight.clone(), diagonals.clone(), vector.clone()),
            reference::add_hadamard(weight.clone(), diagonals.clone(), vector.clone())
        );
    }

    #[test]
    fn a_fast_fourier_transform_is_its_reference(
        d_in in 1_usize..60, d_out in 1_usize..130, share in 0.0_f64..1.0, trained: [bool; 3], seed: u64,
    ) {
        let trained = three_of([trained[0], trained[1], false]);
        let all = d_out / 2;
        // Of the frequencies that do not turn, too.
        let mut frequencies: Vec<usize> = (0..=all)
            .filter(|at| f64::from(crate::cpu::math::coin(seed, *at) as u16) < share * 65_536.0)
            .collect();
        if frequencies.is_empty() {
            frequencies.push(all);
        }
        let waves = Waves::new(&frequencies, d_out);
        let inputs = || (
            input([d_in, d_out], seed, trained[0]),
            input([d_in, waves.count()], seed ^ 1, trained[1]),
        );
        compare!(
            2e-5,
            inputs(), [weight, coefficients],
            add_waves(weight.clone(), coefficients.clone(), &waves, 0.3).unsqueeze::<3>(),
            reference::add_waves(weight.clone(), coefficients.clone(), &waves, 0.3).unsqueeze::<3>()
        );
    }

    #[test]
    fn blocks_along_a_diagonal_are_their_reference(
        tokens in 1_usize..300, count in 1_usize..6, size in prop_oneof![1_usize..18, Just(32), Just(64), Just(70)],
        trained: [bool; 3], seed: u64,
    ) {
        let trained = three_of([trained[0], trained[1], false]);
        let inputs = || (
            input([tokens, count * size], seed, trained[0]),
            input([count, size, size], seed ^ 1, trained[1]),
        );
        compare!(
            2e-5,
            inputs(), [x, blocks],
            block_diagonal(x.clone(), blocks.clone()).unsqueeze::<3>(),
            reference::block_diagonal(x.clone(), blocks.clone()).unsqueeze::<3>()
        );
    }

    #[test]
    fn scaled_columns_are_their_reference(
        tokens in 1_usize..300, width in 1_usize..130, has_bias: bool, trained: [bool; 3], seed: u64,
    ) {
        let trained = three_of(trained);
        let inputs = || (
            input([tokens, width], seed, trained[0]),
            input([width], seed ^ 1, trained[1]),
            input([width], seed ^ 2, trained[2] && has_bias),
        );
        let some = |bias: &Tensor<1>| has_bias.then(|| bias.clone());
        if !(trained[0] || trained[1] || has_bias) {
            return Ok(());
        }
        compare!(
            inputs(), [x, scale, bias],
            scale_columns(x.clone(), scale.clone(), some(&bias)).unsqueeze::<3>(),
            reference::scale_columns(x.clone(), scale.clone(), some(&bias)).unsqueeze::<3>()
        );
    }
}

#[test]
fn numbers_of_sixteen_bits_are_composed_by_the_references() {
    let device = device();
    let half = |shape: [usize; 2]| Tensor::<2>::ones(shape, (&device, DType::BF16));
    let sum = add_product(half([2, 3]), LowRank::new(half([2, 1]), half([1, 3]), 0.5));
    assert_eq!(sum.dtype(), DType::BF16);
    let sum: Vec<f32> = sum.into_data().iter().collect();
    assert_eq!(sum, [1.5; 6]);
}

#[test]
fn a_transform_of_a_whole_row_is_a_sum_of_waves() {
    // x = 2 + 3·cos(turn) − sin(2 turns) of 8 numbers.
    let waves = transform::Waves::new(&[0, 1, 2], 8);
    let found = waves.add(&[0.0; 8], &[2.0, 9.0, 3.0, 0.0, 0.0, -1.0], 1.0);
    for (at, found) in found.iter().enumerate() {
        let turn = std::f64::consts::TAU * at as f64 / 8.0;
        let expected = 2.0 + 3.0 * turn.cos() - (2.0 * turn).sin();
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{at}: {found}");
    }
}

#[test]
#[should_panic(expected = "above half of the width")]
fn a_wave_that_is_too_short_is_refused() {
    Waves::new(&[5], 8);
}

#[test]
#[should_panic(expected = "the width of the blocks")]
fn blocks_that_do_not_fit_are_refused() {
    block_diagonal(input([2, 7], 1, false), input([2, 3, 3], 2, false));
}
