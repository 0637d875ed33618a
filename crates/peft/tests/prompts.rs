//! Virtual tokens before the text of a Llama: padding on either side, documents in one row, several at once, and a text
//! that is read piece by piece.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::core::PeftModule as _;
use peft::core::device::cpu_devices;
use peft::core::method::Method;
use peft::core::nn::{ForwardContext, TaskIds};
use peft::core::state::AdapterState as _;
use peft::soft_prompt::{
    AdapterHubPrompt, CptConfig, IntrinsicPromptConfig, MultitaskPromptTuningConfig,
    PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskPrompts,
};
use peft_models::{BertClassifier, BertConfig, GenerateConfig, Llama, LmBatch, Pooling};

const TOKENS: usize = 3;
const SHORT: [i64; 4] = [7, 30, 21, 5];
const LONG: [i64; 7] = [19, 44, 3, 60, 8, 9, 10];
/// The tasks of the short text and of the long one.
const TASKS: [usize; 2] = [1, 0];

fn methods() -> Vec<Box<dyn Method>> {
    vec![
        Box::new(PromptTuningConfig::new(TOKENS)),
        Box::new(PromptEncoderConfig::new(TOKENS)),
        Box::new(PromptEncoderConfig::new(TOKENS).with_lstm(2)),
        Box::new(PrefixTuningConfig::new(TOKENS)),
        Box::new(PrefixTuningConfig::new(TOKENS).with_projection(8)),
        Box::new(CptConfig::new([5, 17, 60])),
        Box::new(IntrinsicPromptConfig::new(TOKENS, 4)),
        Box::new(MultitaskPromptTuningConfig::new(TOKENS, 2)),
    ]
}

/// The model with an adapter that matters: factors of multitask prompt tuning start near zero, and all prompts alike.
fn attached(base: &Llama, name: &str, method: &dyn Method) -> Llama {
    let model = base.attach(name, method).unwrap();
    model
        .edit_adapter::<TaskPrompts>(name, |_, state| {
            state.cols = state.cols.clone().map(|value| value * 40.0);
            state.rows = state.rows.clone().map(|value| value * 40.0);
        })
        .unwrap()
}

fn tensor(ids: &[i64], rows: usize, device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(
        TensorData::new(ids.to_vec(), [rows, ids.len() / rows]),
        device,
    )
}

/// Logits of the text's own tokens, of a row by itself.
fn alone(model: &Llama, text: &[i64], task: usize, device: &Device) -> Tensor<3> {
    let context = ForwardContext::new().with_tasks(TaskIds::new([task]));
    let logits = model.forward_in(tensor(text, 1, device), context);
    let count = logits.dims()[1];
    logits.narrow(1, count - text.len(), text.len())
}

fn distance(a: Tensor<3>, b: Tensor<3>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).abs().max().into_scalar()
}

#[test]
fn padding_on_either_side_changes_nothing() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for method in methods() {
            let model = attached(&base, "mine", method.as_ref());
            let title = method.info().title;
            let filler = [50; LONG.len() - SHORT.len()];
            for left in [false, true] {
                let (short, at) = if left {
                    ([filler.as_slice(), &SHORT].concat(), filler.len())
                } else {
                    ([SHORT.as_slice(), &filler].concat(), 0)
                };
                let padding: Vec<bool> = (0..LONG.len())
                    .map(|place| !(at..at + SHORT.len()).contains(&place))
                    .chain([false; LONG.len()])
                    .collect();
                let padding = TensorData::new(padding, [2, LONG.len()]);
                let padding = Tensor::<2, Bool>::from_data(padding, &device);
                let context = ForwardContext::new()
                    .with_padding(Some(padding))
                    .with_tasks(TaskIds::new(TASKS));
                let ids = tensor(&[short, LONG.to_vec()].concat(), 2, &device);
                let logits = model.forward_in(ids, context);
                let first = logits.dims()[1] - LONG.len();
                let short = logits.clone().narrow(0, 0, 1);
                let short = short.narrow(1, first + at, SHORT.len());
                let long = logits.narrow(0, 1, 1).narrow(1, first, LONG.len());
                let what = format!("{title} on {name}, padded left: {left}");
                let moved = distance(short, alone(&model, &SHORT, TASKS[0], &device));
                assert!(moved < 1e-4, "{what}: {moved}");
                let moved = distance(long, alone(&model, &LONG, TASKS[1], &device));
                assert!(moved < 1e-4, "{what}: {moved}");
            }
        }
    }
}

fn loss(model: &Llama, batch: &LmBatch) -> f64 {
    f64::from(model.loss(batch).into_scalar::<f32>())
}

fn of_text(text: &[i64], task: usize) -> LmBatch {
    let ids: Vec<u32> = text.iter().map(|id| *id as u32).collect();
    LmBatch {
        tasks: Some(TaskIds::new([task])),
        ..LmBatch::of_text(&ids)
    }
}

/// The loss of a batch for training: rows padded on either side, and documents that share a row.
#[test]
fn batches_for_training_have_the_losses_of_their_texts() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for method in methods() {
            let model = attached(&base, "mine", method.as_ref());
            let title = method.info().title;
            let (short, long) = (of_text(&SHORT, TASKS[0]), of_text(&LONG, TASKS[1]));
            let apart = loss(&model, &short) + loss(&model, &long);
            let count = LONG.len() - SHORT.len();
            for left in [false, true] {
                let side = |values: Vec<i64>, filler: i64| {
                    let filler = vec![filler; count];
                    if left {
                        [filler, values].concat()
                    } else {
                        [values, filler].concat()
                    }
                };
                let ids: Vec<u32> = side(SHORT.to_vec(), 50)
                    .iter()
                    .map(|id| *id as u32)
                    .collect();
                let padded = side(vec![0; SHORT.len()], 1)
                    .into_iter()
                    .map(|mark| mark == 1);
                let batch = LmBatch {
                    ids: [ids, long.ids.clone()].concat(),
                    targets: [side(short.targets.clone(), -100), long.targets.clone()].concat(),
                    padding: padded.chain([false; LONG.len()]).collect(),
                    tasks: Some(TaskIds::new(TASKS)),
                    rows: 2,
                    length: LONG.len(),
                    segments: None,
                };
                let found = loss(&model, &batch);
                let what = format!("{title} on {name}, padded left: {left}");
                assert!(
                    (found / apart - 1.0).abs() < 1e-5,
                    "{what}: {found}, {apart}"
                );
            }

            // Documents of one task, whose prompt all of them see.
            let short = of_text(&SHORT, TASKS[1]);
            let apart = loss(&model, &short) + loss(&model, &long);
            let packed = LmBatch {
                ids: [short.ids, long.ids].concat(),
                targets: [short.targets, long.targets].concat(),
                segments: Some([vec![0; SHORT.len()], vec![1; LONG.len()]].concat()),
                tasks: Some(TaskIds::new([TASKS[1]])),
                padding: Vec::new(),
                rows: 1,
                length: SHORT.len() + LONG.len(),
            };
            let found = loss(&model, &packed);
            let what = format!("{title} on {name}, packed");
            assert!(
                (found / apart - 1.0).abs() < 1e-5,
                "{what}: {found}, {apart}"
            );
        }
    }
}

#[test]
fn a_text_read_piece_by_piece_gives_the_same_logits() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        for method in methods() {
            let model = attached(&base, "mine", method.as_ref());
            let whole = alone(&model, &LONG, 1, &device);
            let context = || ForwardContext::new().with_tasks(TaskIds::new([1]));
            let mut cache = model.cache();
            for piece in [&LONG[..3], &LONG[3..6]] {
                model.next_logits_in(tensor(piece, 1, &device), context(), &mut cache);
            }
            let last = tensor(&LONG[6..], 1, &device);
            let last = model.next_logits_in(last, context(), &mut cache);
            assert_eq!(cache.len(), LONG.len() + TOKENS);
            let moved = distance(whole.narrow(1, 6, 1), last.unsqueeze_dim(1));
            assert!(moved < 1e-5, "{} on {name}: {moved}", method.info().title);
        }
    }
}

/// A generation has a task, and says what the model of that task says.
#[test]
fn a_text_is_generated_for_a_task() {
    let (_, device) = cpu_devices().remove(0);
    let base = Llama::tiny(&device);
    let model = attached(&base, "mine", &MultitaskPromptTuningConfig::new(TOKENS, 2));
    let config = GenerateConfig::default()
        .with_max_new_tokens(6)
        .with_eos_token_id([]);
    for task in TASKS {
        let found = model
            .generate_ids(&[7, 30, 21], &config.clone().with_task(task))
            .unwrap();
        let mut expected = vec![7, 30, 21];
        for _ in 0..6 {
            let logits = alone(&model, &expected, task, &device);
            let last = logits.narrow(1, expected.len() - 1, 1);
            expected.push(last.argmax(2).into_scalar::<i64>());
        }
        let found: Vec<i64> = found.into_iter().map(i64::from).collect();
        assert_eq!(found, expected[3..]);
    }
    let [one, other] = TASKS.map(|task| alone(&model, &[7, 30, 21], task, &device));
    assert!(distance(one, other) > 1e-3, "the tasks say the same");
}

/// Prompts one behind the other, and rows with prompts of their own.
#[test]
fn several_prompts_act_at_once() {
    for (name, device) in cpu_devices() {
        let base = Llama::tiny(&device);
        let one = attached(&base, "tasks", &MultitaskPromptTuningConfig::new(TOKENS, 2));
        let model = attached(&one, "context", &CptConfig::new([5, 17, 60]));
        let both = model.activate(&["tasks", "context"]).unwrap();
        assert_eq!(both.virtual_tokens(), 2 * TOKENS);
        let ids = || tensor(&[SHORT, SHORT].concat(), 2, &device);
        let context = || ForwardContext::new().with_tasks(TaskIds::new(TASKS));
        let logits = both.forward_in(ids(), context());
        assert_eq!(logits.dims(), [2, 2 * TOKENS + SHORT.len(), 101]);
        let rows = [Some("tasks"), Some("context")];
        let mixed = model.set_adapter_per_row(&rows).unwrap();
        let mixed = mixed.forward_in(ids(), context());
        for (row, adapter) in ["tasks", "context"].into_iter().enumerate() {
            let only = model.activate(&[adapter]).unwrap();
            let only = only.forward_in(ids(), context()).narrow(0, row, 1);
            let moved = distance(mixed.clone().narrow(0, row, 1), only);
            assert!(moved < 1e-5, "{adapter} on {name}: {moved}");
        }
    }
}

/// Virtual tokens behind a text's first token are computed in front of it, and the text's own first token stands for it.
#[test]
fn behind_the_first_token_it_stands_for_the_text() {
    let behind = || AdapterHubPrompt {
        combine: "prefix_after_bos".into(),
        ..AdapterHubPrompt::default()
    };
    let prompt = |places| PromptTuningConfig::new(TOKENS).with_adapterhub(places);
    for (backend, device) in cpu_devices() {
        let bert = BertConfig::tiny().init(&device);
        let base = BertClassifier::new_head(bert, 3, Pooling::Cls, 0.0, &device).unwrap();
        let attached = |places| {
            device.seed(3);
            base.attach("a", &prompt(places)).unwrap()
        };
        let (front, back) = (attached(AdapterHubPrompt::default()), attached(behind()));
        let ids = tensor(&SHORT, 1, &device);
        let states = |model: &BertClassifier| model.bert.forward(ids.clone(), None).hidden;
        let hidden = states(&back);
        let distance: f32 = (states(&front) - hidden.clone()).abs().max().into_scalar();
        assert!(distance == 0.0, "{backend}: {distance}");
        let pooler = base.bert.pooler.as_ref().unwrap();
        let logits = |at: usize| {
            let state = hidden.clone().narrow(1, at, 1).squeeze_dim::<2>(1);
            base.classifier.forward(pooler.dense.forward(state).tanh())
        };
        for (model, at) in [(&front, 0), (&back, TOKENS)] {
            let found = model.forward(ids.clone(), None);
            let distance: f32 = (found - logits(at)).abs().max().into_scalar();
            assert!(distance < 1e-5, "{backend}: {distance}");
        }
        let refused = Llama::tiny(&device).attach("a", &prompt(behind()));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("combine"), "{refused}");
    }
}
