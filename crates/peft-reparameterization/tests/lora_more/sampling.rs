//! MonteCLoRA's draws and penalty, and KaSA's penalty.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::state::AdapterState as _;
use peft_core::{PeftModule, TrainingHooks};
use peft_reparameterization::{
    KasaConfig, KasaLinear, LoraConfig, MontecloraConfig, MontecloraLinear,
};

use crate::{Net, assert_near, device, inputs, values};

fn config() -> LoraConfig {
    LoraConfig::new(2)
        .with_alpha(3.0)
        .with_targets(["layer"])
        .with_init_lora_weights(false)
}

fn monteclora(sample_scaler: f64) -> LoraConfig {
    config().with_monteclora_config(MontecloraConfig {
        num_samples: 5,
        use_entropy: true,
        sample_scaler,
        kl_loss_weight: 0.01,
        ..MontecloraConfig::default()
    })
}

fn output(model: &Net) -> Tensor<2> {
    model.forward(inputs(&device().autodiff()))
}

fn moved(a: &Tensor<2>, b: &Tensor<2>) -> f64 {
    peft_testing::farthest(values(a), values(b))
}

#[test]
fn it_draws_anew_in_each_step_of_a_training_and_nowhere_else() {
    let base = Net::new(&device().autodiff());
    let mut model = base.attach("a", &monteclora(0.1)).unwrap();
    let mean = output(&model);
    let mut training = model.training_hooks(3).unwrap();
    let first = output(&model);
    assert!(moved(&first, &mean) > 1e-3);
    // Within a step a draw is a draw, and an evaluation sees the mean.
    assert_near(&output(&model), &first, 0.0);
    let evaluated = model.valid().forward(inputs(&device()));
    assert_near(&evaluated, &mean.clone().inner(), 1e-6);
    model = training.after_step(model).unwrap();
    let second = output(&model);
    assert!(moved(&second, &first) > 1e-3);
    let state = &model.adapter_states::<MontecloraLinear>("a").unwrap()[0].1;
    let sum: f32 = state.expert_weights.val().sum().into_scalar();
    assert!((sum - 1.0).abs() < 1e-5);
    assert!(
        values(&state.expert_weights.val())
            .iter()
            .any(|weight| (weight - 0.2).abs() > 1e-3)
    );
    // A training that is resumed draws the same.
    let file = tempfile::NamedTempFile::new().unwrap();
    training.save(file.path()).unwrap();
    drop(training);
    assert_near(&output(&model), &mean, 0.0);
    let mut training = TrainingHooks::resume(&model, 3, file.path()).unwrap();
    assert_near(&output(&model), &second, 0.0);
    for _ in 0..2 {
        model = training.after_step(model).unwrap();
    }
    // Behind the last step nothing is drawn any more.
    assert_near(&output(&model), &mean, 0.0);
}

/// Two trainings that begin with copies of one model draw as if the other were not.
#[test]
fn trainings_of_copies_draw_by_themselves() {
    let base = Net::new(&device().autodiff());
    let model = base.attach("a", &monteclora(0.1)).unwrap();
    let mean = output(&model);
    let alone = {
        let mut training = model.training_hooks(4).unwrap();
        let mut model = model.clone();
        let mut outputs = vec![output(&model)];
        for _ in 0..3 {
            model = training.after_step(model).unwrap();
            outputs.push(output(&model));
        }
        outputs
    };
    let mut trainings = [(); 2].map(|()| (model.training_hooks(4).unwrap(), model.clone()));
    // The second one is a step behind.
    for step in 0..4 {
        let (ahead, behind) = trainings.split_at_mut(1);
        let ((ahead, one), (behind, other)) = (&mut ahead[0], &mut behind[0]);
        assert_near(&output(one), &alone[step], 0.0);
        assert_near(&output(other), &alone[step.saturating_sub(1)], 0.0);
        let before = one.clone();
        *one = ahead.after_step(one.clone()).unwrap();
        if step > 0 {
            // What a step has left behind is in no training.
            assert_near(&output(&before), &mean, 0.0);
            *other = behind.after_step(other.clone()).unwrap();
        }
    }
    drop(trainings);
    assert_near(&output(&model), &mean, 0.0);
}

/// The penalty with other values of a parameter, the draw being the same.
fn penalty(model: &Net, change: impl Fn(&mut MontecloraLinear)) -> f64 {
    let changed = model
        .edit_adapter::<MontecloraLinear>("a", |_, state| change(state))
        .unwrap();
    let training = changed.training_hooks(3).unwrap();
    let penalty: Tensor<1> = training.penalty(&changed).unwrap().unwrap();
    f64::from(penalty.into_scalar::<f32>())
}

fn shifted(tensor: Tensor<1>, at: usize, by: f64) -> Tensor<1> {
    let mut values: Vec<f32> = tensor.to_data().iter().collect();
    values[at] += by as f32;
    let count = values.len();
    let data = burn::tensor::TensorData::new(values, [count]);
    Tensor::<1>::from_data(data, &tensor.device()).require_grad()
}

#[test]
fn its_penalty_has_the_gradients_of_finite_differences() {
    let base = Net::new(&device().autodiff());
    let model = base.attach("a", &monteclora(0.1)).unwrap();
    let training = model.training_hooks(3).unwrap();
    let loss = training.penalty(&model).unwrap().unwrap();
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let state = model.adapter_states::<MontecloraLinear>("a").unwrap();
    let state = &state[0].1;
    let of_std = values(&gradients.get::<1>(state.std_prior.id).unwrap());
    let of_weights = values(&gradients.get::<1>(state.expert_weights_prior.id).unwrap());
    drop(training);
    let step = 1e-2;
    for (at, gradient) in of_std.iter().enumerate() {
        let there = |by: f64| {
            penalty(&model, |state| {
                let value = shifted(state.std_prior.val(), at, by);
                state.std_prior = state.std_prior.clone().map(|_| value.clone());
            })
        };
        let slope = (there(step) - there(-step)) / (2.0 * step);
        assert!(
            (slope - f64::from(*gradient)).abs() < 2e-3 * slope.abs().max(0.1),
            "{slope} {gradient}"
        );
    }
    for (at, gradient) in of_weights.iter().enumerate() {
        let there = |by: f64| {
            penalty(&model, |state| {
                let value = shifted(state.expert_weights_prior.val(), at, by);
                state.expert_weights_prior =
                    state.expert_weights_prior.clone().map(|_| value.clone());
            })
        };
        let slope = (there(step) - there(-step)) / (2.0 * step);
        assert!(
            (slope - f64::from(*gradient)).abs() < 2e-3 * slope.abs().max(0.1),
            "{slope} {gradient}"
        );
    }
}

/// At the priors themselves the distances are zero, which upstream's sum is not.
#[test]
fn at_the_priors_only_what_is_drawn_counts() {
    let base = Net::new(&device().autodiff());
    let config = config().with_monteclora_config(MontecloraConfig {
        num_samples: 5,
        dirichlet_prior: 1.0,
        kl_loss_weight: 1.0,
        ..MontecloraConfig::default()
    });
    let model = base.attach("a", &config).unwrap();
    let at_priors = |training: bool| {
        let model = model
            .edit_adapter::<MontecloraLinear>("a", |_, state| {
                let zeros = |old: Tensor<1>| old.zeros_like().detach().require_grad();
                state.std_prior = state.std_prior.clone().map(zeros);
                state.expert_weights_prior = state.expert_weights_prior.clone().map(zeros);
            })
            .unwrap();
        let mut hooks = model.training_hooks(1).unwrap();
        let model = if training {
            model
        } else {
            // The only step is done.
            hooks.after_step(model).unwrap()
        };
        let penalty: Tensor<1> = hooks.penalty(&model).unwrap().unwrap();
        penalty.into_scalar::<f32>()
    };
    assert!(at_priors(false).abs() < 1e-5, "{}", at_priors(false));
    assert!(at_priors(true) > 0.0);
}

#[test]
fn kasas_penalty_is_that_of_the_paper() {
    let base = Net::new(&device().autodiff());
    let config = config().with_kasa_config(KasaConfig {
        beta: 0.3,
        gamma: 0.2,
    });
    let model = base.attach("a", &config).unwrap();
    let training = model.training_hooks(3).unwrap();
    let found: f32 = training.penalty(&model).unwrap().unwrap().into_scalar();
    let state = &model.adapter_states::<KasaLinear>("a").unwrap()[0].1;
    let squares: f32 = values(&state.lora_diag.val())
        .iter()
        .map(|value| value * value)
        .sum();
    let apart = |gram: Tensor<2>| -> f32 {
        let gram = values(&gram);
        let off = gram.iter().enumerate().map(|(at, value)| {
            let one = if at % 3 == 0 { 1.0 } else { 0.0 };
            (value - one).powi(2)
        });
        off.sum::<f32>().sqrt()
    };
    let (a, b) = (state.lora_a.val(), state.lora_b.val());
    let expected = 0.3 * squares
        + 0.2 * (apart(a.clone().transpose().matmul(a)) + apart(b.clone().matmul(b.transpose())));
    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    // And none where it weighs nothing.
    let none = LoraConfig::new(2)
        .with_targets(["layer"])
        .with_kasa_config(KasaConfig {
            beta: 0.0,
            gamma: 0.0,
        });
    let model = base.attach("b", &none).unwrap();
    let training = model.training_hooks(3).unwrap();
    assert!(training.penalty(&model).unwrap().is_none());
}
