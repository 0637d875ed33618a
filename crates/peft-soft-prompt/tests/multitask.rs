//! Multitask prompt tuning: which row gets which prompt, and where the prompts start.

use burn::module::{Module as _, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, Tolerance};
use peft_conformance::TinyTransformer;
use peft_core::device::cpu_devices;
use peft_core::method::PromptAdapter as _;
use peft_core::nn::{ForwardContext, TaskIds};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_soft_prompt::{
    METHODS, MultitaskPromptInit, MultitaskPromptTuningConfig, MultitaskSource, PromptTuningConfig,
    SoftPrompt, TaskPrompts, TrainedPrompt,
};

fn config(tasks: usize) -> MultitaskPromptTuningConfig {
    MultitaskPromptTuningConfig::new(3, tasks).with_num_ranks(2)
}

fn state(model: &TinyTransformer, name: &str) -> TaskPrompts {
    let mut states = model.adapter_states::<TaskPrompts>(name).unwrap();
    assert_eq!(states.len(), 1);
    states.remove(0).1
}

/// The adapter with factors that change something.
fn attached(base: &TinyTransformer, name: &str, tasks: usize) -> TinyTransformer {
    base.attach(name, &config(tasks))
        .unwrap()
        .edit_adapter::<TaskPrompts>(name, |_, state| {
            // A new leaf, which is trained if the old one was.
            let larger = |param: &Param<Tensor<3>>| {
                param.clone().map(|value| {
                    let trained = value.is_require_grad();
                    (value.detach() * 40.0).detach().set_require_grad(trained)
                })
            };
            state.cols = larger(&state.cols);
            state.rows = larger(&state.rows);
        })
        .unwrap()
}

/// The prompt of one task, computed number by number.
fn expected_prompt(state: &TaskPrompts, task: usize) -> Vec<f32> {
    let values = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
    let [_, tokens, ranks] = state.cols.dims();
    let width = state.embeddings.dims()[1];
    let shared = values(state.embeddings.val().into_data());
    let (cols, rows) = (
        values(state.cols.val().into_data()),
        values(state.rows.val().into_data()),
    );
    let mut prompt = Vec::new();
    for token in 0..tokens {
        for feature in 0..width {
            let product: f64 = (0..ranks)
                .map(|rank| {
                    cols[(task * tokens + token) * ranks + rank]
                        * rows[(task * ranks + rank) * width + feature]
                })
                .sum();
            prompt.push((shared[token * width + feature] * product) as f32);
        }
    }
    prompt
}

fn ids(device: &Device) -> Tensor<2, Int> {
    let ids = [[3_i64, 4, 5], [6, 7, 8], [9, 10, 11], [3, 4, 5]];
    Tensor::from_data(TensorData::from(ids), device)
}

fn close(a: &TensorData, b: &TensorData) {
    a.assert_approx_eq(b, Tolerance::<f32>::absolute(1e-5));
}

/// Each row computes what a prompt tuning with its task's prompt computes.
#[test]
fn rows_have_the_prompts_of_their_tasks() {
    for (_, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        let model = attached(&base, "p", 3);
        let tasks = [2, 0, 1, 0];
        let run = |model: &TinyTransformer| {
            let context = ForwardContext::new().with_tasks(TaskIds::new(tasks));
            model.forward_in(ids(&device), context)
        };
        let output = run(&model);
        for (row, task) in tasks.into_iter().enumerate() {
            let prompt = TensorData::new(expected_prompt(&state(&model, "p"), task), [3, 32]);
            let plain = base.attach("plain", &PromptTuningConfig::new(3)).unwrap();
            let plain = plain
                .edit_adapter::<SoftPrompt>("plain", |_, state| {
                    state.embeddings =
                        Param::from_tensor(Tensor::from_data(prompt.clone(), &device));
                })
                .unwrap();
            let expected = run(&plain).narrow(0, row, 1).into_data();
            close(&output.clone().narrow(0, row, 1).into_data(), &expected);
            let task_prompt = TrainedPrompt::of_task(&model, "p", task).unwrap();
            close(task_prompt.data(), &prompt);
        }
    }
}

/// Rows with adapters of their own see their own tasks.
#[test]
fn tasks_follow_rows_with_adapters_of_their_own() {
    for (_, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        let model = attached(&attached(&base, "a", 3), "b", 2);
        let run = |model: &TinyTransformer| {
            let context = ForwardContext::new().with_tasks(TaskIds::new([2, 1, 0, 0]));
            model.forward_in(ids(&device), context)
        };
        let names = [Some("a"), Some("b"), Some("a"), Some("b")];
        let mixed = run(&model.set_adapter_per_row(&names).unwrap());
        let a = run(&model.activate(&["a"]).unwrap());
        // The adapter b has no task 2, so that it is asked for the others.
        let b = model.activate(&["b"]).unwrap();
        let context = ForwardContext::new().with_tasks(TaskIds::new([0, 1, 0, 0]));
        let b = b.forward_in(ids(&device), context);
        for (row, alone) in [&a, &b, &a, &b].into_iter().enumerate() {
            let of_row = |output: &Tensor<2>| output.clone().narrow(0, row, 1).into_data();
            close(&of_row(&mixed), &of_row(alone));
        }
    }
}

#[test]
fn tasks_that_were_not_trained_receive_no_gradient() {
    for (name, device) in cpu_devices() {
        let device = device.autodiff();
        let model = attached(&TinyTransformer::new(&device), "p", 3);
        let context = ForwardContext::new().with_tasks(TaskIds::new([2, 0, 2, 0]));
        let loss = model
            .forward_in(ids(&device), context)
            .powi_scalar(2)
            .mean();
        let gradients = loss.backward();
        let state = state(&model, "p");
        for gradient in [state.cols.grad(&gradients), state.rows.grad(&gradients)] {
            let moved = gradient.unwrap().abs().sum_dim(1).sum_dim(2);
            let moved: Vec<bool> = moved
                .into_data()
                .iter::<f32>()
                .map(|sum| sum > 0.0)
                .collect();
            assert_eq!(moved, [true, false, true], "{name}");
        }
    }
}

#[test]
fn one_task_needs_no_ids() {
    let (_, device) = cpu_devices().remove(0);
    let state = state(&attached(&TinyTransformer::new(&device), "p", 1), "p");
    let prompt = state.prompts(4, &ForwardContext::new());
    assert_eq!(prompt.dims(), [1, 3, 32]);
    let expected = TensorData::new(expected_prompt(&state, 0), [1, 3, 32]);
    close(&prompt.into_data(), &expected);
}

#[test]
#[should_panic(expected = "of 2 tasks, and the forward pass does not say which each row is of")]
fn several_tasks_need_ids() {
    let (_, device) = cpu_devices().remove(0);
    let state = state(&attached(&TinyTransformer::new(&device), "p", 2), "p");
    state.prompts(4, &ForwardContext::new());
}

#[test]
#[should_panic(expected = "tasks of 3 rows, and the batch has 4")]
fn every_row_needs_a_task() {
    let (_, device) = cpu_devices().remove(0);
    let model = attached(&TinyTransformer::new(&device), "p", 2);
    let context = ForwardContext::new().with_tasks(TaskIds::new([0, 1, 0]));
    model.forward_in(ids(&device), context);
}

#[test]
#[should_panic(expected = "task 2, and the adapter has 2 tasks")]
fn tasks_must_exist() {
    let (_, device) = cpu_devices().remove(0);
    let model = attached(&TinyTransformer::new(&device), "p", 2);
    let context = ForwardContext::new().with_tasks(TaskIds::new([0, 1, 2, 0]));
    model.forward_in(ids(&device), context);
}

/// As upstream's `AVERAGE_SOURCE_TASKS`, `EXACT_SOURCE_TASK` and `ONLY_SOURCE_SHARED`, for any number of new tasks.
#[test]
fn prompts_start_from_a_source() {
    for (name, device) in cpu_devices() {
        let base = TinyTransformer::new(&device);
        let trained = attached(&base, "source", 3);
        // From its file, as a user has it.
        let dir = tempfile::tempdir().unwrap();
        trained.save_adapter("source", dir.path()).unwrap();
        let loaded = base.load_adapter("source", dir.path(), METHODS).unwrap();
        let source = || MultitaskSource::of(&loaded, "source").unwrap();
        let of = |state: &TaskPrompts| {
            [
                state
                    .cols
                    .val()
                    .into_data()
                    .iter::<f64>()
                    .collect::<Vec<_>>(),
                state.rows.val().into_data().iter::<f64>().collect(),
            ]
        };
        let theirs = state(&trained, "source");
        let factors = of(&theirs);
        let part = |values: &[f64], task: usize| {
            let size = values.len() / 3;
            values[task * size..(task + 1) * size].to_vec()
        };
        let mean = |values: &[f64]| -> Vec<f64> {
            let parts = [0, 1, 2].map(|task| part(values, task));
            (0..parts[0].len())
                .map(|at| (parts[0][at] + parts[1][at] + parts[2][at]) / 3.0)
                .collect()
        };
        let start = |config: MultitaskPromptTuningConfig| {
            let state = state(&base.attach("p", &config).unwrap(), "p");
            let shared = state.embeddings.val().into_data();
            assert_eq!(shared, theirs.embeddings.val().into_data(), "{name}");
            of(&state)
        };
        let average = start(config(2).with_average_of(source()));
        let exact = start(config(2).with_task_of(source(), 1));
        for side in 0..2 {
            let twice = |one: Vec<f64>| [one.clone(), one].concat();
            let expected = twice(mean(&factors[side]));
            assert!(
                average[side]
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| (a - b).abs() < 1e-6)
            );
            assert_eq!(exact[side], twice(part(&factors[side], 1)), "{name}");
        }
        // Fresh factors, of any rank.
        let fresh = start(config(2).with_num_ranks(5).with_shared_of(source()));
        let values: Vec<f64> = fresh.concat();
        let deviation = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        assert!((deviation - 0.02).abs() < 0.004, "{name}: {deviation}");
    }
}

#[test]
fn what_cannot_start_is_refused() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let trained = attached(&base, "source", 3);
    let source = || MultitaskSource::of(&trained, "source").unwrap();
    let field = |config: MultitaskPromptTuningConfig| match base.attach("p", &config).unwrap_err() {
        Error::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    let two = MultitaskPromptTuningConfig {
        num_transformer_submodules: Some(2),
        ..config(1)
    };
    let no_source = config(1).with_prompt_tuning_init(MultitaskPromptInit::AverageSourceTasks);
    let other_rank = config(1).with_num_ranks(1).with_average_of(source());
    let other_length = MultitaskPromptTuningConfig::new(4, 1).with_shared_of(source());
    for (config, expected) in [
        (config(0), "num_tasks"),
        (config(1).with_num_ranks(0), "num_ranks"),
        (MultitaskPromptTuningConfig::new(0, 1), "num_virtual_tokens"),
        (two, "num_transformer_submodules"),
        (no_source, "prompt_tuning_init"),
        (other_rank, "num_ranks"),
        (other_length, "source"),
        (
            config(1).with_task_of(source(), 3),
            "prompt_tuning_init_task",
        ),
        (config(1).with_text("good", []), "init_token_ids"),
    ] {
        assert_eq!(field(config), expected);
    }
    let plain = base.attach("plain", &PromptTuningConfig::new(3)).unwrap();
    assert!(MultitaskSource::of(&plain, "plain").is_err());
    assert!(TrainedPrompt::of_task(&plain, "plain", 0).is_err());
    assert!(TrainedPrompt::of_task(&trained, "source", 3).is_err());
    assert!(TrainedPrompt::of(&trained, "source").is_err());
}

/// What is written names no source, which a reader would look for.
#[test]
fn a_file_needs_no_source() {
    let (_, device) = cpu_devices().remove(0);
    let base = TinyTransformer::new(&device);
    let trained = attached(&base, "source", 3);
    let source = MultitaskSource::of(&trained, "source").unwrap();
    let model = base
        .attach("p", &config(2).with_average_of(source))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("p", dir.path()).unwrap();
    let json = peft_core::checkpoint::read_config(dir.path()).unwrap();
    assert_eq!(json["prompt_tuning_init"], "RANDOM");
    let loaded = base.load_adapter("p", dir.path(), METHODS).unwrap();
    assert_eq!(
        loaded.valid().adapter_tensors("p").unwrap(),
        model.adapter_tensors("p").unwrap()
    );
}
