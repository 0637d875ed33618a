//! Intruder dimensions, found and made smaller.

use burn::module::Param;
use burn::tensor::Tensor;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_reparameterization::{
    IntruderReduction, KasaConfig, LoraConfig, LoraLinear, reduce_intruders,
};

use crate::matrix::Matrix;
use crate::{D_IN, D_OUT, Net, assert_near, device, inputs};

/// A base whose singular vectors are axes, and a LoRA that puts one long direction between them.
fn tuned() -> Net {
    let device = device();
    let mut net = Net::new(&device);
    let axes = Matrix::new(D_IN, D_OUT, |row, column| {
        if row == column {
            4.0 - column as f64
        } else {
            0.0
        }
    });
    net.layer.weight = Param::from_tensor(axes.on(&device));
    let config = LoraConfig::new(2).with_alpha(3.0).with_targets(["layer"]);
    let model = net.attach("tuned", &config).unwrap();
    model
        .edit_adapter::<LoraLinear>("tuned", |_, state| {
            let a = Matrix::new(D_IN, 2, |row, column| match column {
                0 => 2.0 + row as f64 * 0.1,
                _ => 0.01 * (row as f64 - 2.0),
            });
            let b = Matrix::new(2, D_OUT, |row, column| match row {
                0 => [1.0, 1.1, 0.9, 1.0][column],
                _ => [0.2, -0.1, 0.3, 0.0][column],
            });
            state.lora_a = Param::from_tensor(a.on(&device));
            state.lora_b = Param::from_tensor(b.on(&device));
        })
        .unwrap()
}

fn change(model: &Net, name: &str) -> Matrix {
    let states = model.adapter_states::<LoraLinear>(name).unwrap();
    Matrix::of(&states[0].1.delta())
}

/// The matrix with its r largest singular values only.
fn of_rank(matrix: &Matrix, rank: usize) -> Matrix {
    let (_, right) = matrix.transposed().times(matrix).eigen();
    let projection = Matrix::new(D_OUT, D_OUT, |row, column| {
        (0..rank)
            .map(|at| right.at(row, at) * right.at(column, at))
            .sum()
    });
    matrix.times(&projection)
}

#[test]
fn an_intruder_becomes_smaller_by_the_factor() {
    let model = tuned();
    let weight = Matrix::of(&model.layer.weight.base());
    let before = change(&model, "tuned");
    let whole = weight.plus(&before, 1.0);
    let (_, right) = whole.transposed().times(&whole).eigen();
    // Its largest direction is near to no axis.
    let first = right.column(0);
    assert!((0..D_OUT).all(|at| first.at(at, 0).abs() < 0.65));
    let part = whole.times(&first).times(&first.transposed());
    for lambda in [0.0, 0.75] {
        let options = IntruderReduction {
            top_k: 1,
            threshold_epsilon: 0.65,
            mitigation_lambda: lambda,
        };
        let (reduced, found) = reduce_intruders(&model, "tuned", "reduced", options).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].layer.as_str(), found[0].count), ("layer", 1));
        let expected = of_rank(&before.plus(&part, lambda - 1.0), 2);
        let found = change(&reduced, "reduced");
        assert_near(&found.on(&device()), &expected.on(&device()), 1e-4);
        // The old one is as it was, and the new one is active.
        assert_near(
            &change(&reduced, "tuned").on(&device()),
            &before.on(&device()),
            0.0,
        );
        let output: Tensor<2> = reduced.forward(inputs(&device()));
        let bias = reduced.layer.bias.as_ref().unwrap().val().unsqueeze();
        let direct = inputs(&device()).matmul(weight.plus(&expected, 1.0).on(&device())) + bias;
        assert_near(&output, &direct, 1e-3);
    }
}

#[test]
fn without_intruders_nothing_changes() {
    let model = tuned();
    let options = IntruderReduction {
        threshold_epsilon: 0.0,
        ..IntruderReduction::default()
    };
    let (same, found) = reduce_intruders(&model, "tuned", "same", options).unwrap();
    assert_eq!(found[0].count, 0);
    assert_near(
        &change(&same, "same").on(&device()),
        &change(&model, "tuned").on(&device()),
        1e-5,
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let model = tuned();
    for (options, word) in [
        (
            IntruderReduction {
                top_k: 0,
                ..IntruderReduction::default()
            },
            "top_k",
        ),
        (
            IntruderReduction {
                mitigation_lambda: 1.5,
                ..IntruderReduction::default()
            },
            "mitigation_lambda",
        ),
    ] {
        let refused = reduce_intruders(&model, "tuned", "b", options);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
    let kasa = LoraConfig::new(2)
        .with_targets(["layer"])
        .with_kasa_config(KasaConfig::default());
    let model = Net::new(&device()).attach("kasa", &kasa).unwrap();
    let refused = reduce_intruders(&model, "kasa", "b", IntruderReduction::default());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::Method(_)), "{refused}");
    assert!(refused.to_string().contains("kasa_config"), "{refused}");
}
