//! The shadow network of a language model: its attention, its cache, and its own loss.

mod common;

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::additive::ShadowConfig;
use peft::core::device::cpu_devices;
use peft::core::state::AdapterState as _;
use peft::core::{Error, PeftModule as _};
use peft::soft_prompt::PromptTuningConfig;
use peft_models::{GenerateConfig, Llama, LlamaConfig, LmBatch};

use common::listed;

fn config() -> ShadowConfig {
    ShadowConfig::new()
        .with_r(4)
        .with_shadow_alpha(0.8)
        .with_shadow_dropout(0.0)
}

/// Numbers that repeat nowhere in the place of an adapter's own.
fn filled(model: &Llama, name: &str) -> Llama {
    let mut tensors = model.adapter_tensors(name).unwrap();
    let mut at = 0.0_f32;
    for (key, data) in &mut tensors {
        let middle = if key.contains("norm") { 1.0 } else { 0.0 };
        let count: usize = data.shape().iter().product();
        let values = (0..count).map(|_| {
            at += 0.7;
            middle + at.sin() * 0.4
        });
        *data = TensorData::new(values.collect::<Vec<f32>>(), data.shape().clone());
    }
    model.with_adapter_tensors(name, tensors).unwrap()
}

fn attached(config: &ShadowConfig, device: &Device) -> Llama {
    filled(
        &Llama::tiny(device).attach("shadow", config).unwrap(),
        "shadow",
    )
}

/// One that reads the model's embeddings, and one of another width with a table of its own.
fn configs() -> [ShadowConfig; 2] {
    let narrow = config()
        .with_shadow_hidden_size(12)
        .with_shadow_num_hidden_layers(2);
    [config(), narrow]
}

fn ids(text: &[i64], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(text.to_vec(), [1, text.len()]), device)
}

fn farthest<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> f32 {
    let differences = (one - other).abs().into_data();
    let differences = differences.iter::<f32>();
    differences.fold(0.0, |most, next| if next <= most { most } else { next })
}

const TEXT: [i64; 7] = [7, 30, 21, 5, 19, 44, 3];

#[test]
fn a_text_read_piece_by_piece_gives_the_same_logits() {
    for (name, device) in cpu_devices() {
        for config in configs() {
            let model = attached(&config, &device);
            let whole = model.forward(ids(&TEXT, &device), None);
            let plain = Llama::tiny(&device).forward(ids(&TEXT, &device), None);
            let moved = farthest(whole.clone(), plain);
            assert!(moved > 1e-2, "{name}: it changes nothing");
            let mut cache = model.cache();
            model.next_logits(ids(&TEXT[..4], &device), &mut cache);
            // What goes on with another text does not come back.
            let mut copy = cache.clone();
            model.next_logits(ids(&[50, 60, 70], &device), &mut copy);
            for at in 4..7 {
                let last = model.next_logits(ids(&TEXT[at..=at], &device), &mut cache);
                let expected = whole.clone().slice_dim(1, at..=at).squeeze_dim::<2>(1);
                let error = farthest(last, expected);
                assert!(error < 1e-4, "{name}, {at}: {error}");
            }
            let config = GenerateConfig::default()
                .with_max_new_tokens(4)
                .with_eos_token_id([]);
            let written = model.generate_ids(&[1, 5, 7], &config).unwrap();
            let mut text = vec![1, 5, 7];
            for _ in 0..4 {
                let logits = model.forward(ids(&text, &device), None);
                let last = logits.slice_dim(1, text.len() - 1..text.len());
                text.extend(last.argmax(2).into_data().iter::<i64>());
            }
            let expected: Vec<u32> = text[3..].iter().map(|id| *id as u32).collect();
            assert_eq!(written[written.len() - 4..], expected, "{name}");
        }
    }
}

#[test]
fn a_document_sees_no_other_and_no_padding() {
    for (name, device) in cpu_devices() {
        for config in configs() {
            let model = attached(&config, &device);
            let texts: [&[u32]; 2] = [&[7, 30, 21], &[5, 19, 44, 3]];
            let loss = |batch: &LmBatch| model.loss(batch).into_scalar::<f32>();
            let [one, other] = texts.map(LmBatch::of_text);
            let alone = loss(&one) + loss(&other);
            let packed = LmBatch {
                ids: [one.ids.clone(), other.ids.clone()].concat(),
                targets: [one.targets.clone(), other.targets.clone()].concat(),
                segments: Some(vec![0, 0, 0, 1, 1, 1, 1]),
                rows: 1,
                length: 7,
                ..LmBatch::default()
            };
            let found = loss(&packed);
            assert!((found - alone).abs() < 1e-3, "{name}: {found} for {alone}");
            let padded = LmBatch {
                ids: [one.ids.clone(), vec![9], other.ids.clone()].concat(),
                targets: [one.targets.clone(), vec![-100], other.targets.clone()].concat(),
                padding: (0..8).map(|at| at == 3).collect(),
                rows: 2,
                length: 4,
                ..LmBatch::default()
            };
            let found = loss(&padded);
            assert!((found - alone).abs() < 1e-3, "{name}: {found} for {alone}");
        }
    }
}

/// The shadow network by itself is a Llama with the model's table and head: its loss is what training adds.
#[test]
fn training_adds_the_loss_of_the_shadow_network_by_itself() {
    for (name, device) in cpu_devices() {
        let autodiff = device.clone().autodiff();
        let batch = LmBatch::of_text(&[7, 30, 21, 5, 19]);
        let of = |weight: f64, device: &Device| {
            let model = attached(&config().with_auxiliary_loss_weight(weight), device);
            f64::from(model.loss(&batch).into_scalar::<f32>())
        };
        let plain = of(0.0, &autodiff);
        let added = of(0.5, &autodiff) - plain;
        // In use, the model's own loss is the loss.
        assert!((of(0.5, &device) - plain).abs() < 1e-4, "{name}");

        let base = Llama::tiny(&device);
        let mut alone = base.clone();
        alone.model.layers.truncate(1);
        let tensors = attached(&config(), &device)
            .adapter_tensors("shadow")
            .unwrap();
        let tensor = |key: &str| {
            let key = format!("base_model.shadow_backbone.default.{key}.weight");
            tensors[&key].clone()
        };
        // Files have matrices as torch does.
        let matrix = |param: &mut Param<Tensor<2>>, key: &str| {
            let value = Tensor::<2>::from_data(tensor(key), &device).transpose();
            assert_eq!(param.dims(), value.dims(), "{key}");
            *param = Param::from_tensor(value);
        };
        let norm = |param: &mut Param<Tensor<1>>, key: &str| {
            *param = Param::from_tensor(Tensor::from_data(tensor(key), &device));
        };
        let layer = &mut alone.model.layers[0];
        for (linear, key) in [
            (&mut layer.self_attn.q_proj, "self_attn.q_proj"),
            (&mut layer.self_attn.k_proj, "self_attn.k_proj"),
            (&mut layer.self_attn.v_proj, "self_attn.v_proj"),
            (&mut layer.self_attn.o_proj, "self_attn.o_proj"),
            (&mut layer.mlp.gate_proj, "mlp.gate_proj"),
            (&mut layer.mlp.up_proj, "mlp.up_proj"),
            (&mut layer.mlp.down_proj, "mlp.down_proj"),
        ] {
            matrix(&mut linear.weight, &format!("layers.0.{key}"));
        }
        norm(&mut layer.input_layernorm.gamma, "layers.0.input_layernorm");
        let after = &mut layer.post_attention_layernorm.gamma;
        norm(after, "layers.0.post_attention_layernorm");
        norm(&mut alone.model.norm.gamma, "norm");
        let expected = 0.5 * f64::from(alone.loss(&batch).into_scalar::<f32>());
        let error = (added - expected).abs();
        assert!(
            error < 1e-3 && expected > 1.0,
            "{name}: {added}, {expected}"
        );
    }
}

/// Layers cannot run again by themselves, so nothing is checkpointed, and the gradients are right.
#[test]
fn gradients_are_the_same_where_checkpointing_is_asked_for() {
    for (name, device) in cpu_devices() {
        for config in configs() {
            let model = attached(&config, &device.clone().autodiff());
            let batch = LmBatch::of_text(&[7, 30, 21, 5, 19]);
            let (loss, plain) = model.loss_and_gradients(&batch, false, 0.5);
            let (again, checkpointed) = model.loss_and_gradients(&batch, true, 0.5);
            assert_eq!(loss.to_bits(), again.to_bits(), "{name}");
            let (plain, checkpointed) = (listed(&model, &plain), listed(&model, &checkpointed));
            assert_eq!(plain, checkpointed, "{name}");
            assert!(plain.iter().all(|gradient| !gradient.is_empty()), "{name}");
        }
    }
}

/// Virtual tokens have no row in a table of the shadow network's own, and go in front of its state.
#[test]
fn prompts_go_in_front_of_the_shadow_state() {
    for (name, device) in cpu_devices() {
        for config in configs() {
            let model = attached(&config, &device);
            let model = model.attach("prompt", &PromptTuningConfig::new(3)).unwrap();
            let prompt = filled(&model, "prompt");
            let both = prompt.activate(&["prompt", "shadow"]).unwrap();
            let logits = both.forward(ids(&TEXT, &device), None);
            assert_eq!(logits.dims()[1], TEXT.len() + 3, "{name}");
            let mut cache = both.cache();
            both.next_logits(ids(&TEXT[..5], &device), &mut cache);
            let last = both.next_logits(ids(&TEXT[5..], &device), &mut cache);
            let expected = logits.slice_dim(1, 9..10).squeeze_dim::<2>(1);
            let error = farthest(last, expected);
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let device = cpu_devices().remove(0).1;
    let base = Llama::tiny(&device);
    let refused = |config: &ShadowConfig, part: &str| {
        let error = base.attach("shadow", config).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(
        &config().with_shadow_model("shadow-llm/other"),
        "shadow_model",
    );
    refused(
        &config().with_shadow_num_attention_heads(3),
        "a multiple of the model's 2 heads of keys",
    );
    refused(
        &config().with_layers_to_transform([7]),
        "layers_to_transform",
    );
    refused(&config().with_r(0), "`r`");
    let mut four = LlamaConfig::tiny();
    four.num_hidden_layers = 4;
    let apart = config().with_targets(["model.layers.0", "model.layers.2"]);
    let error = Llama::scrambled(&four, &device)
        .attach("shadow", &apart)
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("blocks that follow each other"), "{text}");
}
