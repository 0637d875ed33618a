//! Views, shared memory, other devices and number formats, seeds, shapes that do not fit.

use super::*;

#[test]
fn dropout_follows_the_devices_seed() {
    let x = Tensor::<2>::ones([64, 64], &device());
    let draw = || {
        Device::flex().seed(7);
        crate::dropout(x.clone(), 0.25).into_data()
    };
    let (first, second) = (draw(), draw());
    first.assert_eq(&second, true);
    let other = crate::dropout(x.clone(), 0.25).into_data();
    assert_ne!(first, other, "every call has coins of its own");
    let kept = first.iter::<f32>().filter(|x| *x > 0.0).count() as f64 / 4096.0;
    assert!((kept - 0.75).abs() < 0.03, "{kept}");
    assert!(
        first
            .iter::<f32>()
            .all(|x| x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6)
    );
    let plain = x.clone().without_autodiff();
    crate::dropout(plain.clone(), 0.25)
        .into_data()
        .assert_eq(&plain.into_data(), true);
}

/// A weight that is a view (torch's layout transposed, a part of a larger one) is used as it lies.
#[test]
fn weights_may_be_views() {
    let whole = || Tensor::<2>::from_data(data(&[50, 40], 1), &device());
    let views: [fn(Tensor<2>) -> Tensor<2>; 3] = [
        Tensor::transpose,
        |weight| weight.slice([3..33, 5..27]),
        |weight| weight.slice([3..33, 5..27]).transpose(),
    ];
    for (index, view) in views.into_iter().enumerate() {
        let weight = view(whole());
        let [d_in, _] = weight.dims();
        let pass =
            |linear: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>, Option<LowRank>) -> Tensor<3>| {
                let x = input([2, 7, d_in], 2, true);
                let output = linear(x.clone(), weight.clone(), None, None);
                let gradients = output.clone().powi_scalar(2).sum().backward();
                (output.into_data(), x.grad(&gradients).unwrap().into_data())
            };
        let (found, expected) = (pass(crate::linear), pass(reference::linear));
        close(&format!("view {index}"), &found.0, &expected.0).unwrap();
        close(&format!("gradient {index}"), &found.1, &expected.1).unwrap();
    }
}

#[test]
fn views_and_shared_memory_are_left_alone() {
    let x = Tensor::<2>::random([40, 30], Distribution::Default, &Device::flex());
    let before = x.clone().into_data();
    // A transposed view, and a slice that starts within its memory.
    let view = x.clone().transpose().slice([3..20, 5..35]);
    let expected = reference::gelu(view.clone()).into_data();
    let found = crate::gelu(view.clone()).into_data();
    close("a view", &found, &expected).unwrap();
    let y = crate::dropout(view.clone(), 0.5);
    drop(y);
    let low_rank = LowRank {
        down: Tensor::ones([30, 2], &Device::flex()),
        up: Tensor::ones([2, 30], &Device::flex()),
        scale: 1.0,
        dropout: 0.0,
    };
    drop(crate::add_low_rank(x.clone(), x.clone(), low_rank));
    drop(crate::gelu(x.clone()));
    x.into_data().assert_eq(&before, true);
}

#[test]
fn checkpointing_devices_and_other_dtypes_work() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let x = Tensor::<3>::from_data(data(&[2, 5, 8], 1), &device).require_grad();
    let gradients = crate::gelu(x.clone()).sum().backward();
    let plain = input([2, 5, 8], 1, true);
    let expected = crate::gelu(plain.clone()).sum().backward();
    close(
        "gradient",
        &x.grad(&gradients).unwrap().into_data(),
        &plain.grad(&expected).unwrap().into_data(),
    )
    .unwrap();
    let half = Tensor::<3>::from_data(data(&[2, 5, 8], 1), &Device::flex())
        .cast(burn::tensor::FloatDType::BF16);
    assert_eq!(crate::gelu(half.clone()).dtype(), half.dtype());
}

#[test]
#[should_panic(expected = "the input's width is not the weight's")]
fn shapes_that_do_not_fit_are_refused() {
    crate::linear(
        input([1, 2, 3], 0, false),
        input([4, 5], 0, false),
        None,
        None,
    );
}

#[test]
fn column_norms_are_their_reference() {
    let device = Device::flex();
    for [rows, columns] in [[1, 1], [3, 7], [700, 130]] {
        let matrix = Tensor::<2>::random([rows, columns], Distribution::Default, &device);
        let expected = crate::reference::column_norms(matrix.clone()).into_data();
        let tolerance = burn::tensor::Tolerance::<f32>::relative(1e-6);
        crate::column_norms(matrix.clone())
            .into_data()
            .assert_approx_eq(&expected, tolerance);
        let view = crate::column_norms(matrix.clone().transpose()).into_data();
        let expected = crate::reference::column_norms(matrix.transpose()).into_data();
        view.assert_approx_eq(&expected, tolerance);
        let tracked = Tensor::<2>::ones([rows, columns], &device.clone().autodiff()).require_grad();
        assert!(!crate::column_norms(tracked).is_require_grad());
    }
}
