//! Prefixes, cartridges and prompts inside attention layers, on a BERT and a Llama: from a text, under padding, with a
//! cache, beside adapters of other rows.

use burn::module::{Module as _, ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::core::calibration::Calibrate as _;
use peft::core::method::Method;
use peft::core::state::AdapterState as _;
use peft::core::{Error, PeftModule, device::cpu_devices};
use peft::reparameterization::LoraConfig;
use peft::soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPrompt, AdaptionPromptConfig, Cartridge, CartridgeConfig,
    LatePromptConfig, Prefix, PrefixForm, PrefixInit, PrefixTuningConfig, PromptGeneratorType,
};
use peft_models::{Bert, BertConfig, Llama};

fn ids(rows: &[&[i64]], device: &Device) -> Tensor<2, Int> {
    let [count, length] = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), [count, length]), device)
}

fn farthest<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    let (a, b) = (a.into_data(), b.into_data());
    assert_eq!(a.shape(), b.shape());
    peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>())
}

/// Opens the gates of prompts, so that they are no identity.
fn opened<M: PeftModule>(model: &M, name: &str) -> M {
    model
        .edit_adapter(name, |_, state: &mut AdaptionPrompt| {
            state.gate = state.gate.clone().map(|gate| gate + 0.7);
        })
        .unwrap()
}

fn static_late_prompt() -> LatePromptConfig {
    LatePromptConfig::new()
        .with_num_prompt_tokens(3)
        .with_generator_type(PromptGeneratorType::Fixed)
}

fn flat() -> AdapterHubPrefixConfig {
    let config = AdapterHubPrefixConfig::new().with_flat(true);
    config.with_prefix_length(3)
}

const TEXT: [i64; 5] = [7, 30, 21, 5, 19];
const QUESTION: [i64; 4] = [44, 3, 12, 60];

fn token_ids() -> Vec<u32> {
    TEXT.iter().map(|id| *id as u32).collect()
}

/// Behind a text the model computes what it computes behind a prefix that holds the text's keys and values.
#[test]
fn a_prefix_from_a_text_stands_for_the_text() {
    let methods: [&dyn Method; 2] = [&PrefixTuningConfig::new(5), &CartridgeConfig::new(5)];
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device.clone().autodiff());
        let whole = [TEXT.as_slice(), QUESTION.as_slice()].concat();
        let whole = base.forward(ids(&[&whole], &base.device()), None);
        let whole = whole.slice_dim(1, 5..9);
        let question = || ids(&[&QUESTION], &base.device());
        // Whatever adapters are on the model.
        let lora = LoraConfig::new(2).with_init_lora_weights(false);
        let other = base.attach("other", &lora).unwrap();
        for method in methods {
            let text = other.key_values(&token_ids()).unwrap();
            let model = base.attach_with("mine", method, &text).unwrap();
            let distance = farthest(model.forward(question(), None), whole.clone());
            let title = method.info().title;
            assert!(distance < 1e-5, "{title} on {name}: {distance}");
            let random = base.attach("mine", method).unwrap();
            let distance = farthest(random.forward(question(), None), whole.clone());
            assert!(distance > 1e-2, "{title} on {name}: {distance}");
        }
    }
}

#[test]
fn keys_and_values_of_an_encoders_text_are_its_layers() {
    let (_, device) = cpu_devices().remove(0);
    let base: Bert = BertConfig::tiny().init(&device);
    let text = base.key_values(&token_ids()).unwrap();
    let model = base.attach_with("mine", &PrefixTuningConfig::new(3), &text);
    let states = model.unwrap().adapter_states::<Prefix>("mine").unwrap();
    assert_eq!(states.len(), base.encoder.layer.len());
    let mut below = base.clone();
    below.encoder.layer.clear();
    for ((place, state), layer) in states.iter().zip(&base.encoder.layer) {
        // What goes into the layer, by a model of those below it.
        let hidden = below.forward(ids(&[&TEXT], &device), None).hidden;
        let attention = &layer.attention.self_attention;
        let key = attention.key.forward(hidden.clone());
        let value = attention.value.forward(hidden);
        let expected = Tensor::cat(vec![key, value], 2).squeeze_dim::<2>(0);
        let PrefixForm::KeyValue(found) = &state.form else {
            panic!("a text's keys and values are no network's");
        };
        let distance = farthest(found.val(), expected.slice_dim(0, 0..3));
        assert!(distance < 1e-5, "{place}: {distance}");
        below.encoder.layer.push(layer.clone());
    }
}

#[test]
fn a_text_that_does_not_fit_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = Llama::tiny(&device);
    let text = base.key_values(&token_ids()).unwrap();
    let refusal = |method: &dyn Method| match base.attach_with("mine", method, &text).unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(refusal(&CartridgeConfig::new(6)), "num_virtual_tokens");
    let prefix = || PrefixTuningConfig::new(4);
    assert_eq!(refusal(&prefix().with_projection(8)), "prefix_projection");
    let zero = prefix().with_init_weights(PrefixInit::Zero);
    assert_eq!(refusal(&zero), "init_weights");
    assert!(matches!(
        base.key_values(&[]),
        Err(Error::Calibration { .. })
    ));
}

#[test]
fn the_first_tokens_of_a_cartridge_stay() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device.autodiff());
        let text = base.key_values(&token_ids()).unwrap();
        let config = CartridgeConfig::new(4).with_num_frozen_tokens(2);
        let model = base.attach_with("mine", &config, &text).unwrap();
        // Keys and values of two tokens in two layers, 16 features each.
        assert_eq!(model.counts().trainable, 2 * 2 * 2 * 16, "{name}");
        assert_eq!(model.counts().stored, 4 * 2 * 2 * 16, "{name}");
        let states = |model: &Llama| -> Vec<[TensorData; 2]> {
            let states = model.adapter_states::<Cartridge>("mine").unwrap();
            let values = |(_, state): (String, Cartridge)| {
                let frozen = state.frozen.unwrap();
                [frozen.val().into_data(), state.trained.val().into_data()]
            };
            states.into_iter().map(values).collect()
        };
        let before = states(&model);
        let step = |model: Llama| {
            let loss = model.forward(ids(&[&QUESTION], &model.device()), None);
            let gradients = (loss.clone() * loss).mean().backward();
            let gradients = GradientsParams::from_grads(gradients, &model);
            // Decay would move what is trained, too.
            let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
            optimizer.step(0.1, model, gradients)
        };
        let after = states(&step(model.clone()));
        // So they do behind a file, in which all are one tensor.
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter("mine", dir.path()).unwrap();
        let loaded = base
            .load_adapter("mine", dir.path(), &peft::methods())
            .unwrap();
        assert_eq!(states(&loaded), before, "{name}");
        let loaded = states(&step(loaded));
        for (layer, before) in before.iter().enumerate() {
            assert_eq!(before[0], after[layer][0], "{name}, layer {layer}");
            assert_eq!(before[0], loaded[layer][0], "{name}, layer {layer}");
            assert_ne!(before[1], after[layer][1], "{name}, layer {layer}");
            assert_eq!(after[layer], loaded[layer], "{name}, layer {layer}");
        }
    }
}

/// Two cartridges at once are one behind the other, as of one document behind the other.
#[test]
fn cartridges_stand_one_behind_the_other() {
    let (_, device) = cpu_devices().remove(0);
    let base = Llama::tiny(&device);
    let text = base.key_values(&token_ids()).unwrap();
    let two = base
        .attach_with("a", &CartridgeConfig::new(2), &text)
        .unwrap();
    let two = two
        .attach_with("b", &CartridgeConfig::new(3), &text)
        .unwrap();
    let two = two.activate(&["a", "b"]).unwrap();
    assert_eq!(two.virtual_tokens(), 5);
    let one = base
        .attach_with("c", &CartridgeConfig::new(5), &text)
        .unwrap();
    let parts: Vec<(String, Cartridge)> = two.adapter_states("a").unwrap();
    let others: Vec<(String, Cartridge)> = two.adapter_states("b").unwrap();
    let mut layers = parts.into_iter().zip(others);
    let one = one
        .edit_adapter("c", |_, state: &mut Cartridge| {
            let ((_, a), (_, b)) = layers.next().unwrap();
            let [a_first, b_first] = [&a, &b].map(|all| all.frozen.as_ref().unwrap().val());
            let rest = vec![a.trained.val(), b_first, b.trained.val()];
            state.frozen = Some(Param::from_tensor(a_first));
            state.trained = Param::from_tensor(Tensor::cat(rest, 0));
        })
        .unwrap();
    let question = || ids(&[&QUESTION], &device);
    let distance = farthest(two.forward(question(), None), one.forward(question(), None));
    assert!(distance < 1e-5, "{distance}");
}

/// Read piece by piece or at once, a text has the same logits; virtual tokens are put in front once.
#[test]
fn a_text_may_be_read_piece_by_piece() {
    let (prompts, cartridge) = (AdaptionPromptConfig::new(3, 1), CartridgeConfig::new(3));
    // Positions that virtual tokens take.
    let methods: [(&dyn Method, usize); 4] = [
        (&cartridge, 3),
        (&prompts, 0),
        (&flat(), 0),
        (&static_late_prompt(), 0),
    ];
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for (method, positions) in methods {
            let mut model = base.attach("mine", method).unwrap();
            if method.info().peft_type == "ADAPTION_PROMPT" {
                model = opened(&model, "mine");
            }
            let what = format!("{} on {name}", method.info().title);
            assert_eq!(model.virtual_tokens(), positions, "{what}");
            let whole = model.forward(ids(&[&TEXT], &device), None);
            let last = whole.dims()[1] - 1;
            let whole = whole.slice_dim(1, last..last + 1).squeeze_dim::<2>(1);
            let mut cache = model.cache();
            model.next_logits(ids(&[&TEXT[..3]], &device), &mut cache);
            model.next_logits(ids(&[&TEXT[3..4]], &device), &mut cache);
            let pieces = model.next_logits(ids(&[&TEXT[4..]], &device), &mut cache);
            assert_eq!(cache.len(), positions + TEXT.len(), "{what}");
            let distance = farthest(whole.clone(), pieces);
            assert!(distance < 1e-5, "{what}: {distance}");
            let plain = base.next_logits(ids(&[&TEXT], &device), &mut base.cache());
            assert!(farthest(plain, whole) > 1e-3, "{what} changes nothing");
        }
    }
}

type Forward<'a> = dyn Fn(Tensor<2, Int>, Option<Tensor<2, Bool>>) -> Tensor<3> + 'a;

/// What fills up a row changes nothing of its text, on either side; at the end of a row it might as well not be there.
#[test]
fn padding_is_seen_by_none() {
    let prompts = AdaptionPromptConfig::new(3, 1);
    let generated = LatePromptConfig::new().with_num_prompt_tokens(2);
    let methods: [&dyn Method; 5] = [
        &CartridgeConfig::new(3),
        &prompts,
        &flat(),
        &static_late_prompt(),
        &generated,
    ];
    let (_, device) = cpu_devices().remove(0);
    let bert: Bert = BertConfig::tiny().init(&device);
    let llama = Llama::tiny(&device);
    let padding = |rows: [[bool; 6]; 2]| Tensor::<2, Bool>::from_data(rows, &device);
    for method in methods {
        let (mut bert, mut llama) = (
            bert.attach("mine", method).unwrap(),
            llama.attach("mine", method).unwrap(),
        );
        if method.info().peft_type == "ADAPTION_PROMPT" {
            bert = opened(&bert, "mine");
            llama = opened(&llama, "mine");
        }
        let run: [&Forward; 2] = [
            &|ids, padding| bert.forward(ids, padding).hidden,
            &|ids, padding| llama.forward(ids, padding),
        ];
        for (model, run) in run.iter().enumerate() {
            let what = format!("{}, model {model}", method.info().title);
            for left in [false, true] {
                let of = |filler: i64| {
                    let (text, row) = ([44, 3, 12, 60], [9, 8, 7, 6, 5, 4]);
                    let fill = [filler; 2];
                    let short = if left {
                        [fill.as_slice(), &text].concat()
                    } else {
                        [text.as_slice(), &fill].concat()
                    };
                    let hidden = if left {
                        [true, true, false, false, false, false]
                    } else {
                        [false, false, false, false, true, true]
                    };
                    let output = run(
                        ids(&[&short, &row], &device),
                        Some(padding([hidden, [false; 6]])),
                    );
                    let first = output.dims()[1] - 6 + if left { 2 } else { 0 };
                    output.slice_dim(0, 0..1).slice_dim(1, first..first + 4)
                };
                let distance = farthest(of(0), of(50));
                assert!(distance < 1e-6, "{what}, left {left}: {distance}");
                if !left {
                    let alone = run(ids(&[&QUESTION], &device), None);
                    let length = alone.dims()[1];
                    let distance = farthest(of(0), alone.slice_dim(1, length - 4..length));
                    assert!(distance < 1e-5, "{what}: {distance}");
                }
            }
        }
    }
}

/// A row's prompt does not go through the projections of another row's adapter.
#[test]
fn prompts_go_through_their_own_rows_projections() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        let lora = LoraConfig::new(2)
            .with_targets(["k_proj", "v_proj"])
            .with_init_lora_weights(false);
        let model = base
            .attach("prompt", &AdaptionPromptConfig::new(3, 2))
            .unwrap();
        let model = opened(&model, "prompt").attach("lora", &lora).unwrap();
        let rows: [&[i64]; 3] = [&TEXT, &[1, 2, 3, 4, 5], &TEXT];
        let names = [Some("prompt"), Some("lora"), None];
        let mixed = model.set_adapter_per_row(&names).unwrap();
        let mixed = mixed.forward(ids(&rows, &device), None);
        for (row, adapter) in names.iter().enumerate() {
            let alone = model.activate(adapter.as_slice()).unwrap();
            let alone = alone.forward(ids(&rows[row..=row], &device), None);
            let distance = farthest(mixed.clone().slice_dim(0, row..row + 1), alone);
            assert!(distance < 1e-5, "row {row} on {name}: {distance}");
        }
        // Both at once: the prompt's keys and values are those of the adapted projections.
        let both = model.activate(&["prompt", "lora"]).unwrap();
        let both = both.forward(ids(&rows, &device), None);
        let mut merged = base.attach("lora", &lora).unwrap();
        let tensors = model.adapter_tensors("lora").unwrap();
        merged = merged.with_adapter_tensors("lora", tensors).unwrap();
        let merged = merged.merge_and_unload().unwrap();
        let merged = merged
            .attach("prompt", &AdaptionPromptConfig::new(3, 2))
            .unwrap();
        let tensors = model.adapter_tensors("prompt").unwrap();
        let merged = merged.with_adapter_tensors("prompt", tensors).unwrap();
        let distance = farthest(both, merged.forward(ids(&rows, &device), None));
        assert!(distance < 1e-4, "{name}: {distance}");
    }
}

/// Moves every trained parameter by a given number of steps of a wave.
struct Move(f64);

impl ModuleMapper for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let by = self.0;
        param.map(|value| {
            if !value.is_require_grad() {
                return value;
            }
            let count = value.shape().num_elements() as i64;
            let wave = Tensor::<1, Int>::arange(0..count, &value.device()).float();
            let wave = wave.sin().reshape(value.shape()) * by;
            (value.detach() + wave).detach().require_grad()
        })
    }
}

/// The slope along a direction, by differences and by the backward pass, of gates and of generated prompts.
#[test]
fn gradients_are_slopes() {
    let gated = AdapterHubPrefixConfig::new()
        .with_prefix_length(3)
        .with_bottleneck_size(6)
        .with_use_gating(true)
        .with_shared_gating(false);
    let late = |kind| {
        let config = LatePromptConfig::new().with_num_prompt_tokens(3);
        config.with_proj_down_size(6).with_generator_type(kind)
    };
    let methods: [&dyn Method; 5] = [
        &gated,
        &gated.clone().with_flat(true),
        &late(PromptGeneratorType::Npg),
        &late(PromptGeneratorType::Appg),
        &late(PromptGeneratorType::Mppg),
    ];
    let (_, device) = cpu_devices().remove(0);
    let device = device.autodiff();
    device.seed(5);
    let base = Llama::tiny(&device);
    for method in methods {
        let model = base.attach("mine", method).unwrap();
        let loss = |by: f64| {
            let model = model.clone().map(&mut Move(by));
            let output = model.forward(ids(&[&TEXT, &TEXT], &device), None);
            (model, (output.clone() * output).mean())
        };
        let value = |by: f64| loss(by).1.into_scalar::<f32>();
        let (at, loss) = loss(0.0);
        let gradients = loss.backward();
        let mut slope = Slope {
            gradients: &gradients,
            sum: 0.0,
        };
        at.visit(&mut slope);
        let step = 3e-4;
        let differences = f64::from(value(step) - value(-step)) / (2.0 * step);
        let error = (slope.sum - differences).abs();
        let bound = 2e-2 * differences.abs().max(0.05);
        let slope = slope.sum;
        assert!(error < bound, "{method:?}: {slope}, {differences}");
    }
}

/// The slope along the wave.
struct Slope<'a> {
    gradients: &'a burn::tensor::Gradients,
    sum: f64,
}

impl burn::module::ModuleVisitor for Slope<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad(self.gradients) else {
            return;
        };
        let gradient = gradient.into_data();
        let wave = gradient.iter::<f64>().enumerate();
        self.sum += wave
            .map(|(at, value)| value * (at as f64).sin())
            .sum::<f64>();
    }
}
