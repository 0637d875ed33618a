//! DEFT in a training loop: a column of its basis that turns round takes its part of R along.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::PeftModule as _;
use peft_core::device::cpu_devices;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{DeftConfig, DeftDecomposition, DeftLinear, METHODS};

#[derive(Module, Debug)]
struct Net {
    layer: Linear,
}

/// P whose element that decides the first column's sign is `first`, beside others that stay.
fn with_first(model: &Net, first: f32) -> Net {
    let set = |param: &Param<Tensor<2>>, values: Vec<f32>| {
        param.clone().map(|old| {
            let data = TensorData::new(values, old.dims());
            let value = Tensor::<2>::from_data(data, &old.device());
            value.detach().require_grad()
        })
    };
    let changed = model.edit_adapter::<DeftLinear>("x", |_, state| {
        let p = vec![first, 0.4, 0.5, -0.3, -0.6, 0.2, 0.3, 0.7];
        state.deft_p = set(&state.deft_p, p);
    });
    changed.unwrap()
}

fn weight(model: &Net) -> Tensor<2> {
    model.layer.weight.val().without_autodiff()
}

fn distance(one: Tensor<2>, other: Tensor<2>) -> f32 {
    (one - other).abs().max().into_scalar()
}

fn attached(device: &burn::tensor::Device) -> Net {
    let net = Net {
        layer: LinearConfig::new(5, 4).init(&device.clone().autodiff()),
    };
    let config = DeftConfig::new(2)
        .with_decomposition_method(DeftDecomposition::Qr)
        .with_init_weights(false)
        .with_init_scale(50.0)
        .with_alpha(3.0);
    net.attach("x", &config).unwrap()
}

#[test]
fn what_is_put_into_the_subspace_stays_where_the_basis_turns_round() {
    for (name, device) in cpu_devices() {
        device.seed(3);
        let before = with_first(&attached(&device), 1e-3);
        let stepped = |model: &Net| with_first(model, -1e-3);
        // What no hook sees: as upstream has it, W' jumps.
        let jump = distance(weight(&before), weight(&stepped(&before)));
        assert!(jump > 0.1, "{name}: {jump}");

        let mut hooks = before.training_hooks(3).unwrap();
        hooks
            .before_step(&before, &mut GradientsParams::new())
            .unwrap();
        let after = hooks.after_step(stepped(&before)).unwrap();
        let moved = distance(weight(&before), weight(&after));
        assert!(moved < 0.02, "{name}: {moved}");
        let trained = after.adapter_states::<DeftLinear>("x").unwrap();
        let r = trained[0].1.deft_r.as_ref().unwrap();
        assert!(r.val().is_require_grad());

        // It is the file's R that turned, which says the same to everybody.
        let dir = tempfile::tempdir().unwrap();
        after.save_adapter("x", dir.path()).unwrap();
        let bare = after.unload().unwrap();
        let loaded = bare.load_adapter("x", dir.path(), METHODS).unwrap();
        assert!(distance(weight(&loaded), weight(&after)) < 1e-6, "{name}");

        // A step without a turn changes nothing besides.
        let mut hooks = after.training_hooks(3).unwrap();
        hooks
            .before_step(&after, &mut GradientsParams::new())
            .unwrap();
        let same = hooks.after_step(after.clone()).unwrap();
        weight(&same)
            .into_data()
            .assert_eq(&weight(&after).into_data(), true);
    }
}

#[test]
fn a_layer_with_few_outputs_gives_all_of_them() {
    for (name, device) in cpu_devices() {
        let net = Net {
            layer: LinearConfig::new(5, 3).init(&device.autodiff()),
        };
        let model = net.attach("x", &DeftConfig::para(8)).unwrap();
        // All of the weight is in the subspace, and taken.
        let left = weight(&model).abs().max().into_scalar::<f32>();
        assert!(left < 1e-6, "{name}: {left}");
        let counts = model.counts();
        assert_eq!(counts.adapter_trainable(), 9, "{name}");
    }
}
