//! SmolLM2-135M-Instruct: its published weights, and a passage of a novel.

use std::path::Path;

use burn::module::{Lora, Module as _};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::additive::LstConfig;
use peft::core::PeftModule as _;
use peft_models::{ExportConfig, ExportDtype, Llama, LlamaLoader, LlamaTokenizer, LmBatch};
use peft_quantization::QuantizationConfig;
use peft_train::{AdamW, Record, TrainConfig};

use super::{Failure, Work, infer, lora, matching, train_by, trainable, weight_bytes};
use crate::assets;
use crate::case::{Case, Engine, Method, Pass, RANK};
use crate::memory_model::Decoder;

const QV: [&str; 2] = ["q_proj", "v_proj"];
const TOKENS: usize = 256;
/// Characters that are more than these tokens.
const CHARACTERS: usize = 4000;
/// The file beside the exported model that holds the batch.
const BATCH: &str = "batch.json";

pub(super) fn work(case: Case, device: &Device) -> Result<Work, Failure> {
    let folder = assets::llama()?;
    let batch = batch(&folder)?;
    // The tokenizer's: it is no part of a step, nor of loading.
    peft::core::ops::give_back_freed_memory();
    let model = prepared(load(&folder, case.method, device)?, case)?;
    if case.pass == Pass::Infer {
        let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, TOKENS]), device);
        // A prompt is read, and the first token of the answer is known.
        return Ok(infer(model, TOKENS, move |model: &Llama| {
            model
                .next_logits(ids.clone(), &mut model.cache())
                .into_data()
        }));
    }
    let modelled = !matches!(case.method, Method::Lst | Method::LoraAllHalves);
    let modelled = modelled && case.engine == Engine::Ours;
    let memory_model = modelled.then(|| sizes(&model).memory_model(case.method));
    let checkpointing = case.method.checkpointed();
    let scale = 1.0 / batch.target_count() as f64;
    let gradients = move |model: &Llama| model.loss_and_gradients(&batch, checkpointing, scale).1;
    let mut work = if case.engine.is_ours() {
        // As the trainer does it.
        let mut optimizer = AdamW::new(&TrainConfig::new().with_weight_decay(0.01));
        train_by(model, TOKENS, device, move |model: Llama| {
            optimizer.prepare(&model);
            let gradients = gradients(&model);
            Ok(optimizer.step(1e-4, model, gradients))
        })
    } else {
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
        train_by(model, TOKENS, device, move |model: Llama| {
            let gradients = gradients(&model);
            Ok(optimizer.step(1e-4, model, gradients))
        })
    };
    work.memory_model = memory_model;
    Ok(work)
}

/// The base, in 4 or in 16 bits where the method says so.
fn load(folder: &Path, method: Method, device: &Device) -> Result<Llama, Failure> {
    let quantizer = match method {
        Method::QloraAllFp4 => QuantizationConfig::fp4(),
        _ => QuantizationConfig::nf4(),
    };
    let quantizer = quantizer.with_double_quantization(true);
    let loader = LlamaLoader::new(folder);
    if method == Method::LoraAllHalves {
        let halves = QuantizationConfig::bf16();
        Ok(loader.with_quantizer(&halves).load(device)?)
    } else if method.packed() {
        Ok(loader.with_quantizer(&quantizer).load(device)?)
    } else {
        Ok(loader.load(device)?)
    }
}

/// The model with what the case's method puts on it.
fn prepared(model: Llama, case: Case) -> Result<Llama, Failure> {
    let method = case.method;
    match method {
        Method::Full | Method::Base => Ok(model),
        Method::LoraQv | Method::LoraAll if case.engine == Engine::Burn => {
            let pattern = if method.all_linear() {
                r"_proj\.weight$"
            } else {
                r"(q|v)_proj\.weight$"
            };
            let lora = Lora::new(RANK, 16.0).set_param_group(matching(pattern)?);
            Ok(model.apply_lora(lora))
        }
        Method::LoraQv | Method::QloraQv => Ok(model.attach("bench", &lora(method, QV))?),
        Method::Lst => Ok(model.attach("bench", &LstConfig::new())?),
        _ if method.all_linear() => Ok(model.attach("bench", &lora(method, QV))?),
        _ => Err(format!("no `{}` here", method.name()).into()),
    }
}

fn sizes(model: &Llama) -> Decoder {
    let config = model.config();
    let (trainable, largest) = trainable(model);
    Decoder {
        layers: config.num_hidden_layers as u64,
        width: config.hidden_size as u64,
        queries: (config.num_attention_heads * config.head_dim) as u64,
        keys: (config.num_key_value_heads * config.head_dim) as u64,
        inside: config.intermediate_size as u64,
        vocabulary: config.vocab_size as u64,
        tokens: TOKENS as u64,
        weights: weight_bytes(model),
        trainable: trainable as u64,
        largest: largest as u64,
    }
}

/// The first tokens of a novel, each with the one that follows it.
fn batch(folder: &Path) -> Result<LmBatch, Failure> {
    let tokenizer = LlamaTokenizer::load(folder)?;
    let passage: String = text()?.chars().take(CHARACTERS).collect();
    let ids = tokenizer.encode(&passage, true)?;
    let (Some(now), Some(next)) = (ids.get(..TOKENS), ids.get(1..=TOKENS)) else {
        let count = ids.len();
        return Err(format!(
            "the passage has {count} tokens, and {TOKENS} and one more are needed"
        )
        .into());
    };
    Ok(LmBatch {
        ids: now.to_vec(),
        targets: next.iter().map(|id| i64::from(*id)).collect(),
        rows: 1,
        length: TOKENS,
        ..LmBatch::default()
    })
}

/// The novel that is not learned from.
pub(crate) fn text() -> Result<String, Failure> {
    let path = assets::novel(assets::HELD_OUT);
    match peft_train::data::read(&path)?.into_iter().next() {
        Some(Record::Text(text)) => Ok(text),
        _ => Err(format!("{} holds no text", path.display()).into()),
    }
}

/// Writes the model as Hugging Face's transformers read it, with the batch beside it: peers do the same work.
pub(crate) fn export(device: &str, folder: &Path) -> Result<(), Failure> {
    let device = peft::core::device::device(device)?;
    let source = assets::llama()?;
    let config = ExportConfig::new().with_dtype(ExportDtype::F32);
    Llama::load(&source, &device)?.export_with(folder, None, &config)?;
    let batch = batch(&source)?;
    let json = serde_json::json!({ "ids": batch.ids, "targets": batch.targets });
    Ok(peft_core::files::write(
        folder.join(BATCH),
        json.to_string(),
    )?)
}
