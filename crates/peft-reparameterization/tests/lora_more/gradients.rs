//! The Riemannian preconditioner, and VeLoRA's gradients.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::PeftModule;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{
    LoftqLinear, LoraConfig, LoraLinear, VeloraConfig, VeloraInit, VeloraLinear,
};

use crate::{D_IN, D_OUT, Net, assert_near, device, inputs, wave};

fn config() -> LoraConfig {
    LoraConfig::new(2)
        .with_alpha(3.0)
        .with_targets(["layer"])
        .with_init_lora_weights(false)
}

/// Σ y ⊙ R, whose gradient for the outputs is R.
fn loss(model: &Net) -> Tensor<1> {
    let device = device().autodiff();
    (model.forward(inputs(&device)) * wave([20, D_OUT], 9, &device)).sum()
}

fn gradients(model: &Net) -> GradientsParams {
    GradientsParams::from_grads(loss(model).backward(), model)
}

#[test]
fn gradients_are_divided_by_the_other_factors_product() {
    let base = Net::new(&device().autodiff());
    let delta = 0.3;
    let model = base.attach("a", &config().with_riemannian(delta)).unwrap();
    let state = &model.adapter_states::<LoraLinear>("a").unwrap()[0].1;
    let before = gradients(&model);
    let mut after = gradients(&model);
    let mut training = model.training_hooks(3).unwrap();
    training.before_step(&model, &mut after).unwrap();
    let of = |gradients: &GradientsParams, id| gradients.get::<2>(id).unwrap();
    let (a, b) = (state.lora_a.val().inner(), state.lora_b.val().inner());
    let damped = |gram: Tensor<2>| gram + Tensor::<2>::eye(2, &device()) * delta;
    // Multiplied back they are what they were.
    let back = of(&after, state.lora_a.id).matmul(damped(b.clone().matmul(b.transpose())));
    assert_near(&back, &of(&before, state.lora_a.id), 1e-4);
    let back = damped(a.clone().transpose().matmul(a)).matmul(of(&after, state.lora_b.id));
    assert_near(&back, &of(&before, state.lora_b.id), 1e-4);
    // Without the field nothing is changed.
    let plain = base.attach("a", &config()).unwrap();
    let mut after = gradients(&plain);
    let mut training = plain.training_hooks(3).unwrap();
    let id = plain.adapter_states::<LoraLinear>("a").unwrap()[0]
        .1
        .lora_a
        .id;
    let before = of(&after, id);
    training.before_step(&plain, &mut after).unwrap();
    assert_near(&of(&after, id), &before, 0.0);
}

/// Factors that begin beside a quantized weight are plain ones.
#[test]
fn factors_of_loftq_are_preconditioned() {
    let base = Net::new(&device().autodiff());
    let config = LoraConfig::new(2)
        .with_targets(["layer"])
        .with_init_lora_weights("loftq")
        .with_riemannian(0.3);
    let model = base.attach("a", &config).unwrap();
    let state = &model.adapter_states::<LoftqLinear>("a").unwrap()[0].1.lora;
    let before = gradients(&model);
    let mut after = gradients(&model);
    let mut training = model.training_hooks(3).unwrap();
    training.before_step(&model, &mut after).unwrap();
    let of = |gradients: &GradientsParams, id| gradients.get::<2>(id).unwrap();
    let b = state.lora_b.val().inner();
    let metric = b.clone().matmul(b.transpose()) + Tensor::<2>::eye(2, &device()) * 0.3;
    let back = of(&after, state.lora_a.id).matmul(metric);
    assert_near(&back, &of(&before, state.lora_a.id), 1e-4);
}

#[test]
fn a_preconditioner_is_for_plain_factors() {
    let base = Net::new(&device());
    for wrong in [
        config().with_riemannian(0.0),
        config()
            .with_riemannian(0.1)
            .with_velora_config(VeloraConfig::default()),
    ] {
        let refused = base.attach("a", &wrong).unwrap_err().to_string();
        assert!(refused.contains("riemannian"), "{refused}");
    }
}

/// What upstream's optimizer has in its group of B: B, and what has one axis.
#[test]
fn lora_plus_has_all_of_one_axis_beside_b() {
    use burn::lr_scheduler::{constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler};
    use burn::optim::SgdConfig;
    use peft_core::method::TrainedBias;
    use peft_reparameterization::{Bias, lora_plus};

    let base = Net::new(&device().autodiff());
    let config = config().with_use_dora(true).with_bias(Bias::All);
    let model = base.attach("a", &config).unwrap();
    let parts = |model: &Net| {
        let state = model.adapter_states::<LoraLinear>("a").unwrap();
        let state = &state[0].1;
        let length = state.magnitude.as_ref().unwrap().value.val();
        let bias = model.adapter_states::<TrainedBias>("a").unwrap()[0]
            .1
            .value();
        [
            crate::values(&state.lora_a.val()),
            crate::values(&state.lora_b.val()),
            crate::values(&length),
            crate::values(&bias),
        ]
    };
    let before = parts(&model);
    let groups = lora_plus(&model, "a").unwrap();
    let gradients = gradients(&model);
    let mut rates =
        ModuleLrScheduler::new(ConstantLr::from(0.1)).with_group(groups.up, ConstantLr::from(0.0));
    let stepped = SgdConfig::new().init().step(rates.step(), model, gradients);
    let after = parts(&stepped);
    let moved: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(moved, [true, false, false, false]);
}

fn velora(init_type: VeloraInit) -> LoraConfig {
    config().with_velora_config(VeloraConfig {
        // Parts of two numbers; the last one is filled up.
        num_groups: 4,
        scale: 0.7,
        init_type,
    })
}

/// The inputs that the kept numbers give back: each part's product with v, times v.
fn restored(x: &Tensor<2>, v: &[f32]) -> Tensor<2> {
    let [tokens, _] = x.dims();
    let width = v.len();
    let values: Vec<f32> = x.to_data().iter().collect();
    let mut found = vec![0.0; tokens * D_IN];
    for token in 0..tokens {
        for start in (0..D_IN).step_by(width) {
            let part = start..(start + width).min(D_IN);
            let kept: f32 = part
                .clone()
                .map(|at| values[token * D_IN + at] * v[at - start])
                .sum();
            for at in part {
                found[token * D_IN + at] = 0.7 * kept * v[at - start];
            }
        }
    }
    Tensor::from_data(
        burn::tensor::TensorData::new(found, [tokens, D_IN]),
        &device(),
    )
}

/// A training's first batch gives the direction to its own model alone.
#[test]
fn trainings_of_copies_have_directions_of_their_own() {
    let base = Net::new(&device().autodiff());
    let model = base
        .attach("a", &velora(VeloraInit::BatchAverageOnce))
        .unwrap();
    let id = model.adapter_states::<VeloraLinear>("a").unwrap()[0]
        .1
        .lora
        .lora_a
        .id;
    let of = |model: &Net, from: usize| {
        let device = device().autodiff();
        let loss =
            (model.forward(wave([20, D_IN], from, &device)) * wave([20, D_OUT], 9, &device)).sum();
        GradientsParams::from_grads(loss.backward(), model)
            .get::<2>(id)
            .unwrap()
    };
    let expected = {
        let _training = model.training_hooks(3).unwrap();
        of(&model, 40)
    };
    let mut first = model.training_hooks(3).unwrap();
    let second = model.training_hooks(3).unwrap();
    of(&model, 5);
    let one = first.after_step(model.clone()).unwrap();
    assert_near(&of(&model, 40), &expected, 0.0);
    // The first training keeps its direction.
    let apart = peft_testing::farthest(crate::values(&of(&one, 40)), crate::values(&expected));
    assert!(apart > 1e-3, "{apart}");
    drop(second);
    drop(first);
}

#[test]
fn velora_differentiates_restored_inputs_in_a_training_only() {
    let base = Net::new(&device().autodiff());
    let x = inputs(&device());
    let rows: Vec<f32> = x.to_data().iter().collect();
    // The mean of all parts, filled up with zeros where four parts of two are more than six numbers.
    let mean: Vec<f32> = (0..2)
        .map(|at| rows.chunks(2).map(|part| part[at]).sum())
        .collect();
    let length = (mean[0].powi(2) + mean[1].powi(2)).sqrt();
    let mean = [mean[0] / length, mean[1] / length];
    for init_type in [
        VeloraInit::Random,
        VeloraInit::BatchAverage,
        VeloraInit::BatchAverageOnce,
    ] {
        let model = base.attach("a", &velora(init_type)).unwrap();
        let state = model.adapter_states::<VeloraLinear>("a").unwrap();
        let state = &state[0].1;
        let plain = gradients(&model);
        let output = model.forward(inputs(&device().autodiff()));
        let a = |gradients: &GradientsParams| gradients.get::<2>(state.lora.lora_a.id).unwrap();
        let b = |gradients: &GradientsParams| gradients.get::<2>(state.lora.lora_b.id).unwrap();
        let of_output = wave([20, D_OUT], 9, &device());
        let of_down = of_output.matmul(state.lora.lora_b.val().inner().transpose()) * 1.5;
        assert_near(
            &a(&plain),
            &x.clone().transpose().matmul(of_down.clone()),
            1e-4,
        );

        let training = model.training_hooks(2).unwrap();
        let in_training = gradients(&model);
        assert_near(&model.forward(inputs(&device().autodiff())), &output, 1e-6);
        let v: Vec<f32> = match init_type {
            VeloraInit::Random => {
                let v: Vec<f32> = state.lora_velora_embed.val().to_data().iter().collect();
                assert!((v.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
                v
            }
            _ => mean.to_vec(),
        };
        let expected = restored(&x, &v).transpose().matmul(of_down);
        assert_near(&a(&in_training), &expected, 1e-4);
        assert_near(&b(&in_training), &b(&plain), 1e-5);
        drop(training);
        assert_near(&a(&gradients(&model)), &a(&plain), 0.0);
    }
}
