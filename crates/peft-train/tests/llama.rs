//! Data and a Llama together.

mod common;

use burn::module::{Module as _, ModuleMapper, Param};
use burn::tensor::Tensor;
use common::{Letters, texts, words};
use peft_core::PeftModule as _;
use peft_core::method::Method;
use peft_core::nn::consistency_loss;
use peft_core::state::AdapterState as _;
use peft_models::{Llama, LmBatch};
use peft_reparameterization::{LoraConfig, PolyConfig, PolyLinear};
use peft_soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, LatePromptConfig, NpgToken,
    PrefixTuningConfig, PromptEncoderConfig, PromptGeneratorType, PromptTuningConfig,
};
use peft_train::{CausalLm as _, Dataset, Length, Record, TrainConfig, Trainer, evaluate};

#[test]
fn texts_that_share_a_row_are_read_as_if_alone() {
    for (name, device) in peft_core::device::cpu_devices() {
        let config = TrainConfig::new().with_max_length(64);
        // Whole texts fit into a row of 64 tokens together; alone they are padded.
        let few = &words()[..8];
        let alone = texts(few, &config);
        let packed = texts(few, &config.with_packing(true));
        assert!(packed.len() < alone.len());
        assert_eq!(packed.targets(), alone.targets());
        let base = Llama::tiny(&device);
        let prefix = base.attach("mine", &PrefixTuningConfig::new(3)).unwrap();
        let cartridge = base.attach("mine", &CartridgeConfig::new(3)).unwrap();
        let fixed = LatePromptConfig::new().with_generator_type(PromptGeneratorType::Fixed);
        let late = base.attach("mine", &fixed).unwrap();
        for model in [&base, &prefix, &cartridge, &late] {
            let alone = evaluate(model, &alone, 3).unwrap().nll;
            let packed = evaluate(model, &packed, 3).unwrap().nll;
            assert!(
                (packed - alone).abs() < 1e-4 * alone,
                "{name}: {packed} for {alone}"
            );
        }
    }
}

/// What a run measures of a row is what the model of the row's task says.
#[test]
fn each_row_is_read_under_its_task() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    let method = PolyConfig::new(4, 2)
        .with_init_weights(false)
        .with_deterministic_router(true);
    let model = Llama::tiny(&device).attach("mine", &method).unwrap();
    // The tasks have other skills.
    let model = model.edit_adapter::<PolyLinear>("mine", |_, state| {
        let logits =
            Tensor::<2>::from_data([[8.0, 8.0, -8.0, -8.0], [-8.0, -8.0, 8.0, 8.0]], &device);
        state.module_logits = state
            .module_logits
            .clone()
            .map(|_| logits.detach().require_grad());
    });
    let model = model.unwrap();
    let config = || {
        TrainConfig::new()
            .with_length(Length::Steps(1))
            .with_batch_size(2)
    };
    let data = |tasks: [usize; 2]| {
        let records = ["lorem", "dolor"].into_iter().zip(tasks);
        let records = records.map(|(text, task)| Record::Text(text.into()).with_task(task));
        Dataset::new(&records.collect::<Vec<_>>(), &Letters, &config()).unwrap()
    };
    let measured = |tasks| evaluate(&model, &data(tasks), 2).unwrap().nll;
    let one = measured([0, 1]);
    // Of equally many targets each.
    let alone = |task| {
        let both = data([task, task]);
        [0, 1].map(|row| {
            let batch = both.batch(&[row]);
            f64::from(model.nll(&batch).into_scalar::<f32>()) / batch.target_count() as f64
        })
    };
    let ([a, b], [c, d]) = (alone(0), alone(1));
    let apart = (a - c).abs().max((b - d).abs());
    assert!(apart > 1e-3, "{apart}");
    let expected = f64::midpoint(a, d);
    assert!((one - expected).abs() < 1e-4, "{one}, {expected}");
    let mut trainer = Trainer::new(config()).unwrap();
    let (_, outcome) = trainer.train(model.clone(), &data([0, 1]), None).unwrap();
    assert!((outcome.losses[0] - expected).abs() < 1e-4);
}

/// Without dropout two passes say the same, and the training is what it is with one.
#[test]
fn two_passes_are_drawn_together() {
    let (_, device) = peft_core::device::cpu_devices().remove(0);
    let device = device.autodiff();
    // One start for both trainings: tests of other threads draw from the same generator.
    let start = |dropout: f64| {
        let lora = LoraConfig::new(4).with_lora_dropout(dropout);
        let lora = lora.with_init_lora_weights(false);
        Llama::tiny(&device).attach("mine", &lora).unwrap()
    };
    let losses = |start: &Llama, weight: Option<f64>| {
        let mut settings = TrainConfig::new();
        settings.consistency_weight = weight;
        let settings = settings
            .with_length(Length::Steps(20))
            .with_batch_size(10)
            .with_learning_rate(1e-2);
        let data = texts(&words(), &settings);
        let (model, outcome) = Trainer::new(settings)
            .unwrap()
            .train(start.clone(), &data, None)
            .unwrap();
        // How far passes of the trained model are apart, of eight pairs.
        let batch = data.batch(&[0, 1, 2, 3]);
        let pairs = (0..8).map(|_| {
            let [a, b] = [0, 1].map(|_| model.logits(&batch).unwrap());
            consistency_loss(a, b).into_scalar::<f32>()
        });
        (outcome.losses, pairs.sum::<f32>() / 8.0)
    };
    let still = start(0.0);
    let (plain, apart) = losses(&still, None);
    let (same, _) = losses(&still, Some(1.0));
    assert!(apart < 1e-6, "{apart}");
    for (same, plain) in same.iter().zip(&plain) {
        assert!((same - plain).abs() < 1e-3, "{same}, {plain}");
    }
    let dropping = start(0.4);
    let (_, apart) = losses(&dropping, None);
    let (_, together) = losses(&dropping, Some(20.0));
    assert!(together < 0.7 * apart, "{together}, {apart}");
}

#[test]
fn checkpointing_changes_no_number_that_matters() {
    for (name, device) in peft_core::device::cpu_devices() {
        let device = device.autodiff();
        let base = Llama::tiny(&device);
        let late = LatePromptConfig::new().with_npg_token(NpgToken::Last);
        let gated = AdapterHubPrefixConfig::new().with_use_gating(true);
        let methods: [(&dyn Method, f64); 9] = [
            (&LoraConfig::new(4), 1e-2),
            (&CartridgeConfig::new(3), 5e-2),
            (&AdaptionPromptConfig::new(3, 2), 1e-1),
            (&gated.with_bottleneck_size(12), 1e-2),
            (&late, 1e-2),
            (&PromptTuningConfig::new(3), 5e-2),
            (&PromptEncoderConfig::new(3), 1e-2),
            (&PrefixTuningConfig::new(3), 5e-2),
            // Its first part belongs to all layers.
            (&PrefixTuningConfig::new(3).with_projection(12), 1e-2),
        ];
        for (method, rate) in methods {
            device.seed(5);
            let model = base.attach("mine", method).unwrap();
            let losses = |checkpointing: bool| {
                let config = TrainConfig::new()
                    .with_length(Length::Steps(20))
                    .with_batch_size(words().len())
                    .with_learning_rate(rate)
                    .with_gradient_checkpointing(checkpointing);
                let data = texts(&words(), &config);
                let mut trainer = Trainer::new(config).unwrap();
                let (_, outcome) = trainer.train(model.clone(), &data, None).unwrap();
                outcome.losses
            };
            let name = format!("{} on {name}", method.info().title);
            let plain = losses(false);
            assert!(plain[19] < 0.95 * plain[0], "{name}: {plain:?}");
            for (checkpointed, plain) in losses(true).iter().zip(&plain) {
                assert!(
                    (checkpointed - plain).abs() < 1e-3 * plain,
                    "{name}: {checkpointed} for {plain}"
                );
            }
        }
    }
}

/// Where the numbers of adapters' parameters are.
#[derive(Default)]
struct Places {
    inside: usize,
    found: Vec<usize>,
}

impl ModuleMapper for Places {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.inside += usize::from(container == "Adapter");
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.inside -= usize::from(container == "Adapter");
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.inside == 0 {
            return param;
        }
        param.map(|value| {
            let device = value.device().without_autodiff();
            // A tensor that something else holds as well would be copied here.
            let data = value.without_autodiff().into_data();
            self.found.push(data.as_bytes().as_ptr() as usize);
            Tensor::from_inner(Tensor::from_data(data, &device)).require_grad()
        })
    }
}

#[test]
fn an_optimizer_finds_adapters_that_nothing_else_holds() {
    let device = peft_core::device::device("flex").unwrap().autodiff();
    let lora = LoraConfig::new(4);
    let mut model = Llama::tiny(&device).attach("mine", &lora).unwrap();
    let batch = LmBatch::of_text(&[3, 7, 9, 12, 30, 4, 5, 6]);
    let mut places = Vec::new();
    for _ in 0..3 {
        let (_, gradients) = model.loss_and_gradients(&batch, false, 1.0);
        let mut step = Places::default();
        model = model.map(&mut step);
        assert_eq!(step.found.len(), gradients.len());
        places.push(step.found);
    }
    assert!(
        places.iter().all(|found| *found == places[0]),
        "{places:x?}"
    );
}
