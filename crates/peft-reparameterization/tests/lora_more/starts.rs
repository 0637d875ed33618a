//! CorDA and LoRA-GA: what they begin as, computed again, and what their files hold.

use burn::tensor::Tensor;
use peft_core::PeftModule;
use peft_core::calibration::{Calibrate as _, Calibration, CalibrationConfig};
use peft_core::state::AdapterState as _;
use peft_reparameterization::{
    CordaConfig, CordaMethod, LoraConfig, LoraGaConfig, LoraGaDirection, LoraGaScale, LoraLinear,
    METHODS,
};

use crate::matrix::Matrix;
use crate::{D_IN, D_OUT, Net, assert_near, device, inputs};

fn calibration(net: &Net) -> Calibration {
    let wanted = CalibrationConfig {
        second_moments: true,
        gradients: true,
        ..CalibrationConfig::new(["layer"])
    };
    let mut calibrator = net.calibrate(&wanted).unwrap();
    let loss = calibrator
        .model()
        .forward(inputs(&device().autodiff()))
        .powi_scalar(2)
        .sum();
    calibrator.record_gradients(&loss.backward()).unwrap();
    calibrator.finish().unwrap()
}

fn state(model: &Net) -> LoraLinear {
    let states = model.adapter_states::<LoraLinear>("a").unwrap();
    states.into_iter().next().unwrap().1
}

fn config(start: &str) -> LoraConfig {
    // A scale that is not 1.
    LoraConfig::new(2)
        .with_alpha(3.0)
        .with_targets(["layer"])
        .with_init_lora_weights(start)
}

fn taken_out(model: &Net) -> Matrix {
    let state = state(model);
    let removed = state.removed.unwrap();
    let taken = removed.a.val().matmul(removed.b.val()) * state.scale;
    Matrix::of(&taken.inner())
}

/// `U S Vᵀ C⁻¹` of r singular values of `Wᵀ C` is Wᵀ, projected onto their vectors on the left.
#[test]
fn corda_takes_the_directions_that_matter_most_or_least() {
    let base = Net::new(&device().autodiff());
    let calibration = calibration(&base);
    let x = Matrix::of(&inputs(&device()));
    let moment = x.transposed().times(&x);
    let rows = x.rows as f64;
    let mean: f64 = (0..D_IN).map(|at| moment.at(at, at)).sum::<f64>() / rows / D_IN as f64;
    let damped = Matrix::new(D_IN, D_IN, |row, column| {
        moment.at(row, column) / rows + if row == column { 0.01 * mean } else { 0.0 }
    });
    let weight = Matrix::of(&base.layer.weight.val().inner()).transposed();
    let within = weight.times(&damped);
    let (_, left) = within.times(&within.transposed()).eigen();
    for (method, chosen) in [(CordaMethod::Ipm, [0, 1]), (CordaMethod::Kpm, [2, 3])] {
        let config = config("corda").with_corda_config(CordaConfig::new(method));
        let model = base.attach_with("a", &config, &calibration).unwrap();
        let projection = Matrix::new(D_OUT, D_OUT, |row, column| {
            let shares = chosen.map(|at| left.at(row, at) * left.at(column, at));
            shares.iter().sum()
        });
        let expected = projection.times(&weight).transposed();
        assert_near(
            &taken_out(&model).on(&device()),
            &expected.on(&device()),
            2e-5,
        );
        // Both factors share the singular values evenly: Aᵀ C² A is Bᵀ's B B, divided by the scale each.
        let state = state(&model);
        let a = Matrix::of(&state.lora_a.val().inner());
        let b = Matrix::of(&state.lora_b.val().inner());
        let of_a = damped.times(&a);
        let of_a = of_a.transposed().times(&of_a);
        let of_b = b.times(&b.transposed());
        assert_near(&of_a.on(&device()), &of_b.on(&device()), 1e-4);
    }
}

#[test]
fn lora_ga_takes_the_gradients_directions() {
    let base = Net::new(&device().autodiff());
    let calibration = calibration(&base);
    // The gradient of Σ (xW + b)².
    let x = inputs(&device());
    let y = base
        .forward(x.clone().to_device(&device().autodiff()))
        .inner();
    let gradient = x.transpose().matmul(y) * 2.0;
    let gradient = Matrix::of(&gradient);
    let (squares, right) = gradient.transposed().times(&gradient).eigen();
    let lengths: Vec<f64> = squares
        .iter()
        .map(|square| square.max(0.0).sqrt())
        .collect();
    // As columns of `[in, ·]`: G v / s.
    let left = gradient.times(&right);
    let left = Matrix::new(D_IN, D_OUT, |row, column| {
        left.at(row, column) / lengths[column]
    });
    let weight = Matrix::of(&base.layer.weight.val().inner());
    let largest = weight.transposed().times(&weight).eigen().0[0].sqrt();
    let scale = 1.5;
    for (direction, of_a, of_b) in [
        (LoraGaDirection::ArBr, [1, 3], [0, 2]),
        (LoraGaDirection::A2rBr, [2, 3], [0, 1]),
        (LoraGaDirection::ArB2r, [0, 1], [2, 3]),
    ] {
        for kind in [
            LoraGaScale::Stable,
            LoraGaScale::WeightSvd,
            LoraGaScale::GdScale,
            LoraGaScale::Unit,
        ] {
            let (times_a, times_b) = match kind {
                LoraGaScale::Stable => (1.0, (D_OUT as f64).powf(0.25) / 4.0),
                LoraGaScale::WeightSvd => (1.0, largest / lengths[of_b[0]]),
                LoraGaScale::GdScale => (1.0 / scale, 1.0 / scale),
                _ => (1.0, 1.0),
            };
            let config = config("lora_ga").with_lora_ga_config(LoraGaConfig::new(direction, kind));
            let model = base.attach_with("a", &config, &calibration).unwrap();
            let state = state(&model);
            let a = Matrix::of(&state.lora_a.val().inner());
            let b = Matrix::of(&state.lora_b.val().inner()).transposed();
            for at in 0..2 {
                // Up to the sign, which is of the pair of vectors.
                let dot = |one: &Matrix, other: &Matrix| one.transposed().times(other).at(0, 0);
                let along_a = dot(&a.column(at), &left.column(of_a[at]));
                let along_b = dot(&b.column(at), &right.column(of_b[at]));
                assert!(
                    (along_a.abs() - times_a).abs() < 1e-4,
                    "{along_a} {times_a}"
                );
                let expected = times_b * lengths[of_b[at]];
                let near = 1e-4 * expected.max(1.0);
                assert!(
                    (along_b.abs() - expected).abs() < near,
                    "{along_b} {expected}"
                );
                let length = dot(&b.column(at), &b.column(at)).sqrt();
                assert!((length - expected).abs() < near, "{length} {expected}");
            }
            // The model begins as the base.
            let x = inputs(&device().autodiff());
            assert_near(
                &model.forward(x.clone()),
                &base.forward(x),
                2e-5 * largest.max(1.0),
            );
        }
    }
}

#[test]
fn random_directions_are_the_same_for_both_factors() {
    let base = Net::new(&device().autodiff());
    let config = config("lora_ga").with_lora_ga_config(LoraGaConfig::new(
        LoraGaDirection::Random,
        LoraGaScale::Unit,
    ));
    let model = base.attach_with("a", &config, &calibration(&base)).unwrap();
    let gradient = {
        let x = inputs(&device());
        let y = base
            .forward(x.clone().to_device(&device().autodiff()))
            .inner();
        Matrix::of(&(x.transpose().matmul(y) * 2.0))
    };
    // G Bᵀ is along A where the pairs are the same: u s vᵀ v s = u s².
    let state = state(&model);
    let a = Matrix::of(&state.lora_a.val().inner());
    let b = Matrix::of(&state.lora_b.val().inner());
    let along = gradient.times(&b.transposed());
    for at in 0..2 {
        let (one, other) = (along.column(at), a.column(at));
        let dot = |a: &Matrix, b: &Matrix| a.transposed().times(b).at(0, 0);
        let cosine = dot(&one, &other) / (dot(&one, &one) * dot(&other, &other)).sqrt();
        assert!((cosine.abs() - 1.0).abs() < 1e-6, "{cosine}");
    }
}

#[test]
fn files_hold_plain_lora_of_twice_the_rank() {
    let base = Net::new(&device().autodiff());
    for (start, rslora) in [("corda", false), ("corda", true), ("lora_ga", false)] {
        // With rsLoRA the file's alpha grows by the root.
        let config = LoraConfig {
            use_rslora: rslora,
            ..config(start)
        };
        let model = base.attach_with("a", &config, &calibration(&base)).unwrap();
        let model = model
            .edit_adapter::<LoraLinear>("a", |_, state| {
                state.lora_a = state
                    .lora_a
                    .clone()
                    .map(|old| (old.detach() * 1.3 + 0.1).detach().require_grad());
            })
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("a", dir.path()).unwrap();
        let loaded = base.load_adapter("a", dir.path(), METHODS).unwrap();
        let x: Tensor<2> = inputs(&device().autodiff());
        assert_near(&loaded.forward(x.clone()), &model.forward(x.clone()), 1e-5);
        assert!(
            peft_testing::farthest(
                crate::values(&loaded.forward(x.clone())),
                crate::values(&base.forward(x))
            ) > 1e-2
        );
        let json = loaded.adapter_config("a").unwrap();
        assert_eq!(json["r"], 4);
        assert_eq!(json["init_lora_weights"], true);
        let read = state(&loaded);
        assert!(read.removed.is_none());
        assert_eq!(read.lora_a.dims(), [D_IN, 4]);
        // The model itself goes on as it was.
        assert_eq!(state(&model).lora_a.dims(), [D_IN, 2]);
    }
}

#[test]
fn what_is_missing_is_said() {
    let base = Net::new(&device().autodiff());
    for (start, word) in [("corda", "second_moments"), ("lora_ga", "gradients")] {
        let refused = base.attach("a", &config(start)).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
        let wanted = CalibrationConfig {
            means: true,
            ..CalibrationConfig::new(["layer"])
        };
        let calibrator = base.calibrate(&wanted).unwrap();
        calibrator.model().forward(inputs(&device().autodiff()));
        let other = calibrator.finish().unwrap();
        let refused = base.attach_with("a", &config(start), &other).unwrap_err();
        assert!(refused.to_string().contains(word), "{refused}");
    }
    let wide = LoraConfig {
        r: 3,
        ..config("lora_ga")
    };
    let refused = base.attach_with("a", &wide, &calibration(&base));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("at most 2"), "{refused}");
}
