//! Invertible adapters behind the embeddings of a language model, undone in front of its head.

use burn::tensor::{Device, Int, Tensor, TensorData, Tolerance};
use peft::additive::{BottleneckConfig, InvertibleKind};
use peft::core::nn::AdaptedForward as _;
use peft::core::state::AdapterState as _;
use peft::core::{PeftModule, device::cpu_devices};
use peft_models::{Llama, LlamaConfig, LmBatch};

const TEXT: [i64; 6] = [7, 30, 21, 5, 19, 44];

fn ids(part: &[i64], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(part.to_vec(), [1, part.len()]), device)
}

/// An adapter far from its initial values.
fn adapted(base: &Llama, kind: InvertibleKind) -> Llama {
    let config = BottleneckConfig::pfeiffer()
        .with_reduction_factor(4.0)
        .with_invertible(kind);
    let model = base.attach("a", &config).unwrap();
    let tensors = model.adapter_tensors("a").unwrap().into_iter();
    let moved = tensors.map(|(key, data)| {
        let values = data.iter::<f32>().enumerate();
        let values = values.map(|(at, value)| value + 0.3 * (at as f32 * 1.7).sin());
        let moved = TensorData::new(values.collect::<Vec<f32>>(), data.shape());
        (key, moved)
    });
    model.with_adapter_tensors("a", moved.collect()).unwrap()
}

#[test]
fn the_head_sees_what_the_embeddings_would_be_without_the_adapter() {
    // Without layers, all that is between embeddings and head is the last norm.
    let mut config = LlamaConfig::tiny();
    config.num_hidden_layers = 0;
    config.tie_word_embeddings = false;
    for (_, device) in cpu_devices() {
        let base = Llama::scrambled(&config, &device);
        for kind in [InvertibleKind::Nice, InvertibleKind::Glow] {
            let only = BottleneckConfig::houlsby()
                .with_mh_adapter(false)
                .with_output_adapter(false)
                .with_invertible(kind);
            let model = base.attach("a", &only).unwrap();
            let found = model.forward(ids(&TEXT, &device), None);
            let part = &model.model;
            let context = peft::core::nn::ForwardContext::new();
            let around = peft::core::nn::SiteContext::new(&context);
            let x = part.embed_tokens.adapted(ids(&TEXT, &device));
            let x = part.norm.adapted(part.site.forward(x, &around));
            let x = part.site.inverse(x, &around);
            let expected = model.lm_head.as_ref().unwrap().adapted(x);
            let tolerance = Tolerance::<f32>::absolute(1e-5);
            found
                .clone()
                .into_data()
                .assert_approx_eq(&expected.into_data(), tolerance);
            let plain = base.forward(ids(&TEXT, &device), None);
            let moved: f32 = (found - plain).abs().max().into_scalar();
            assert!(moved > 1e-4, "{kind:?} moved by {moved}");
        }
    }
}

#[test]
fn read_piece_by_piece_a_text_gives_the_same_logits() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for kind in [InvertibleKind::Nice, InvertibleKind::Glow] {
            let model = adapted(&base, kind);
            let whole = model.forward(ids(&TEXT, &device), None).slice_dim(1, 5..6);
            let mut cache = model.cache();
            model.next_logits(ids(&TEXT[..3], &device), &mut cache);
            let pieces = model.next_logits(ids(&TEXT[3..], &device), &mut cache);
            let distance: f32 = (whole.squeeze_dim::<2>(1) - pieces)
                .abs()
                .max()
                .into_scalar();
            assert!(distance < 1e-4, "{kind:?} on {name}: {distance}");
        }
    }
}

#[test]
fn gradient_checkpointing_gives_the_same_gradients() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device.autodiff());
        let model = adapted(&base, InvertibleKind::Nice);
        let batch = LmBatch::of_text(&[7, 30, 21, 5, 19, 44]);
        let (loss, all) = model.loss_and_gradients(&batch, false, 1.0);
        let (again, by_layer) = model.loss_and_gradients(&batch, true, 1.0);
        assert!((loss - again).abs() < 1e-4, "{name}");
        assert_eq!(all.len(), by_layer.len(), "{name}");
        // One for each tensor of the adapter.
        assert_eq!(
            all.len(),
            model.adapter_tensors("a").unwrap().len(),
            "{name}"
        );
    }
}
