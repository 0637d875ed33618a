//! A model that knows nothing of peft takes LoRA, trains with Burn's own `Learner`, saves, loads
//! and merges.

use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::AdamWConfig;
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::logger::InMemoryMetricLogger;
use burn::train::{
    ClassificationOutput, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep,
};
use peft_core::device::cpu_devices;
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule};
use peft_reparameterization::{LoraConfig, LoraLinear, METHODS};

const VOCABULARY: usize = 24;
const SEQUENCE: usize = 6;
const SIDE: usize = 8;
const D: usize = 16;

/// The user's own: layers of Burn, none of ours.
#[derive(Module, Debug)]
struct Captioned {
    words: Embedding,
    encoder: TransformerEncoder,
    picture: Conv2d,
    mix: Linear,
    classifier: Linear,
}

impl Captioned {
    fn new(device: &Device) -> Self {
        Self {
            words: EmbeddingConfig::new(VOCABULARY, D).init(device),
            encoder: TransformerEncoderConfig::new(D, 2 * D, 2, 2)
                .with_dropout(0.0)
                .init(device),
            picture: Conv2dConfig::new([1, D], [3, 3])
                .with_stride([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            mix: LinearConfig::new(2 * D, D).init(device),
            classifier: LinearConfig::new(D, 2).init(device),
        }
    }

    fn forward(&self, words: Tensor<2, Int>, picture: Tensor<4>) -> Tensor<2> {
        let text = self
            .encoder
            .forward(TransformerEncoderInput::new(self.words.forward(words)));
        let text: Tensor<2> = text.mean_dim(1).squeeze_dim(1);
        let seen = burn::tensor::activation::relu(self.picture.forward(picture));
        let seen: Tensor<2> = seen.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        let mixed = self.mix.forward(Tensor::cat(vec![text, seen], 1));
        self.classifier
            .forward(burn::tensor::activation::gelu(mixed))
    }

    fn classify(&self, batch: Batch) -> ClassificationOutput {
        let output = self.forward(batch.words, batch.picture);
        let loss = CrossEntropyLossConfig::new()
            .init(&output.device())
            .forward(output.clone(), batch.targets.clone());
        ClassificationOutput::new(loss, output, batch.targets)
    }
}

impl TrainStep for Captioned {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> TrainOutput<ClassificationOutput> {
        let item = self.classify(batch);
        TrainOutput::new(self, item.loss.backward(), item)
    }
}

impl InferenceStep for Captioned {
    type Input = Batch;
    type Output = ClassificationOutput;

    fn step(&self, batch: Batch) -> ClassificationOutput {
        self.classify(batch)
    }
}

#[derive(Clone, Debug)]
struct Item {
    words: [i64; SEQUENCE],
    picture: [f32; SIDE * SIDE],
    class: i64,
}

#[derive(Clone, Debug)]
struct Batch {
    words: Tensor<2, Int>,
    picture: Tensor<4>,
    targets: Tensor<1, Int>,
}

struct Batches;

impl Batcher<Item, Batch> for Batches {
    fn batch(&self, items: Vec<Item>, device: &Device) -> Batch {
        let rows = items.len();
        let words: Vec<i64> = items.iter().flat_map(|item| item.words).collect();
        let pixels: Vec<f32> = items.iter().flat_map(|item| item.picture).collect();
        let classes: Vec<i64> = items.iter().map(|item| item.class).collect();
        Batch {
            words: Tensor::from_data(TensorData::new(words, [rows, SEQUENCE]), device),
            picture: Tensor::from_data(TensorData::new(pixels, [rows, 1, SIDE, SIDE]), device),
            targets: Tensor::from_data(TensorData::new(classes, [rows]), device),
        }
    }
}

/// Captions and pictures that agree or do not: both are needed to tell.
fn items(count: usize) -> Vec<Item> {
    let mut state = 7_u64;
    let mut next = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    (0..count)
        .map(|_| {
            let (said, shown) = (next(2), next(2));
            let half = VOCABULARY as u64 / 2;
            Item {
                words: std::array::from_fn(|_| (next(half) + said * half) as i64),
                picture: std::array::from_fn(|_| {
                    next(100) as f32 / 100.0 + if shown == 1 { 1.0 } else { -1.0 }
                }),
                class: i64::from(said == 1 || shown == 1),
            }
        })
        .collect()
}

fn loader(count: usize, device: &Device) -> Arc<dyn DataLoader<Batch>> {
    DataLoaderBuilder::new(Batches)
        .batch_size(16)
        .set_device(device.clone())
        .build(InMemDataset::new(items(count)))
}

fn bits(model: &Captioned) -> Vec<TensorData> {
    let layout = model.layout();
    let data = |param: &peft_core::method::LayoutParam| match param.shape().len() {
        1 => param.value::<1>().into_data(),
        2 => param.value::<2>().into_data(),
        _ => param.value::<4>().into_data(),
    };
    layout.params.iter().map(data).collect()
}

fn outputs(model: &Captioned, device: &Device) -> TensorData {
    let batch = Batches.batch(items(20), device);
    model
        .valid()
        .forward(batch.words, batch.picture)
        .into_data()
}

fn farthest(a: &TensorData, b: &TensorData) -> f64 {
    peft_testing::farthest(a.iter::<f32>(), b.iter::<f32>())
}

fn config() -> LoraConfig {
    LoraConfig::new(1)
        .with_alpha(4.0)
        .with_targets([
            "words",
            "picture",
            "mix",
            "query",
            "key",
            "value",
            "output",
            "linear_inner",
            "linear_outer",
        ])
        .with_rank_pattern("mix", 4)
        .with_modules_to_save(["classifier"])
}

#[test]
fn a_models_own_layers_train_save_load_and_merge() {
    for (name, inner) in cpu_devices() {
        let device = inner.clone().autodiff();
        device.seed(3);
        let base = Captioned::new(&device);
        let before = bits(&base);
        let base_outputs = outputs(&base, &inner);

        let model = base.attach("agree", &config()).unwrap();
        println!("{name}\n{}", model.summary());
        let moved = farthest(&outputs(&model, &inner), &base_outputs);
        assert!(moved < 1e-6, "{name}: attaching moved outputs by {moved}");

        let loss = |model: &Captioned| {
            let batch = Batches.batch(items(64), &inner);
            model.valid().classify(batch).loss.into_scalar::<f32>()
        };
        let untrained = loss(&model);
        let dir = tempfile::tempdir().unwrap();
        let learner = Learner::new(model, AdamWConfig::new().init(), ConstantLr::new(2e-2));
        let result = SupervisedTraining::new(dir.path(), loader(256, &device), loader(64, &inner))
            .num_epochs(3)
            .with_metric_logger(InMemoryMetricLogger::new())
            .with_application_logger(None)
            .launch(learner);
        let model = result.model.train();
        let trained = loss(&model);
        assert!(
            trained < 0.5 * untrained,
            "{name}: loss {untrained} -> {trained}"
        );

        // The base was not touched.
        for (now, then) in bits(&model).iter().zip(&before) {
            now.assert_eq(then, true);
        }
        let adapted = outputs(&model, &inner);
        let disabled = model.disable_adapters().unwrap();
        outputs(&disabled, &inner).assert_eq(&base_outputs, true);
        outputs(&disabled.activate(&["agree"]).unwrap(), &inner).assert_eq(&adapted, true);

        // The base, which was never touched, takes the saved adapter.
        let folder = dir.path().join("adapter");
        model.save_adapter("agree", &folder).unwrap();
        let loaded = base.load_adapter("again", &folder, METHODS).unwrap();
        outputs(&loaded, &inner).assert_eq(&adapted, true);
        assert_eq!(loaded.counts(), model.counts());

        // Merged in two ways, and back.
        let merged = model.merge_adapters().unwrap();
        assert!(
            farthest(&outputs(&merged, &inner), &adapted) < 1e-4,
            "{name}: merged"
        );
        outputs(&merged.unmerge_adapters(), &inner).assert_eq(&adapted, true);
        let plain = model.merge_and_unload().unwrap();
        assert!(
            farthest(&outputs(&plain, &inner), &adapted) < 1e-4,
            "{name}: unloaded"
        );
        assert!(plain.adapters().is_empty());
        assert_eq!(plain.num_params(), base.num_params());

        // Detaching leaves the base, bit for bit.
        let bare = model.detach("agree").unwrap();
        outputs(&bare, &inner).assert_eq(&base_outputs, true);
        assert_eq!(bare.num_params(), base.num_params());
    }
}

/// What a refused operation must leave alone.
fn state(model: &Captioned, device: &Device) -> (TensorData, Vec<TensorData>, Vec<String>) {
    (outputs(model, device), bits(model), model.adapters())
}

#[test]
fn refusals_say_what_would_be_right() {
    let device = cpu_devices()[0].1.clone().autodiff();
    let model = Captioned::new(&device);
    let inner = &cpu_devices()[0].1;
    let before = state(&model, inner);
    let refusal = |config: &LoraConfig| model.attach("a", config).unwrap_err().to_string();
    assert!(
        refusal(&LoraConfig::new(2).with_targets(["querry"]))
            .contains("encoder.layers.0.mha.query")
    );
    assert!(refusal(&LoraConfig::new(2).with_targets(["query", "keyy"])).contains("`keyy`"));
    assert!(refusal(&LoraConfig::new(2).with_targets(["norm_1"])).contains("Norm"));
    assert!(refusal(&LoraConfig::new(0)).contains("at least 1"));
    let wide = LoraConfig::new(17).with_init_lora_weights("pissa");
    assert!(refusal(&wide.with_targets(["mix"])).contains("at most 16"));
    assert!(refusal(&LoraConfig::new(2).with_modules_to_save(["pooler"])).contains("`pooler`"));
    assert!(matches!(
        model.attach("a b", &LoraConfig::new(2)),
        Err(Error::AdapterName { .. })
    ));
    assert!(matches!(
        model.detach("a"),
        Err(Error::UnknownAdapter { .. })
    ));
    assert_eq!(state(&model, inner), before);

    let model = model.attach("a", &LoraConfig::new(2)).unwrap();
    assert!(matches!(
        model.attach("a", &LoraConfig::new(2)),
        Err(Error::AlreadyAttached { .. })
    ));
    assert!(matches!(
        model.activate(&["b"]),
        Err(Error::UnknownAdapter { .. })
    ));
    let merged = model.merge_adapters().unwrap();
    assert!(matches!(merged.detach("a"), Err(Error::Merged)));
    assert!(matches!(
        merged.attach("b", &LoraConfig::new(2)),
        Err(Error::Merged)
    ));

    let before = state(&model, inner);
    let broken = model
        .edit_adapter::<LoraLinear>("a", |_, lora| {
            lora.lora_b = burn::module::Param::from_tensor((lora.lora_b.val() * f32::NAN).detach());
        })
        .unwrap();
    let refused = broken.merge_and_unload().unwrap_err().to_string();
    assert!(refused.contains("NaN"), "{refused}");
    assert_eq!(state(&model, inner), before);

    let burns = Captioned::new(&device).apply_lora(burn::module::Lora::new(2, 4.0));
    let refused = burns
        .attach("a", &LoraConfig::new(2))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("materialize"), "{refused}");
}

#[test]
fn what_can_be_adapted_can_be_listed() {
    let (_, device) = &cpu_devices()[0];
    let listed = Captioned::new(device).layout().to_string();
    for line in [
        [
            "encoder.layers.0.mha.query",
            "Linear",
            "weight [16, 16]  bias [16]",
        ],
        ["encoder.layers.1.norm_1", "Norm", "weight [16]  bias [16]"],
        ["words", "Embedding", "weight [24, 16]"],
        ["picture", "Conv2d", "weight [16, 1, 3, 3]"],
        ["classifier", "Linear", "(head)"],
    ] {
        let found = listed
            .lines()
            .find(|listed| listed.split_whitespace().next() == Some(line[0]));
        let found = found.unwrap_or_else(|| panic!("no {} in:\n{listed}", line[0]));
        assert!(line.iter().all(|part| found.contains(part)), "{found}");
    }
}
