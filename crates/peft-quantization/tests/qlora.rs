//! QLoRA's configuration: what it packs, attaches and refuses.

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_core::PeftModule as _;
use peft_core::device::cpu_devices;
use peft_core::quantize::QuantizedModule as _;
use peft_core::state::AdapterState as _;
use peft_models::{Llama, LlamaLoader, LmBatch};
use peft_quantization::{AdapterDtype, QLoraConfig, QuantizationConfig};
use peft_reparameterization::{LoraConfig, LoraLinear, METHODS};

const BASE: &str = "../peft-models/tests/golden/llama/base";
/// A model that transformers saved in bitsandbytes' NF4.
const PACKED: &str = "tests/golden/llama_nf4";

fn text() -> LmBatch {
    LmBatch::of_text(&[3, 17, 9, 40, 22, 5, 61, 8, 30, 12, 7, 2])
}

fn logits(model: &Llama, device: &Device) -> TensorData {
    let ids: Vec<i64> = text().ids.iter().map(|id| i64::from(*id)).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 12]), device);
    model.forward(ids, None).into_data()
}

fn farthest(a: &TensorData, b: &TensorData) -> f64 {
    peft_testing::farthest(a.iter::<f32>(), b.iter::<f32>())
}

fn loaded(config: &QLoraConfig, device: &Device) -> (Llama, Llama) {
    let quantizer = config.quantizer().unwrap();
    let base = LlamaLoader::new(BASE)
        .with_quantizer(&quantizer)
        .load(device)
        .unwrap();
    let model = quantizer.attach(&base, "mine").unwrap();
    (base, model)
}

#[test]
fn a_base_is_packed_while_it_is_loaded_and_gets_the_adapter() {
    for (name, device) in cpu_devices() {
        let dense = LlamaLoader::new(BASE).load(&device).unwrap();
        let wanted = logits(&dense, &device);
        let (base, model) = loaded(&QLoraConfig::new(4), &device);
        let quantized = base.quantized_weights();
        let four_bits = quantized.iter().filter(|(_, rows)| rows.format() == "nf4");
        assert_eq!(four_bits.count(), 14, "{name}");
        assert_eq!(model.adapters(), ["mine"]);
        // LoRA's own initial values change nothing; LoftQ's bring it nearer to the dense model.
        let plain = farthest(&logits(&model, &device), &wanted);
        assert_eq!(logits(&model, &device), logits(&base, &device), "{name}");
        for iterations in [1, 3] {
            let config = QLoraConfig::new(4).with_loftq(iterations);
            let (_, model) = loaded(&config, &device);
            let near = farthest(&logits(&model, &device), &wanted);
            assert!(near < plain, "{name}: {near} with LoftQ, {plain} without");
        }
        // A model that is there is quantized in the loader's place.
        let config = QLoraConfig::new(4).with_loftq(1);
        let quantizer = config.quantizer().unwrap();
        let there = dense.pack_weights(&quantizer).unwrap();
        let there = quantizer.attach(&there, "mine").unwrap();
        let (_, while_loading) = loaded(&config, &device);
        let distance = farthest(&logits(&there, &device), &logits(&while_loading, &device));
        assert!(distance < 1e-5, "{name}: {distance}");
    }
}

#[test]
fn factors_in_16_bits_compute_in_32_and_train() {
    for (name, device) in cpu_devices() {
        let autodiff = device.clone().autodiff();
        autodiff.seed(3);
        let lora = LoraConfig::new(4)
            .with_alpha(16.0)
            .with_targets(["q_proj", "down_proj"]);
        let config = QLoraConfig::new(4)
            .with_lora(lora)
            .with_loftq(1)
            .with_adapter_dtype(AdapterDtype::Bfloat16);
        if !device.supports_dtype(DType::BF16) {
            let quantizer = config.quantizer().unwrap();
            let loader = LlamaLoader::new(BASE).with_quantizer(&quantizer);
            let base = loader.load(&autodiff).unwrap();
            let error = quantizer.attach(&base, "mine").unwrap_err();
            assert!(error.to_string().contains("the device"), "{name}: {error}");
            continue;
        }
        let (base, mut model) = loaded(&config, &autodiff);
        let states = model.adapter_states::<LoraLinear>("mine").unwrap();
        assert_eq!(states.len(), 4, "{name}");
        for (layer, state) in &states {
            let dtypes = [state.lora_a.val().dtype(), state.lora_b.val().dtype()];
            assert_eq!(dtypes, [DType::BF16; 2], "{name}: {layer}");
        }
        drop(states);
        // The same values in 32 bits compute the same.
        let wide = peft_reparameterization::cast_factors(&model, "mine", DType::F32).unwrap();
        let valid = |model: &Llama| {
            use burn::module::Module as _;
            logits(&model.valid(), &device)
        };
        assert_eq!(valid(&model), valid(&wide), "{name}");
        let merged = model.merge_and_unload().unwrap();
        assert!(farthest(&valid(&merged), &valid(&wide)) < 1e-4, "{name}");

        // A file of half the bytes, which any reader takes.
        let dir = tempfile::tempdir().unwrap();
        let bytes = |model: &Llama| {
            model.save_adapter("mine", dir.path()).unwrap();
            std::fs::metadata(dir.path().join("adapter_model.safetensors"))
                .unwrap()
                .len()
        };
        let (whole, half) = (bytes(&wide), bytes(&model));
        assert!(half < whole * 6 / 10, "{name}: {half} of {whole} bytes");
        let again = base.load_adapter("again", dir.path(), METHODS).unwrap();
        assert_eq!(valid(&again), valid(&model), "{name}");

        let mut optimizer = AdamWConfig::new().init();
        let mut losses = Vec::new();
        for _ in 0..12 {
            let loss = model.loss(&text());
            losses.push(loss.clone().into_scalar::<f32>());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        assert!(losses[11] < 0.95 * losses[0], "{name}: {losses:?}");
    }
}

/// A head that is a quantized table: adapted, saved whole, and kept equal to the table.
#[test]
fn a_head_that_is_a_packed_table_takes_adapters() {
    use burn::module::Module as _;
    let lora = |target: &str| LoraConfig::new(3).with_targets([target]);
    let cases = [
        ("LoRA", lora("lm_head")),
        ("DoRA", lora("lm_head").with_use_dora(true)),
        (
            "saved head",
            lora("q_proj").with_modules_to_save(["lm_head"]),
        ),
        (
            "LoRA of both",
            lora("lm_head").with_ensure_weight_tying(true),
        ),
        (
            "saved both",
            lora("q_proj")
                .with_modules_to_save(["embed_tokens"])
                .with_ensure_weight_tying(true),
        ),
    ];
    for (name, device) in cpu_devices() {
        let config = QLoraConfig::new(4);
        let quantizer = config.quantizer().unwrap();
        let loader = LlamaLoader::new(BASE).with_quantizer(&quantizer);
        let base = loader.load(&device.clone().autodiff()).unwrap();
        let formats = |model: &Llama| {
            let quantized = model.quantized_weights().into_iter();
            quantized
                .map(|(layer, rows)| (layer, rows.format().to_string()))
                .collect::<Vec<_>>()
        };
        let before = logits(&base.valid(), &device);
        for (case, config) in &cases {
            let what = format!("{case} on {name}");
            let mut model = base.attach("mine", config).unwrap();
            let moved = farthest(&logits(&model.valid(), &device), &before);
            assert!(moved < 1e-5, "{what}: {moved}");
            let mut optimizer = AdamWConfig::new().init();
            for _ in 0..3 {
                let loss = model.loss(&text());
                let gradients = GradientsParams::from_grads(loss.backward(), &model);
                model = optimizer.step(2e-2, model, gradients);
            }
            let after = logits(&model.valid(), &device);
            assert!(farthest(&after, &before) > 0.02, "{what}");
            let whole = Tensor::<3>::from_data(after.clone(), &device).reshape([12, 101]);
            let expected = peft_core::ops::reference::cross_entropy(whole, &text().targets);
            let expected = expected.into_scalar::<f32>();
            let loss = model.valid().loss(&text()).into_scalar::<f32>();
            assert!(
                (loss / expected - 1.0).abs() < 1e-5,
                "{what}: {loss} {expected}"
            );

            let dir = tempfile::tempdir().unwrap();
            model.save_adapter("mine", dir.path()).unwrap();
            let again = base.load_adapter("again", dir.path(), METHODS).unwrap();
            let distance = farthest(&logits(&again.valid(), &device), &after);
            assert!(distance < 1e-5, "{what}: {distance}");
            let merged = model.merge_adapters().unwrap();
            assert!(
                farthest(&logits(&merged.valid(), &device), &after) < 1e-4,
                "{what}"
            );
            let plain = model.merge_and_unload().unwrap();
            assert!(
                farthest(&logits(&plain.valid(), &device), &after) < 1e-4,
                "{what}"
            );
            for bare in [
                model.unload(),
                model.detach("mine"),
                model.disable_adapters(),
            ] {
                let bare = bare.unwrap();
                assert_eq!(logits(&bare.valid(), &device), before, "{what}");
                assert_eq!(formats(&bare), formats(&base), "{what}");
            }
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let names = LoraConfig::new(4).with_targets(["q_proj"]);
    let refused = |config: &QLoraConfig| match config.quantizer() {
        Ok(_) => panic!("{config:?} was taken"),
        Err(error) => error.to_string(),
    };
    let text = refused(&QLoraConfig::new(4).with_lora(names).with_loftq(2));
    assert!(
        text.contains("loftq_iterations") && text.contains("all linear"),
        "{text}"
    );
    let text = refused(&QLoraConfig::new(0));
    assert!(text.contains("`r`"), "{text}");

    // A base that the quantizer has not seen.
    let config = QLoraConfig::new(4).with_loftq(1);
    let dense = LlamaLoader::new(BASE).load(&device).unwrap();
    let error = config
        .quantizer()
        .unwrap()
        .attach(&dense, "mine")
        .unwrap_err();
    assert!(error.to_string().contains("LoftQ"), "{error}");

    let pissa = LoraConfig::new(4).with_init_lora_weights("pissa");
    let config = QLoraConfig::new(4)
        .with_lora(pissa)
        .with_adapter_dtype(AdapterDtype::Bfloat16);
    let quantizer = config.quantizer().unwrap();
    let base = dense.pack_weights(&quantizer).unwrap();
    let error = quantizer.attach(&base, "mine").unwrap_err();
    assert!(error.to_string().contains("adapter_dtype"), "{error}");
}

/// By the calls of the README's program.
#[test]
fn a_base_that_is_packed_already_is_read_and_written() {
    let device = cpu_devices().remove(0).1.autodiff();
    let logits = |model: &Llama| {
        let ids = Tensor::<1, Int>::from_data([3_i64, 17, 9, 40, 22, 5, 52, 8], &device);
        model.forward(ids.reshape([1, 8]), None).into_data()
    };
    let upstreams = QuantizationConfig::load(PACKED).unwrap();
    let expected = LlamaLoader::new(PACKED)
        .with_quantizer(&upstreams)
        .load(&device)
        .unwrap();
    let expected = logits(&expected);

    let qlora = QLoraConfig::new(4);
    let quantizer = qlora.quantizer().unwrap();
    let base = LlamaLoader::new(PACKED)
        .with_quantizer(&quantizer)
        .load(&device)
        .unwrap();
    let model = quantizer.attach(&base, "mine").unwrap();
    assert_eq!(model.adapters(), ["mine"]);
    assert_eq!(logits(&model), expected);

    let dir = tempfile::tempdir().unwrap();
    let quantizer = qlora.quantizer().unwrap();
    model
        .export_quantized(dir.path(), None, &quantizer)
        .unwrap();
    let written = QuantizationConfig::load(dir.path()).unwrap();
    assert_eq!(written, qlora.quantization);
    let again = LlamaLoader::new(dir.path())
        .with_quantizer(&written)
        .load(&device)
        .unwrap();
    assert_eq!(
        again.quantized_weights().len(),
        base.quantized_weights().len()
    );
    assert_eq!(logits(&again), expected);

    let loftq = qlora.clone().with_loftq(1);
    let quantizer = loftq.quantizer().unwrap();
    let refused = LlamaLoader::new(PACKED)
        .with_quantizer(&quantizer)
        .load(&device);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("with_loftq(0)"), "{refused}");
}
