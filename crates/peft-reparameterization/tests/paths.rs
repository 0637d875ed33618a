//! The activation side equals the composed path, for any shape, rank, scale and number of
//! adapters: value and gradients.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::device::cpu_devices;
use peft_core::method::Method as _;
use peft_core::nn::AdaptedForward;
use peft_core::state::AdapterState as _;
use peft_reparameterization::{InitLora, LoraConfig, LoraConv2d, LoraEmbedding, LoraLinear};
use proptest::prelude::*;

#[derive(Module, Debug)]
struct OneLinear {
    layer: Linear,
}

#[derive(Module, Debug)]
struct OneEmbedding {
    layer: Embedding,
}

#[derive(Module, Debug)]
struct OneConv2d {
    layer: Conv2d,
}

/// `count` adapters of the given ranks, none at its initial values, all active.
fn adapted<M: Module>(model: M, ranks: &[usize], alpha: f64) -> M {
    let mut model = model;
    let names: Vec<String> = (0..ranks.len()).map(|index| format!("a{index}")).collect();
    for (name, rank) in names.iter().zip(ranks) {
        let config = LoraConfig::new(*rank)
            .with_alpha(alpha)
            .with_targets(["layer"])
            .with_init_lora_weights(InitLora::Default(false));
        model = model.attach(name, &config).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    model.activate(&names).unwrap()
}

fn close<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Result<(), TestCaseError> {
    let scale = b.clone().abs().max().into_scalar::<f32>().max(1.0);
    let distance = (a - b).abs().max().into_scalar::<f32>() / scale;
    // Both are sums of hundreds of f32 products in other orders, and the largest may itself have
    // cancelled: one draw in a thousand is off by 4e-5.
    prop_assert!(distance < 1e-4, "differ by {distance} of the largest");
    Ok(())
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Distances of the gradients of (output · weights) on both sides, for one factor of each adapter.
macro_rules! gradients_agree {
    ($model:expr, $state:ty, $one:expr, $other:expr, $device:expr) => {{
        let weights = random($one.dims(), $device);
        let one = ($one * weights.clone()).sum().backward();
        let other = ($other * weights).sum().backward();
        for name in $model.adapters() {
            for (_, state) in $model.adapter_states::<$state>(&name).unwrap() {
                close(
                    state.lora_a.val().grad(&one).unwrap(),
                    state.lora_a.val().grad(&other).unwrap(),
                )?;
                close(
                    state.lora_b.val().grad(&one).unwrap(),
                    state.lora_b.val().grad(&other).unwrap(),
                )?;
            }
        }
    }};
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear(
        (d_in, d_out) in (4_usize..20, 4_usize..20),
        ranks in prop::collection::vec(1_usize..4, 1..4),
        alpha in 0.1_f64..20.0,
        bias: bool,
        (batch, tokens) in (1_usize..4, 1_usize..6),
    ) {
        for (_, device) in cpu_devices() {
            let device = device.autodiff();
            let layer = LinearConfig::new(d_in, d_out).with_bias(bias).init(&device);
            let model = adapted(OneLinear { layer }, &ranks, alpha);
            let x = random([batch, tokens, d_in], &device);
            let (one, other) = (model.layer.adapted(x.clone()), model.layer.forward(x));
            close(one.clone(), other.clone())?;
            gradients_agree!(model, LoraLinear, one, other, &device);
        }
    }

    #[test]
    fn embedding(
        (rows, d) in (4_usize..20, 4_usize..12),
        ranks in prop::collection::vec(1_usize..4, 1..4),
        alpha in 0.1_f64..20.0,
        ids in prop::collection::vec(0_i64..4, 6),
    ) {
        for (_, device) in cpu_devices() {
            let device = device.autodiff();
            let layer = EmbeddingConfig::new(rows, d).init(&device);
            let model = adapted(OneEmbedding { layer }, &ranks, alpha);
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), [2, 3]), &device);
            let (one, other) = (model.layer.adapted(ids.clone()), model.layer.forward(ids));
            close(one.clone(), other.clone())?;
            gradients_agree!(model, LoraEmbedding, one, other, &device);
        }
    }

    #[test]
    fn conv2d(
        (channels, filters) in (1_usize..4, 4_usize..8),
        grouped: bool,
        kernel in (1_usize..4, 1_usize..4),
        stride in (1_usize..3, 1_usize..3),
        dilation in 1_usize..3,
        padding in 0_usize..3,
        ranks in prop::collection::vec(1_usize..3, 1..3),
        alpha in 0.1_f64..20.0,
    ) {
        let groups = if grouped { 2 } else { 1 };
        let padding = match padding {
            0 => PaddingConfig2d::Valid,
            1 => PaddingConfig2d::Explicit(1, 2, 0, 1),
            _ => PaddingConfig2d::Same,
        };
        // A rank above the kernel's own size is refused.
        let most = (channels * kernel.0 * kernel.1).min(4);
        let ranks: Vec<usize> = ranks.into_iter().map(|rank| rank.min(most)).collect();
        for (_, device) in cpu_devices() {
            let device = device.autodiff();
            let layer = Conv2dConfig::new([channels * groups, 2 * filters], [kernel.0, kernel.1])
                .with_stride([stride.0, stride.1])
                .with_dilation([dilation, dilation])
                .with_groups(groups)
                .with_padding(padding.clone())
                .init(&device);
            let model = adapted(OneConv2d { layer }, &ranks, alpha);
            let x = random([2, channels * groups, 9, 8], &device);
            let (one, other) = (model.layer.adapted(x.clone()), model.layer.forward(x));
            close(one.clone(), other.clone())?;
            gradients_agree!(model, LoraConv2d, one, other, &device);
        }
    }
}

#[test]
fn dropout_acts_on_the_activation_side_while_training() {
    for (name, inner) in cpu_devices() {
        let device = inner.clone().autodiff();
        let layer = LinearConfig::new(16, 8).init(&device);
        let config = LoraConfig::new(4)
            .with_targets(["layer"])
            .with_lora_dropout(0.5)
            .with_init_lora_weights(InitLora::Default(false));
        let model = OneLinear { layer }.attach("a", &config).unwrap();
        let x = random([64, 16], &device);
        let composed = model.layer.forward(x.clone());
        let moved = |y: Tensor<2>| (y - composed.clone()).abs().max().into_scalar::<f32>();
        assert!(
            moved(model.layer.adapted(x.clone())) > 1e-2,
            "{name}: no dropout while training"
        );
        let valid = model.valid();
        let x = x.without_autodiff();
        let distance = (valid.layer.adapted(x.clone()) - valid.layer.forward(x))
            .abs()
            .max();
        assert!(
            distance.into_scalar::<f32>() < 1e-5,
            "{name}: dropout in use"
        );
    }
}

#[test]
fn a_layer_without_adapters_computes_what_burn_computes() {
    for (_, device) in cpu_devices() {
        let layer = LinearConfig::new(5, 3).init(&device);
        let x = random([2, 4, 5], &device);
        layer
            .adapted(x.clone())
            .into_data()
            .assert_eq(&layer.forward(x).into_data(), true);
    }
}

#[test]
fn ranks_and_scales_follow_the_formula() {
    let (_, device) = &cpu_devices()[0];
    let layer = LinearConfig::new(12, 12).init(device);
    let net = OneLinear { layer };
    let ranks = LoraConfig::new(4)
        .with_rank_pattern("lay.r", 9)
        .with_rank_pattern("query", 2);
    assert_eq!(ranks.max_rank(), Some(9));
    let scale = |config: LoraConfig| {
        let model = net.attach("a", &config.with_targets(["layer"])).unwrap();
        let (place, state) = model.adapter_states::<LoraLinear>("a").unwrap().remove(0);
        assert_eq!(place, "layer");
        (state.lora_a.dims()[1], state.scale)
    };
    assert_eq!(scale(LoraConfig::new(4).with_alpha(6.0)), (4, 1.5));
    assert_eq!(
        scale(LoraConfig::new(4).with_alpha(6.0).with_use_rslora(true)),
        (4, 3.0)
    );
    assert_eq!(
        scale(
            LoraConfig::new(4)
                .with_alpha(6.0)
                .with_rank_pattern("lay.r", 3)
        ),
        (3, 2.0)
    );
    assert_eq!(
        scale(LoraConfig::new(4).with_alpha_pattern("layer", 2.0)),
        (4, 0.5)
    );
}
