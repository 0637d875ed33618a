//! MiniLM-L6 as a classifier.

use std::env;
use std::path::Path;
use std::process::Command;

use burn::module::{Lora, Module as _, ParamGroup};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::additive::{BottleneckConfig, LstConfig};
use peft::core::PeftModule as _;
use peft::core::calibration::Calibrate as _;
use peft::reparameterization::VeloraConfig;
use peft::selective::{
    BitFitConfig, DiffPruningConfig, FishMaskConfig, HeadOnlyConfig, PartialConfig,
    SuperTuningConfig,
};
use peft::soft_prompt::PromptTuningConfig;
use peft_models::{BertClassifier, BertConfig, Pooling};

use super::{Failure, Work, infer, lora, matching, train, trainable};
use crate::case::{Case, Engine, Method, Pass, Shape};
use crate::memory_model::Encoder;

/// The adapter's name.
const NAME: &str = "bench";

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
    let labels = labels(rows, device);
    let cross_entropy = CrossEntropyLossConfig::new().init(device);
    let virtual_tokens = model.bert.embeddings.prompt.virtual_tokens() * rows;
    let (trainable, largest) = trainable(&model);
    let encoder = Encoder {
        layers: case.method.last_blocks().unwrap_or(6) as u64,
        width: 384,
        tokens: (tokens + virtual_tokens) as u64,
        total: model.counts().total as u64,
        trainable: trainable as u64,
        largest: largest as u64,
    };
    let mut work = train(model, tokens, device, move |model: &BertClassifier| {
        let logits = model.forward(ids.clone(), Some(padding.clone()));
        cross_entropy.forward(logits, labels.clone())
    })?;
    // There is none of a second network, of sparse changes, of gates and of what is kept in compressed form.
    let modelled = case.engine == Engine::Ours
        && !matches!(
            case.method,
            Method::Lst
                | Method::Sparse
                | Method::FishMask
                | Method::DiffPruning
                | Method::VeloraAll
        );
    work.memory_model = modelled.then(|| encoder.memory_model(case.method));
    Ok(work)
}

/// The first class and the second in turn.
fn labels(rows: usize, device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i64> = (0..rows).map(|row| (row % 2) as i64).collect();
    Tensor::from_data(labels.as_slice(), device)
}

/// Chooses `FishMask`'s elements, and writes the adapter.
pub(crate) fn choose_mask(device: &str, folder: &Path) -> Result<(), Failure> {
    let device = peft::core::device::device(device)?;
    device.seed(1);
    let model = classifier(0.0, &device)?.train();
    let device = device.autodiff();
    let (ids, padding) = batch([1, 64], &device);
    let labels = labels(1, &device);
    let cross_entropy = CrossEntropyLossConfig::new().init(&device);
    let config = FishMaskConfig::new().with_modules_to_save(["classifier"]);
    let loss = |model: &BertClassifier, ()| {
        let logits = model.forward(ids.clone(), Some(padding.clone()));
        cross_entropy.forward(logits, labels.clone())
    };
    let model = model.attach_on(NAME, &config, [()], loss)?;
    Ok(model.save_adapter(NAME, folder)?)
}

/// The model with a mask that another process chose: choosing needs gradients of all elements, and the memory of a step is
/// what is asked for.
fn masked(model: &BertClassifier) -> Result<BertClassifier, Failure> {
    let folder = tempfile::tempdir()?;
    let status = Command::new(env::current_exe()?)
        .arg("mask")
        .arg(folder.path())
        .status()?;
    if !status.success() {
        return Err("the mask could not be chosen".into());
    }
    Ok(model.load_adapter(NAME, folder.path(), &peft::methods())?)
}

/// The model with what the case's method puts on it.
fn prepared(model: BertClassifier, case: Case) -> Result<BertClassifier, Failure> {
    const QV: [&str; 2] = ["query", "value"];
    let head = ["classifier"];
    let name = NAME;
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
        Method::FishMask => masked(&model)?,
        Method::DiffPruning => {
            let config = DiffPruningConfig::new().with_modules_to_save(head);
            model.attach(name, &config)?
        }
        Method::VeloraAll => {
            let config = lora(case.method, QV).with_velora_config(VeloraConfig::default());
            model.attach(name, &config.with_modules_to_save(head))?
        }
        Method::Last1 | Method::Last2 | Method::Last4 | Method::Last6 => {
            let blocks = case.method.last_blocks().unwrap_or_default();
            let config = PartialConfig::last(blocks).with_in_place(true);
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
