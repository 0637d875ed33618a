//! What of a conversation is learned, with the chat templates that people have.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use peft_core::PeftModule as _;
use peft_models::{Llama, LlamaTokenizer, Moment};
use peft_reparameterization::LoraConfig;
use peft_train::data::NO_TARGET;
use peft_train::{
    ChatTemplate, Control, Dataset, Error, Event, Length, TrainConfig, Trainer, checkpoint, data,
};
use serde_json::{Value, json};

/// Turns, each with its end.
const TURNS: &str = "{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' + \
                     message['content'] + '<|end|>\\n' }}{% endfor %}";
const PROMPT: &str = "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}";
/// Asks who says the first message.
const FIRST_MESSAGE: &str = "{% if messages[0]['role'] == 'system' %}{{ '<|start|>system\\n' + \
                             messages[0]['content'] + '<|end|>\\n' }}{% set messages = messages[1:] %}\
                             {% endif %}";
/// Writes a system message in front, in the loop over the messages.
const DEFAULT_SYSTEM: &str = "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
                              {{ '<|start|>system\\nBe kind.<|end|>\\n' }}{% endif %}{{ '<|start|>' + \
                              message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}";
/// Opens a thought where the model is to answer.
const THINK: &str =
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n<think>\\n' }}{% endif %}";
/// Says what time it is.
const DATED: &str =
    "{{ '<|start|>system\\nNow: ' + strftime_now('%d %b %Y %H:%M:%S') + '<|end|>\\n' }}";

/// The tiny model's folder, with another chat template.
fn written(dir: &Path, template: &str) -> LlamaTokenizer {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../peft-models/tests/golden/generate/model");
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    for (name, field, value) in [
        ("tokenizer_config.json", "chat_template", json!(template)),
        ("config.json", "max_position_embeddings", json!(1024)),
    ] {
        let file = dir.join(name);
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config[field] = value;
        fs::write(file, config.to_string()).unwrap();
    }
    LlamaTokenizer::load(dir).unwrap()
}

fn tokenizer(template: &str) -> LlamaTokenizer {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), template)
}

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn load(name: &str, tokenizer: &LlamaTokenizer, config: &TrainConfig) -> Dataset {
    Dataset::load(&[file(name)], tokenizer, config).unwrap()
}

/// The text of a one-row dataset, and what of it is learned, in one piece where it is.
fn texts(data: &Dataset, tokenizer: &LlamaTokenizer) -> (String, Vec<String>) {
    assert_eq!(data.len(), 1);
    let batch = data.batch(&[0]);
    let learned = batch.targets.split(|target| *target == NO_TARGET);
    let learned = learned.filter(|run| !run.is_empty()).map(|run| {
        let ids: Vec<u32> = run.iter().map(|id| u32::try_from(*id).unwrap()).collect();
        tokenizer.decode(&ids, false).unwrap()
    });
    let learned = learned.collect();
    (tokenizer.decode(&batch.ids, false).unwrap(), learned)
}

#[test]
fn the_assistant_may_open() {
    let plain = format!("{FIRST_MESSAGE}{TURNS}{PROMPT}");
    let system = format!("{DEFAULT_SYSTEM}{PROMPT}");
    let spoken =
        "<|start|>assistant\nGood morning, front desk.<|end|>\n<|start|>user\nDo you have a towel?";
    for (template, front) in [(plain, ""), (system, "<|start|>system\nBe kind.<|end|>\n")] {
        let tokenizer = tokenizer(&template);
        let data = load("assistant-first.jsonl", &tokenizer, &TrainConfig::new());
        let (text, learned) = texts(&data, &tokenizer);
        let begins = format!("<|begin|>{front}{spoken}");
        assert!(text.starts_with(&begins), "{text}");
        let answers = [
            "Good morning, front desk.<|end|>\n",
            "Yes, third floor.<|end|>\n",
        ];
        assert_eq!(learned, answers, "{template}");
    }
}

/// Marks what the assistant says, as TRL's templates do.
const GENERATION: &str = "{% for message in messages %}{{ '<|start|>' + message['role'] + '\\n' }}\
                          {% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + \
                          '<|end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|end|>' }}\
                          {% endif %}{{ '\\n' }}{% endfor %}";

#[test]
fn generation_tags_change_nothing_of_what_is_learned() {
    let marked = tokenizer(&format!("{GENERATION}{PROMPT}"));
    let plain = tokenizer(&format!("{TURNS}{PROMPT}"));
    for name in ["weight-zero.jsonl", "assistant-first.jsonl"] {
        let config = TrainConfig::new();
        let with_tags = texts(&load(name, &marked, &config), &marked);
        assert!(!with_tags.1.is_empty());
        assert_eq!(with_tags, texts(&load(name, &plain, &config), &plain));
    }
}

#[test]
fn a_thought_that_the_prompt_opens_is_no_hindrance_and_weight_0_is_not_learned() {
    for prompt in [THINK, PROMPT] {
        let tokenizer = tokenizer(&format!("{TURNS}{prompt}"));
        let config = TrainConfig::new();
        let data = load("weight-zero.jsonl", &tokenizer, &config);
        let (text, learned) = texts(&data, &tokenizer);
        assert!(
            text.contains("Lima, maybe?") && !text.contains("think"),
            "{text}"
        );
        assert_eq!(learned, ["N'Djamena.<|end|>\n"]);
        let all = load(
            "weight-zero.jsonl",
            &tokenizer,
            &config.with_completion_only(false),
        );
        let (_, learned) = texts(&all, &tokenizer);
        assert!(!learned.concat().contains("Lima"), "{learned:?}");
    }
}

#[test]
fn what_cannot_be_learned_is_refused_with_its_line() {
    let error = data::read(&file("tool-call.jsonl"))
        .unwrap_err()
        .to_string();
    for part in ["tool-call.jsonl, line 1", "message 2", "`tool_calls`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn system_and_history_are_read_and_learned_as_llama_factory_does() {
    let tokenizer = tokenizer(&format!("{TURNS}{PROMPT}"));
    let data = load("system-history.jsonl", &tokenizer, &TrainConfig::new());
    let (text, learned) = texts(&data, &tokenizer);
    let begins = "<|begin|><|start|>system\nYou run a lakeside kiosk.<|end|>\n<|start|>user\nWhen do you open?";
    assert!(text.starts_with(begins), "{text}");
    assert_eq!(
        learned,
        ["At nine.<|end|>\n", "Then it is closed.<|end|>\n"]
    );
}

#[test]
fn line_ends_of_windows_are_those_of_others() {
    let tokenizer = tokenizer(TURNS);
    let dir = tempfile::tempdir().unwrap();
    let text = "First line of the log.\nSecond line of the log.\n\nA new paragraph.\n";
    let rows = [text.to_string(), text.replace('\n', "\r\n")].map(|text| {
        let path = dir.path().join("log.txt");
        fs::write(&path, text).unwrap();
        let data = Dataset::load(&[path], &tokenizer, &TrainConfig::new()).unwrap();
        data.batch(&[0]).ids
    });
    assert_eq!(rows[0], rows[1]);
}

fn at(time: &str) -> TrainConfig {
    let time: Moment = time.parse().unwrap();
    TrainConfig::new()
        .with_length(Length::Steps(4))
        .with_batch_size(1)
        .with_max_length(128)
        .with_learning_rate(1e-2)
        .with_save_every(2)
        .with_time(time)
}

#[test]
fn a_template_writes_the_time_of_the_configuration() {
    let tokenizer = tokenizer(&format!("{DATED}{TURNS}{PROMPT}"));
    let data = |config: &TrainConfig| load("assistant-first.jsonl", &tokenizer, config);
    let noon = data(&at("2026-11-30T12:00:00+00:00"));
    let (text, learned) = texts(&noon, &tokenizer);
    assert!(text.contains("Now: 30 Nov 2026 12:00:00<|end|>"), "{text}");
    assert_eq!(learned.len(), 2);
    // The same, whenever it is made.
    assert_eq!(
        data(&at("2026-11-30T12:00:00+00:00")).digest(),
        noon.digest()
    );
    // The same instant, where clocks show another time.
    let east = data(&at("2026-11-30T20:00:00+08:00"));
    assert!(texts(&east, &tokenizer).0.contains("30 Nov 2026 20:00:00"));
    assert_ne!(east.digest(), noon.digest());
    // Marks of one's own say no time.
    let marks = at("2026-11-30T20:00:00+08:00").with_chat(ChatTemplate::chatml());
    assert!(!texts(&data(&marks), &tokenizer).0.contains("Now"));
}

#[test]
fn a_run_on_dated_data_goes_on_another_day() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = written(dir.path(), &format!("{DATED}{TURNS}{PROMPT}"));
    let device: Device = peft_core::device::cpu_devices().remove(0).1.autodiff();
    let base = Llama::load(dir.path(), &device).unwrap();
    device.seed(1);
    let model = base.attach("mine", &LoraConfig::new(2)).unwrap();
    let data = |config: &TrainConfig| load("weight-zero.jsonl", &tokenizer, config);
    let before = at("2026-11-30T23:50:00+01:00");
    let train = |mut trainer: Trainer, config: &TrainConfig| {
        let trained = trainer.train(model.clone(), &data(config), None);
        trained
            .map(|(_, outcome)| outcome.losses)
            .map_err(Error::from)
    };
    let whole = train(Trainer::new(before.clone()).unwrap(), &before).unwrap();
    let out = dir.path().join("out");
    let stop = |event: &Event| match event {
        Event::Step(report) if report.step == 2 => Control::Stop,
        _ => Control::Continue,
    };
    let trainer = Trainer::new(before.clone()).unwrap();
    let trainer = trainer.with_output(&out).with_observer(stop);
    assert_eq!(train(trainer, &before).unwrap().len(), 2);

    // The next day, somewhere else.
    let newest = checkpoint::latest(&out).unwrap().unwrap();
    let after = at("2026-12-01T07:00:00-03:00");
    let resumed = |config: &TrainConfig| {
        let trainer = Trainer::new(config.clone()).unwrap();
        train(trainer.with_resume(&newest), config)
    };
    let error = resumed(&after).unwrap_err().to_string();
    for part in [
        "training data",
        "2026-11-30T23:50:00+01:00",
        "`checkpoint::time`",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let time = checkpoint::time(&newest).unwrap();
    assert_eq!(time, before.time);
    assert_eq!(resumed(&after.with_time(time)).unwrap(), whole);
}
