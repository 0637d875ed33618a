//! EVA's directions and ranks, and LoRA+'s two learning rates.

use burn::module::Module;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, Tolerance};
use peft_conformance::TinyTransformer;
use peft_core::PeftModule;
use peft_core::calibration::Calibrate as _;
use peft_core::method::Method as _;
use peft_core::nn::ForwardContext;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{
    KasaConfig, LoraConfig, LoraLinear, METHODS, VeloraConfig, eva, lora_plus,
};

fn device() -> Device {
    peft_core::device::cpu_devices()[0].1.clone()
}

fn run(model: &TinyTransformer, seed: u64) -> Tensor<3> {
    let device = device();
    device.seed(seed);
    let ids = Tensor::<2>::random([4, 20], Distribution::Uniform(1.0, 96.0), &device);
    let ids: Tensor<2, Int> = ids.int();
    let padding = Tensor::<2, Bool>::full([4, 20], false, &device);
    model.hidden(ids, Some(padding))
}

fn shapes(model: &TinyTransformer) -> Vec<(String, [usize; 2])> {
    let states = model.adapter_states::<LoraLinear>("x").unwrap();
    let shape = |(layer, state): (String, LoraLinear)| (layer, state.lora_a.dims());
    states.into_iter().map(shape).collect()
}

#[test]
fn directions_are_orthonormal_and_ranks_add_up_to_the_budget() {
    let base = TinyTransformer::new(&device());
    let config = LoraConfig::new(4)
        .with_alpha(6.0)
        .with_targets(["query", "dense"]);
    for rho in [1.0, 2.0] {
        let model = eva(&base, "x", &config, rho, |probed| {
            for seed in 0..3 {
                run(probed, seed);
            }
        })
        .unwrap();
        let same = run(&model, 9).into_data();
        same.assert_approx_eq(&run(&base, 9).into_data(), Tolerance::<f32>::absolute(1e-5));
        let states = model.adapter_states::<LoraLinear>("x").unwrap();
        let mut total = 0;
        for (layer, state) in &states {
            let a = state.lora_a.val();
            let rank = a.dims()[1];
            total += rank;
            if rho < 1.5 {
                assert_eq!(rank, 4, "{layer}");
            }
            assert!(rank <= (4.0 * rho) as usize, "{layer}");
            // A rank that moved moves alpha along.
            assert!((state.scale - 1.5).abs() < 1e-9, "{layer}: {}", state.scale);
            let gram = a.clone().transpose().matmul(a).into_data();
            let one = Tensor::<2>::eye(rank, &device()).into_data();
            gram.assert_approx_eq(&one, Tolerance::<f32>::absolute(1e-4));
        }
        // Query and three dense layers of two blocks.
        assert_eq!(total, 4 * 8, "{:?}", shapes(&model));
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("x", dir.path()).unwrap();
        let read = base.load_adapter("x", dir.path(), METHODS).unwrap();
        assert_eq!(shapes(&read), shapes(&model));
    }
}

#[test]
fn the_first_direction_is_that_of_the_inputs() {
    let base = TinyTransformer::new(&device());
    let config = LoraConfig::new(1).with_targets(["encoder.layer.0.attention.self.query"]);
    let model = eva(&base, "x", &config, 1.0, |probed| drop(run(probed, 1))).unwrap();
    let states = model.adapter_states::<LoraLinear>("x").unwrap();
    let a = states[0].1.lora_a.val();
    // What the first layer's query sees is what the embeddings give: any other direction explains less.
    let ids = {
        device().seed(1);
        let ids = Tensor::<2>::random([4, 20], Distribution::Uniform(1.0, 96.0), &device());
        ids.int()
    };
    let inputs = base.embed(ids, ForwardContext::new()).0.reshape([80, 32]);
    let explained = |direction: Tensor<2>| -> f32 {
        inputs
            .clone()
            .matmul(direction)
            .powi_scalar(2)
            .sum()
            .into_scalar()
    };
    let best = explained(a);
    for seed in 0..20 {
        device().seed(seed);
        let other = Tensor::<2>::random([32, 1], Distribution::Normal(0.0, 1.0), &device());
        let length: f32 = other.clone().powi_scalar(2).sum().sqrt().into_scalar();
        assert!(explained(other / length) < best);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let base = TinyTransformer::new(&device());
    let config = LoraConfig::new(4).with_targets(["query"]);
    let refused = eva(&base, "x", &config, 2.0, |_| ())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("AdaptedForward"), "{refused}");
    let refused = eva(&base, "x", &config, 0.5, |_| ())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("rho"), "{refused}");
    for (variant, field) in [
        (
            config.clone().with_kasa_config(KasaConfig::default()),
            "kasa_config",
        ),
        (
            config.clone().with_velora_config(VeloraConfig::default()),
            "velora_config",
        ),
    ] {
        let refused = eva(&base, "x", &variant, 2.0, |_| ()).unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains(field) && refused.contains("EVA"),
            "{refused}"
        );
    }
    let alone = config.with_init_lora_weights("eva");
    let refused = base.attach("x", &alone).unwrap_err().to_string();
    assert!(refused.contains("eva"), "{refused}");
}

#[test]
fn lora_plus_moves_b_by_its_own_rate() {
    let device = device().autodiff();
    let base = TinyTransformer::new(&device);
    let config = LoraConfig::new(2)
        .with_targets(["query", "word_embeddings"])
        .with_init_lora_weights(false);
    let model = base.attach("x", &config).unwrap();
    let groups = lora_plus(&model, "x").unwrap();
    let step = |model: TinyTransformer, sixteen: bool| {
        let ids = Tensor::<2, Int>::from_data([[5, 6, 7]], &device);
        let loss = model.hidden(ids, None).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let mut optimizer = SgdConfig::new().init();
        if sixteen {
            use burn::lr_scheduler::{
                constant::ConstantLr, module_lr_scheduler::ModuleLrScheduler,
            };
            let mut rates = ModuleLrScheduler::new(ConstantLr::from(10.0))
                .with_group(groups.up.clone(), ConstantLr::from(160.0))
                .with_group(groups.embeddings.clone(), ConstantLr::from(0.0));
            optimizer.step(rates.step(), model, gradients)
        } else {
            optimizer.step(10.0, model, gradients)
        }
    };
    let (slow, fast) = (step(model.clone(), false), step(model.clone(), true));
    let moved = |after: &TinyTransformer, of: fn(&LoraLinear) -> Tensor<2>| -> f32 {
        let before = model.adapter_states::<LoraLinear>("x").unwrap();
        let after = after.adapter_states::<LoraLinear>("x").unwrap();
        (of(&after[0].1) - of(&before[0].1))
            .abs()
            .sum()
            .into_scalar()
    };
    let a: fn(&LoraLinear) -> Tensor<2> = |state| state.lora_a.val();
    let b: fn(&LoraLinear) -> Tensor<2> = |state| state.lora_b.val();
    let ratio = |of| moved(&fast, of) / moved(&slow, of);
    assert!((ratio(a) - 1.0).abs() < 0.01 && (ratio(b) - 16.0).abs() < 0.1);
    let tables = |model: &TinyTransformer| {
        let states = model.adapter_states::<peft_reparameterization::LoraEmbedding>("x");
        states.unwrap()[0].1.lora_a.val().into_data()
    };
    assert_eq!(tables(&fast), tables(&model));
    let _ = model.no_grad();
}

/// With statistics, the start is a configuration like others; ranks stay where they are.
#[test]
fn a_configuration_attached_with_statistics_starts_from_them() {
    let base = TinyTransformer::new(&device());
    let config = LoraConfig::new(3).with_targets(["query", "output.dense"]);
    let expected = eva(&base, "x", &config, 1.0, |probed| drop(run(probed, 1))).unwrap();
    let config = config.with_init_lora_weights("eva");
    let wanted = config.statistics().unwrap();
    let calibrator = base.calibrate(&wanted).unwrap();
    drop(run(calibrator.model(), 1));
    let calibration = calibrator.finish().unwrap();
    let model = base.attach_with("x", &config, &calibration).unwrap();
    let factors = |model: &TinyTransformer| {
        let states = model.adapter_states::<LoraLinear>("x").unwrap();
        states
            .into_iter()
            .map(|(layer, state)| (layer, state.lora_a.val(), state.lora_b.val()))
            .collect::<Vec<_>>()
    };
    let (found, expected) = (factors(&model), factors(&expected));
    assert_eq!(found.len(), expected.len());
    for ((layer, a, b), (other, of_eva, _)) in found.into_iter().zip(expected) {
        assert_eq!(layer, other);
        a.into_data()
            .assert_approx_eq(&of_eva.into_data(), Tolerance::<f32>::absolute(1e-5));
        assert!(b.into_data().iter::<f32>().all(|value| value == 0.0));
    }
    for (refused, field) in [
        (
            config.clone().with_targets(["word_embeddings"]),
            "word_embeddings",
        ),
        (config.clone().with_use_dora(true), "use_dora"),
        (config.with_r(40), "`r`"),
    ] {
        let error = base
            .attach_with("x", &refused, &calibration)
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{error}");
    }
}
