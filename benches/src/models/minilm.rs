//! MiniLM-L6 as a classifier.

use burn::module::{Lora, Module as _, ParamGroup};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::additive::{BottleneckConfig, LstConfig};
use peft::core::PeftModule as _;
use peft::selective::{BitFitConfig, HeadOnlyConfig, SuperTuningConfig};
use peft::soft_prompt::PromptTuningConfig;
use peft_models::{BertClassifier, BertConfig, Pooling};

use super::{Failure, Work, infer, lora, matching, train, trainable};
use crate::case::{Case, Engine, Method, Pass, Shape};
use crate::memory_model::Encoder;

/// The published configuration of `sentence-transformers/all-MiniLM-L6-v2`.
pub(crate) fn config(dropout: f64) -> Result<BertConfig, Failure> {
    Ok(serde_json::from_value(serde_json::json!({
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }))?)
}

/// MiniLM-L6 with mean pooling and two classes.
pub(crate) fn classifier(dropout: f64, device: &Device) -> Result<BertClassifier, Failure> {
    classifier_of(&config(dropout)?, device)
}

/// The same of another width or depth.
pub(crate) fn classifier_of(
    config: &BertConfig,
    device: &Device,
) -> Result<BertClassifier, Failure> {
    let mut bert = config.init(device);
    // Mean pooling has no use for it.
    bert.pooler = None;
    Ok(BertClassifier::new_head(
        bert,
        2,
        Pooling::Mean,
        0.0,
        device,
    )?)
}

/// Tokens of `rows` rows of `length`, that are among the first `vocabulary`.
pub(crate) fn ids(
    [rows, length]: [usize; 2],
    vocabulary: usize,
    device: &Device,
) -> Tensor<2, Int> {
    let ids = (0..rows * length).map(|i| (1000 + i * 7919 % (vocabulary - 1000)) as i64);
    Tensor::from_data(TensorData::new(ids.collect(), [rows, length]), device)
}

/// Tokens, and which of them are padding. Padding is handed over, as with real batches; there is none.
pub(crate) fn batch(shape: [usize; 2], device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let padding = Tensor::<2, Bool>::full(shape, false, device);
    (ids(shape, 30_000, device), padding)
}

pub(super) fn work(case: Case, device: &Device) -> Result<Work, Failure> {
    let (rows, length, dropout) = match case.shape {
        Shape::MiniLmDropout => (32, 64, 0.1),
        Shape::MiniLmOne => (1, 128, 0.0),
        Shape::MiniLmRows => (8, 32, 0.0),
        _ => (32, 64, 0.0),
    };
    let model = prepared(classifier(dropout, device)?, case)?;
    let (ids, padding) = batch([rows, length], device);
    let tokens = rows * length;
    if case.pass == Pass::Infer {
        return Ok(infer(model, tokens, move |model: &BertClassifier| {
            model
                .forward(ids.clone(), Some(padding.clone()))
                .into_data()
        }));
    }
    let labels: Vec<i64> = (0..rows).map(|row| (row % 2) as i64).collect();
    let labels = Tensor::<1, Int>::from_data(labels.as_slice(), device);
    let cross_entropy = CrossEntropyLossConfig::new().init(device);
    let virtual_tokens = model.bert.embeddings.prompt.virtual_tokens() * rows;
    let (trainable, largest) = trainable(&model);
    let encoder = Encoder {
        layers: 6,
        width: 384,
        tokens: (tokens + virtual_tokens) as u64,
        total: model.counts().total as u64,
        trainable: trainable as u64,
        largest: largest as u64,
    };
    let mut work = train(model, tokens, device, move |model: &BertClassifier| {
        let logits = model.forward(ids.clone(), Some(padding.clone()));
        cross_entropy.forward(logits, labels.clone())
    });
    // Of a second network, and of sparse changes, there is no memory model.
    let modelled =
        case.engine == Engine::Ours && !matches!(case.method, Method::Lst | Method::Sparse);
    work.memory_model = modelled.then(|| encoder.memory_model(case.method));
    Ok(work)
}

/// The model with what the case's method puts on it.
fn prepared(model: BertClassifier, case: Case) -> Result<BertClassifier, Failure> {
    const QV: [&str; 2] = ["query", "value"];
    let head = ["classifier"];
    let name = "bench";
    if case.engine == Engine::Burn && matches!(case.method, Method::LoraQv | Method::LoraAll) {
        let layers: &[&str] = match case.method {
            Method::LoraAll => &["query", "key", "value", "dense"],
            _ => &QV,
        };
        let pattern = format!(r"^bert\.encoder\..*({})\.weight$", layers.join("|"));
        let lora = Lora::new(8, 16.0).set_param_group(matching(&pattern)?);
        return Ok(model
            .apply_lora(lora)
            .set_require_grad_group(ParamGroup::from_predicate("classifier"), true));
    }
    Ok(match case.method {
        Method::Full | Method::Base => model,
        Method::Head => model.attach(name, &HeadOnlyConfig::new())?,
        Method::LoraQv | Method::LoraAll | Method::LoraQvMerged => {
            let config = lora(case.method, QV).with_modules_to_save(head);
            let model = model.attach(name, &config)?;
            if case.method == Method::LoraQvMerged {
                model.merge_and_unload()?
            } else {
                model
            }
        }
        Method::Houlsby => {
            let config = BottleneckConfig::houlsby().with_modules_to_save(head);
            model.attach(name, &config)?
        }
        Method::Lst => model.attach(name, &LstConfig::new().with_modules_to_save(head))?,
        Method::BitFit => model.attach(name, &BitFitConfig::new().with_modules_to_save(head))?,
        Method::Sparse => {
            let config = SuperTuningConfig::new().with_sparsity(0.995);
            model.attach(name, &config.with_modules_to_save(head))?
        }
        Method::Prompt => {
            let config = PromptTuningConfig::new(10).with_modules_to_save(head);
            model.attach(name, &config)?
        }
        Method::LoraQvRows => {
            let names: Vec<String> = (0..8).map(|i| format!("a{i}")).collect();
            let mut model = model;
            for name in &names {
                model = model.attach(name, &lora(case.method, QV))?;
            }
            let rows: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
            model.set_adapter_per_row(&rows)?
        }
        method => return Err(format!("no `{}` here", method.name()).into()),
    })
}
