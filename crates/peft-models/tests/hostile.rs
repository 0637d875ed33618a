//! Damaged and hostile model files: refused, or a model that computes, in bounded time and memory and
//! without a panic.
//!
//! A fuzzer of folders in Hugging Face's layout and of GGUF files: each case damages a whole model in
//! a few places. `PROPTEST_CASES=100000 cargo test --release -p peft-models --test hostile` runs as many;
//! the number is what sets the time. What panics in the crate `tokenizers` is an error by the time it
//! gets here, but is written to the screen where a test fails.

#[path = "hostile/bytes.rs"]
mod bytes;
#[path = "hostile/folder.rs"]
mod folder;
#[path = "hostile/gguf.rs"]
mod gguf;
#[path = "hostile/gguf_damage.rs"]
mod gguf_damage;
#[path = "hostile/known.rs"]
mod known;
#[path = "hostile/tensors.rs"]
mod tensors;
#[path = "hostile/values.rs"]
mod values;

use std::alloc::System;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use cap::Cap;
use folder::Folder;
use peft_core::device::cpu_devices;
use peft_models::gguf::Gguf;
use peft_models::{GenerateConfig, Llama, LlamaTokenizer, LoadError, Message};
use proptest::prelude::*;
use proptest::sample::Index;

/// The models are some 100 KiB, and tests run beside each other; whoever asks for more than 256 MiB is
/// told that there is no memory, and the process ends.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 1 << 28);

/// The longest that a case may take.
const LIMIT: Duration = Duration::from_secs(2);

/// The folder without a tokenizer.
const BASE: &str = "llama/base";
/// The folder with one.
const MODEL: &str = "generate/model";

/// A text with special tokens of all the tokenizers.
const TEXT: &str = "the cat <|end|><s> sät\n\n  on 12345 mats, aaa";

static FOLDERS: LazyLock<Vec<Folder>> = LazyLock::new(|| {
    let (base, model) = (Folder::golden(BASE), Folder::golden(MODEL));
    vec![
        base.sharded(),
        model.quantized(),
        model.sharded(),
        model,
        base,
    ]
});

static FILES: LazyLock<Vec<gguf::File>> =
    LazyLock::new(|| ["gpt2", "llama"].map(gguf::File::tiny).to_vec());

/// Files of tensors of all types, and of a tokenizer alone.
fn golden_gguf() -> [PathBuf; 2] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
    ["types.gguf", "spm.gguf"].map(|name| dir.join(name))
}

fn device() -> Device {
    cpu_devices().remove(0).1
}

/// Whether something was loaded. If not, there is a reason.
fn accepted<T>(result: &Result<T, LoadError>) -> bool {
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
    result.is_ok()
}

/// Loads the model and the tokenizer at `path`, and uses what was accepted: a panic is a finding, an
/// error is not. Returns what was accepted.
fn load(path: &Path) -> (bool, bool) {
    let start = Instant::now();
    let model = Llama::load(path, &device());
    let tokenizer = LlamaTokenizer::load(path);
    let ids = tokenizer.as_ref().map(tokenize).unwrap_or_default();
    if let Ok(model) = &model {
        compute(model);
    }
    if let (Ok(model), Ok(tokenizer)) = (&model, &tokenizer) {
        let settings = GenerateConfig::load(path).unwrap_or_default();
        let settings = settings.with_max_new_tokens(2);
        let prompt = &ids[..ids.len().min(8)];
        let _ = model.generate_from(tokenizer, prompt, &settings, |_| {});
    }
    let took = start.elapsed();
    assert!(took < LIMIT, "it took {took:?}");
    (accepted(&model), accepted(&tokenizer))
}

/// Logits of a few tokens are of the right shape, finite or not.
fn compute(model: &Llama) {
    let config = model.config();
    let length = config.max_position_embeddings.min(3);
    let ids = (0..length).map(|id| (id % config.vocab_size) as i64);
    let ids = TensorData::new(ids.collect::<Vec<i64>>(), [1, length]);
    let logits = model.forward(Tensor::<2, Int>::from_data(ids, &device()), None);
    assert_eq!(logits.dims(), [1, length, config.vocab_size]);
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    assert_eq!(values.len(), length * config.vocab_size);
    let settings = GenerateConfig::default().with_max_new_tokens(2);
    if let Ok(ids) = model.generate_ids(&[0], &settings) {
        assert!(ids.iter().all(|id| (*id as usize) < config.vocab_size));
    }
}

/// Ids of a text, if the tokenizer can do that; all are below the vocabulary's size.
fn tokenize(tokenizer: &LlamaTokenizer) -> Vec<u32> {
    let few: Vec<u32> = (0..tokenizer.vocab_size().min(8) as u32).collect();
    let ids = tokenizer.encode(TEXT, true).unwrap_or_default();
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
    for ids in [few.as_slice(), ids.as_slice(), &[]] {
        let _ = tokenizer.decode(ids, true);
        let _ = tokenizer.decode(ids, false);
    }
    let _ = tokenizer.chat(&[Message::system("Be brief."), Message::user("Hi")]);
    ids
}

/// Reads all tensors of a GGUF file that can be read.
fn read_tensors(path: &Path) {
    let Ok(gguf) = Gguf::open(path) else {
        return;
    };
    for name in gguf.names() {
        let count: usize = gguf.shape(name).unwrap().iter().product();
        if let Ok(values) = gguf.read(name) {
            assert_eq!(values.len(), count, "{name}");
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
        }
    }
    let _ = gguf.chat_template();
}

proptest! {
    #[test]
    fn damaged_folders_are_refused_or_compute(
        case in any::<Index>(),
        damages in prop::collection::vec(folder::damage(), 1..4),
    ) {
        let mut folder = case.get(&FOLDERS).clone();
        for damage in &damages {
            damage.apply(&mut folder);
        }
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        load(dir.path());
    }

    #[test]
    fn damaged_gguf_models_are_refused_or_compute(
        case in any::<Index>(),
        damages in prop::collection::vec(gguf_damage::damage(), 0..4),
        bytes in prop::collection::vec(bytes::damage(), 0..2),
    ) {
        let mut file = case.get(&FILES).clone();
        for damage in &damages {
            damage.apply(&mut file);
        }
        let mut content = file.bytes();
        for damage in &bytes {
            damage.apply(&mut content);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, content).unwrap();
        load(&path);
        read_tensors(&path);
    }

    #[test]
    fn damaged_gguf_files_are_refused_or_read(
        case in any::<Index>(),
        damages in prop::collection::vec(bytes::damage(), 1..4),
    ) {
        let mut content = fs::read(case.get(&golden_gguf())).unwrap();
        for damage in &damages {
            damage.apply(&mut content);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, content).unwrap();
        load(&path);
        read_tensors(&path);
    }
}

/// Else the tests above would prove nothing.
#[test]
fn whole_models_do_load() {
    for (folder, tokenizer) in FOLDERS.iter().zip([false, true, true, true, false]) {
        let dir = tempfile::tempdir().unwrap();
        folder.write(dir.path());
        let model = Llama::load(dir.path(), &device());
        assert!(model.is_ok(), "{:?}", model.err());
        assert_eq!(load(dir.path()), (true, tokenizer));
    }
    for file in FILES.iter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, file.bytes()).unwrap();
        let model = Llama::load(&path, &device());
        assert!(model.is_ok(), "{:?}", model.err());
        let tokenizer = LlamaTokenizer::load(&path).unwrap();
        let text = tokenizer.decode(&tokenize(&tokenizer), true).unwrap();
        assert!(text.contains("the"), "{text}");
        assert_eq!(load(&path), (true, true));
    }
    let [types, spm] = golden_gguf();
    assert_eq!((load(&types), load(&spm)), ((false, true), (false, false)));
}
