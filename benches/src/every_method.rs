//! The latency of every registered method at batch 1, unmerged over the base.
//!
//! Base and adapted model share their weights and lie in one process. They take turns, forward pass by forward pass, and
//! a ratio is that of two passes one behind the other. So a slow moment of the machine hits both.

use std::hint::black_box;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::additive::BottleneckConfig;
use peft::core::PeftModule;
use peft::core::calibration::Calibrate as _;
use peft::core::method::{Method, MethodInfo};
use peft_models::{KvCache, Llama, LlamaConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::models::minilm;
use crate::process::median;
use crate::ratio::{Needed, Spread};

type Failure = Box<dyn std::error::Error>;

/// What the names of all ratios here begin with.
const NAME: &str = "every_method";
/// Pairs of passes in a round.
const PAIRS: usize = 5;
/// Passes before the first that counts: what is kept is composed, and memory allocated.
const WARM_UP: usize = 3;
/// The comparison's configurations, for methods whose defaults do not fit.
const ENTRIES: &str = include_str!("../compare/methods.toml");

/// A model and its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// MiniLM-L6, one row of 128 tokens.
    MiniLm,
    /// The same, one row of 16 tokens.
    MiniLmShort,
    /// A Llama of 6 layers (384 wide, 1536 inside, 6 heads of which 2 of keys, 16,384 tokens): the next token of a text
    /// of 64 tokens that is in the cache.
    NextToken,
}

impl Shape {
    const ALL: [Self; 3] = [Self::MiniLm, Self::MiniLmShort, Self::NextToken];

    fn name(self) -> &'static str {
        match self {
            Self::MiniLm => "minilm",
            Self::MiniLmShort => "minilm-short",
            Self::NextToken => "next-token",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::MiniLm => "Every method, MiniLM-L6, inference, 1 x 128 tokens",
            Self::MiniLmShort => "Every method, MiniLM-L6, inference, 1 x 16 tokens",
            Self::NextToken => "Every method, a Llama of MiniLM's width, the next token after 64",
        }
    }

    /// Of one token there is so little to compute that calls of operations count.
    fn needed(self) -> Needed {
        match self {
            Self::MiniLm | Self::MiniLmShort => Needed::AtMost(1.6),
            Self::NextToken => Needed::Nothing,
        }
    }
}

/// What was measured of one method.
#[derive(Serialize)]
pub(crate) struct Latency {
    /// `every_method/SHAPE/METHOD`.
    pub(crate) name: String,
    /// Median milliseconds of the base.
    base_ms: f64,
    /// Median milliseconds with the method.
    unmerged_ms: f64,
    /// Over the pairs of passes.
    pub(crate) ratio: Spread,
    /// Bytes of effective weights that are kept.
    kept_bytes: usize,
    /// Whether the method has its default configuration, or that of the comparison.
    default: bool,
}

/// Measures the methods whose names contain `only`.
pub(crate) fn run(only: &str, rounds: usize, device: &str) -> Result<Vec<Latency>, Failure> {
    let device = peft::core::device::device(device)?;
    device.seed(1);
    let mut all = Vec::new();
    for shape in Shape::ALL {
        let methods = peft::methods().into_iter();
        let chosen: Vec<_> = methods
            .map(|info| (info, format!("{NAME}/{}/{}", shape.name(), info.name)))
            .filter(|(_, name)| name.contains(only))
            .collect();
        if chosen.is_empty() {
            continue;
        }
        println!("\n{}\n", shape.title());
        print_head();
        let pairs = rounds * PAIRS;
        let found = match shape {
            Shape::MiniLm => of(&chosen, pairs, shape, &Encoder::new(128, &device)?),
            Shape::MiniLmShort => of(&chosen, pairs, shape, &Encoder::new(16, &device)?),
            Shape::NextToken => of(&chosen, pairs, shape, &Decoder::new(&device)),
        };
        all.extend(found);
    }
    Ok(all)
}

/// A base, and what a pass of it or of an adapted model is.
trait Subject {
    type Model: PeftModule + Module;
    /// What is made once for a model.
    type Ready;

    /// Whether the comparison's configurations for Llama-like models are the right ones.
    const LLAMA: bool;

    fn base(&self) -> &Self::Model;
    fn ready(&self, model: &Self::Model) -> Self::Ready;
    fn pass(&self, model: &Self::Model, ready: &Self::Ready) -> TensorData;
    /// Something to differentiate, of a few tokens: some methods choose by gradients what they train, and any choice takes
    /// the same time.
    fn loss(model: &Self::Model) -> Tensor<1>;
}

pub(crate) fn few_tokens(model: &impl Module) -> Tensor<2, Int> {
    Tensor::zeros([1, 4], &model.devices()[0])
}

/// MiniLM-L6 as a classifier.
struct Encoder {
    model: peft_models::BertClassifier,
    ids: Tensor<2, Int>,
    padding: Tensor<2, Bool>,
}

impl Encoder {
    fn new(tokens: usize, device: &Device) -> Result<Self, Failure> {
        let model = minilm::classifier(0.0, device)?;
        let (ids, padding) = minilm::batch([1, tokens], device);
        Ok(Self {
            model,
            ids,
            padding,
        })
    }
}

impl Subject for Encoder {
    type Model = peft_models::BertClassifier;
    type Ready = ();

    const LLAMA: bool = false;

    fn base(&self) -> &Self::Model {
        &self.model
    }

    fn ready(&self, _model: &Self::Model) {}

    fn pass(&self, model: &Self::Model, (): &()) -> TensorData {
        let padding = Some(self.padding.clone());
        model.forward(self.ids.clone(), padding).into_data()
    }

    fn loss(model: &Self::Model) -> Tensor<1> {
        model.forward(few_tokens(model), None).mean()
    }
}

/// A language model that goes on with a text.
struct Decoder {
    model: Llama,
    text: Tensor<2, Int>,
    token: Tensor<2, Int>,
}

impl Decoder {
    fn new(device: &Device) -> Self {
        let mut config = LlamaConfig::tiny();
        config.vocab_size = 16_384;
        config.hidden_size = 384;
        config.intermediate_size = 1536;
        config.num_hidden_layers = 6;
        config.num_attention_heads = 6;
        config.num_key_value_heads = 2;
        config.head_dim = 64;
        config.max_position_embeddings = 512;
        let ids = |tokens: usize| minilm::ids([1, tokens], 8000, device);
        Self {
            model: config.init(device),
            text: ids(64),
            token: ids(1),
        }
    }
}

impl Subject for Decoder {
    type Model = Llama;
    type Ready = KvCache;

    const LLAMA: bool = true;

    fn base(&self) -> &Self::Model {
        &self.model
    }

    fn ready(&self, model: &Self::Model) -> KvCache {
        let mut cache = model.cache();
        model.next_logits(self.text.clone(), &mut cache);
        cache
    }

    fn pass(&self, model: &Self::Model, cache: &KvCache) -> TensorData {
        let token = self.token.clone();
        model.next_logits(token, &mut cache.clone()).into_data()
    }

    fn loss(model: &Self::Model) -> Tensor<1> {
        model.forward(few_tokens(model), None).mean()
    }
}

/// Measures and prints methods on one subject.
fn of<S: Subject>(
    chosen: &[(&'static MethodInfo, String)],
    pairs: usize,
    shape: Shape,
    subject: &S,
) -> Vec<Latency> {
    let mut all = Vec::new();
    for (info, name) in chosen {
        match attached::<S>(info, subject.base()) {
            Ok((model, default)) => {
                let latency = measured(name, pairs, subject, &model, default);
                print_line(&latency, shape.needed());
                all.push(latency);
            }
            Err(reason) => println!("  {name:<44} left out: {reason}"),
        }
    }
    all
}

/// The base with a method: with its defaults, or as the comparison has it where these do not fit the model. What a method
/// fuses are adapters after feed-forward.
fn attached<S: Subject>(info: &MethodInfo, base: &S::Model) -> Result<(S::Model, bool), Failure> {
    let with = |json: &Value| with(info, json, base, S::loss);
    let refused = match with(&json!({})) {
        Ok(model) => return Ok((model, true)),
        Err(refused) => refused,
    };
    match entry(info.name, S::LLAMA) {
        Some(json) => Ok((with(&json)?, false)),
        None => Err(refused),
    }
}

/// The base with a method of this configuration; methods that choose by gradients what they train do so by those of
/// `loss`.
pub(crate) fn with<M: PeftModule + Module>(
    info: &MethodInfo,
    json: &Value,
    base: &M,
    loss: impl Fn(&M) -> Tensor<1>,
) -> Result<M, Failure> {
    let method: Box<dyn Method> = (info.parse)(json)?;
    let mut model = base.clone();
    for name in json["adapter_names"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        model = model.attach(name, &BottleneckConfig::pfeiffer())?;
    }
    if method.statistics().is_none() {
        return Ok(model.attach("bench", method.as_ref())?);
    }
    let trains = model.devices()[0].is_autodiff();
    let loss = |model: &M, ()| loss(model);
    let model = model
        .train()
        .attach_on("bench", method.as_ref(), [()], loss)?;
    Ok(if trains { model } else { model.valid() })
}

/// The first configuration of a method in the comparison.
pub(crate) fn entry(method: &str, llama: bool) -> Option<Value> {
    #[derive(Deserialize)]
    struct Entries {
        method: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        method: String,
        config: Option<toml::Table>,
        /// Fields that are otherwise on a Llama.
        #[serde(default)]
        llama: toml::Table,
    }
    let Entries { method: entries } = toml::from_str(ENTRIES).ok()?;
    let entry = entries.into_iter().find(|entry| entry.method == method)?;
    let mut config = entry.config?;
    if llama {
        config.extend(entry.llama);
    }
    serde_json::to_value(config).ok()
}

/// The latency of a model beside the base's.
fn measured<S: Subject>(
    name: &str,
    pairs: usize,
    subject: &S,
    model: &S::Model,
    default: bool,
) -> Latency {
    let base = subject.base();
    let (of_base, of_model) = (subject.ready(base), subject.ready(model));
    let seconds = |model, ready| {
        let start = Instant::now();
        black_box(subject.pass(model, ready));
        start.elapsed().as_secs_f64()
    };
    for _ in 0..WARM_UP {
        seconds(base, &of_base);
        seconds(model, &of_model);
    }
    let (mut bases, mut unmerged, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Neither is always the first.
        let (under, over) = if pair % 2 == 0 {
            let under = seconds(base, &of_base);
            (under, seconds(model, &of_model))
        } else {
            let over = seconds(model, &of_model);
            (seconds(base, &of_base), over)
        };
        bases.push(under);
        unmerged.push(over);
        ratios.push(over / under);
    }
    Latency {
        name: name.to_string(),
        base_ms: median(&mut bases) * 1e3,
        unmerged_ms: median(&mut unmerged) * 1e3,
        ratio: Spread::of(ratios),
        kept_bytes: model.summary().kept_bytes,
        default,
    }
}

fn print_head() {
    println!(
        "  {:<44} {:>8} {:>8} {:>9}  {:>7}  {:<17} {:<8}",
        "ratio", "base ms", "ms", "kept MiB", "median", "(min - max)", "needed"
    );
}

fn print_line(latency: &Latency, needed: Needed) {
    let ratio = latency.ratio;
    let verdict = match needed.holds(ratio) {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    let note = if latency.default {
        ""
    } else {
        "  as in the comparison"
    };
    println!(
        "  {:<44} {:>8.2} {:>8.2} {:>9.1}  {:>7.3}  {:<17} {:<8} {verdict}{note}",
        latency.name,
        latency.base_ms,
        latency.unmerged_ms,
        latency.kept_bytes as f64 / f64::from(1 << 20),
        ratio.median,
        format!("({:.3} - {:.3})", ratio.min, ratio.max),
        needed.text(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_latency() {
        let (_, device) = &peft::core::device::cpu_devices()[0];
        // Singular values of MiniLM's matrices take minutes without optimisation: a third of its width and depth.
        let mut config = minilm::config(0.0).unwrap();
        config.hidden_size = 128;
        config.intermediate_size = 512;
        config.num_attention_heads = 4;
        config.num_hidden_layers = 2;
        let encoder = Encoder {
            model: minilm::classifier_of(&config, device).unwrap(),
            ..Encoder::new(3, device).unwrap()
        };
        for info in peft::methods() {
            let (model, default) =
                attached::<Encoder>(info, &encoder.model).unwrap_or_else(|refused| {
                    panic!("{}: {refused}", info.name);
                });
            let latency = measured(info.name, 1, &encoder, &model, default);
            assert!(latency.ratio.median > 0.0, "{}", info.name);
        }
    }

    #[test]
    fn a_decoder_goes_on_with_a_text() {
        let (_, device) = &peft::core::device::cpu_devices()[0];
        let decoder = Decoder::new(device);
        let infos = peft::methods();
        let lora = infos.iter().find(|info| info.name == "lora").unwrap();
        let (model, _) = attached::<Decoder>(lora, &decoder.model).unwrap();
        let latency = measured("lora", 2, &decoder, &model, true);
        assert!(latency.base_ms > 0.0 && latency.unmerged_ms > 0.0);
    }

    #[test]
    fn a_method_of_the_comparison_has_its_configuration() {
        let lora = entry("lora", false).unwrap();
        assert_eq!(lora["r"], 8);
        assert!(entry("no such method", true).is_none());
    }
}
