//! AdamW against Burn's, its state, its memory.

use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::Device;

use super::*;

fn config() -> TrainConfig {
    TrainConfig::new()
        .with_weight_decay(0.1)
        .with_adam(0.8, 0.95, 1e-6)
}

fn gradients(model: &Linear, device: &Device, step: usize) -> GradientsParams {
    let input = Tensor::<2>::full([3, 4], 0.3 + step as f32, device);
    let loss = model.forward(input).square().sum();
    GradientsParams::from_grads(loss.backward(), model)
}

fn values(model: &Linear) -> Vec<TensorData> {
    let bias = model.bias.iter().map(|bias| bias.val().into_data());
    [model.weight.val().into_data()]
        .into_iter()
        .chain(bias)
        .collect()
}

#[test]
fn steps_are_those_of_burn_and_go_on_in_another_process() {
    for (name, device) in peft_core::device::cpu_devices() {
        let device = device.autodiff();
        for (decay, bias) in [(0.1, false), (0.0, true)] {
            let config = config().with_weight_decay(decay);
            let linear = LinearConfig::new(4, 4).with_bias(bias);
            let mut burns = linear.init(&device);
            let mut ours = burns.clone();
            let mut reference = AdamWConfig::new()
                .with_weight_decay(decay as f32)
                .with_beta_1(0.8)
                .with_beta_2(0.95)
                .with_epsilon(1e-6)
                .init();
            let mut optimizer = AdamW::new(&config);
            optimizer.prepare(&ours);
            assert!(optimizer.state(&ours).is_empty(), "{name}");
            for step in 0..6 {
                let gradient = gradients(&burns, &device, step);
                burns = reference.step(0.01, burns, gradient);
                let gradient = gradients(&ours, &device, step);
                ours = optimizer.step(0.01, ours, gradient);
                assert_eq!(values(&ours), values(&burns), "{name}, step {step}");
                if step == 2 {
                    let state = optimizer.state(&ours);
                    assert_eq!(state.len(), 3 * values(&ours).len(), "{name}");
                    optimizer = AdamW::new(&config);
                    optimizer.restore(&ours, state).unwrap();
                }
            }
        }
    }
}

#[test]
fn inactive_adapters_have_no_moments() {
    use peft_core::PeftModule as _;
    use peft_reparameterization::LoraConfig;

    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let base = LinearConfig::new(4, 4).with_bias(false).init(&device);
    let lora = |rank| {
        LoraConfig::new(rank)
            .with_targets(".*")
            .with_init_lora_weights(false)
    };
    let model = base.attach("first", &lora(2)).unwrap();
    let mut model = model.attach("second", &lora(3)).unwrap();
    let mut optimizer = AdamW::new(&config());
    optimizer.prepare(&model);
    let names = |optimizer: &AdamW| optimizer.states.keys().cloned().collect::<Vec<_>>();
    let expected = ["lora_a", "lora_b"].map(|factor| format!("weight.peft.second.{factor}"));
    assert_eq!(names(&optimizer), expected);
    for step in 0..2 {
        let gradient = gradients(&model, &device, step);
        model = optimizer.step(0.01, model, gradient);
    }
    assert_eq!(names(&optimizer), expected);
    assert_eq!(optimizer.state(&model).len(), 6);
}

/// Where a tensor's numbers are, and the tensor back, in the same memory if nothing else holds that.
fn place<const D: usize>(tensor: Tensor<D>) -> (usize, Tensor<D>) {
    let device = tensor.device();
    let data = tensor.into_data();
    let place = data.as_bytes().as_ptr() as usize;
    (place, Tensor::from_data(data, &device))
}

#[test]
fn memory_stays_where_it_is() {
    let device = peft_core::device::device("flex").unwrap().autodiff();
    let mut model = LinearConfig::new(64, 300).with_bias(false).init(&device);
    let mut optimizer = AdamW::new(&config());
    optimizer.prepare(&model);
    let mut places = Vec::new();
    for step in 0..3 {
        let input = Tensor::<2>::full([3, 64], 0.3 + step as f32, &device);
        let loss = model.forward(input).square().sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.01, model, gradients);

        let mut held = Vec::new();
        let state = optimizer.states.remove("weight").unwrap();
        let momentum = state.downcast::<AdamWState<2>>().momentum;
        let moments = [momentum.moment_1, momentum.moment_2].map(|moment| {
            let (at, moment) = place(moment);
            held.push(at);
            moment
        });
        let [first, second] = moments;
        let momentum = AdaptiveMomentumState::new(momentum.time, first, second);
        let state = DynState::create(AdamWState::new(momentum), 2);
        optimizer.states.insert("weight".into(), state);
        model.weight = model.weight.map(|weight| {
            let (at, weight) = place(weight.without_autodiff());
            held.push(at);
            Tensor::from_inner(weight).require_grad()
        });
        places.push(held);
    }
    assert!(places.iter().all(|held| *held == places[0]), "{places:?}");
}

#[test]
fn moments_of_16_bits_have_32() {
    let device = peft_core::device::device("flex").unwrap();
    let tensor = |values: &[f32], dtype| {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::<1>::from_data(data, (&device, dtype))
    };
    let options = |time| AdamWOptions {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        rate: 1e-2,
        time,
    };
    let values = [0.5, -0.25, 1.0];
    let (mut whole, mut half) = (tensor(&values, DType::F32), tensor(&values, DType::BF16));
    let (mut moments, mut of_half) = (no_moments(&whole), no_moments(&half));
    for time in 1..20 {
        let gradient = tensor(&[0.3, -0.7, time as f32 / 20.0], DType::F32);
        let [value, first, second] = adamw(whole, gradient.clone(), moments, options(time));
        (whole, moments) = (value, [first, second]);
        let [value, first, second] =
            adamw(half, gradient.cast(DType::BF16), of_half, options(time));
        assert_eq!((value.dtype(), second.dtype()), (DType::BF16, DType::F32));
        (half, of_half) = (value, [first, second]);
    }
    let [exact, rounded] = [whole, half.cast(DType::F32)]
        .map(|tensor| tensor.into_data().try_to_vec::<f32>().unwrap());
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!((exact - rounded).abs() < 0.02, "{rounded} for {exact}");
    }
}

#[test]
fn vectors_do_not_decay() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let model = LinearConfig::new(4, 4).init(&device);
    let [decayed, plain] = [0.1, 0.0].map(|decay| {
        let mut optimizer = AdamW::new(&config().with_weight_decay(decay));
        let gradient = gradients(&model, &device, 0);
        values(&optimizer.step(0.01, model.clone(), gradient))
    });
    assert_ne!(decayed[0], plain[0], "the weight");
    assert_eq!(decayed[1], plain[1], "the bias");
}

#[test]
fn a_group_has_a_rate_of_its_own() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let model = LinearConfig::new(4, 4).init(&device);
    let before = values(&model);
    let group = ParamGroup::from_ids(vec![model.weight.id]);
    let mut optimizer = AdamW::new(&config()).with_rate(group, 0.0);
    let gradient = gradients(&model, &device, 0);
    let model = optimizer.step(0.01, model, gradient);
    assert_eq!(values(&model)[0], before[0], "the weight");
    assert_ne!(values(&model)[1], before[1], "the bias");
}

#[test]
fn a_state_of_another_model_is_refused() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let model = LinearConfig::new(4, 4).init(&device);
    let mut optimizer = AdamW::new(&config());
    let gradient = gradients(&model, &device, 0);
    let model = optimizer.step(0.01, model, gradient);
    let state = optimizer.state(&model);
    let wider = LinearConfig::new(4, 5).init(&device);
    let error = optimizer.restore(&wider, state.clone()).unwrap_err();
    assert!(error.contains("moments of"), "{error}");
    let bare = LinearConfig::new(4, 4).with_bias(false).init(&device);
    let error = optimizer.restore(&bare, state).unwrap_err();
    assert!(error.contains("bias."), "{error}");
}

#[test]
fn moments_of_what_is_gone_are_let_go() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let linear = LinearConfig::new(4, 4).with_bias(true);
    let mut model = linear.init(&device);
    let mut optimizer = AdamW::new(&config());
    let gradient = gradients(&model, &device, 0);
    model = optimizer.step(0.01, model, gradient);
    let all = BTreeSet::from(["bias".to_string(), "weight".to_string()]);
    assert!(!optimizer.retain(&all));
    assert!(optimizer.retain(&BTreeSet::from(["bias".to_string()])));
    let left = optimizer.state(&model).into_keys();
    assert!(left.into_iter().all(|key| key.starts_with("bias.")));
}
