//! Data and a Llama together.

mod common;

use burn::module::{Module as _, ModuleMapper, Param};
use burn::tensor::Tensor;
use common::{texts, words};
use peft_core::PeftModule as _;
use peft_core::method::Method;
use peft_models::{Llama, LmBatch};
use peft_reparameterization::LoraConfig;
use peft_soft_prompt::{
    AdapterHubPrefixConfig, AdaptionPromptConfig, CartridgeConfig, LatePromptConfig, NpgToken,
    PrefixTuningConfig, PromptEncoderConfig, PromptGeneratorType, PromptTuningConfig,
};
use peft_train::{Length, TrainConfig, Trainer, evaluate};

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
