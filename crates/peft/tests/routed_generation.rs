//! Texts that are generated with adapters that are weighed for each token, or by task.

use burn::module::Module as _;
use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::core::nn::{ForwardContext, Routing, TaskIds};
use peft::core::state::AdapterState as _;
use peft::core::{Composition, PeftModule as _};
use peft::reparameterization::{
    ArrowConfig, LoraConfig, MtlLoraConfig, PolyConfig, XLoraConfig, arrow,
};
use peft_conformance::perturb;
use peft_models::{GenerateConfig, GenerateError, Llama, LlamaConfig, TextRouting};

const PROMPT: [u32; 4] = [7, 30, 21, 5];
const NEW: usize = 6;

fn device() -> Device {
    peft::core::device::cpu_devices().remove(0).1
}

fn config() -> GenerateConfig {
    GenerateConfig::default()
        .with_max_new_tokens(NEW)
        .with_eos_token_id([])
}

/// Two LoRA adapters, of which the head has a part, too.
fn with_experts(device: &Device) -> Llama {
    let lora = LoraConfig::new(2)
        .with_alpha(24.0)
        .with_init_lora_weights(false)
        .with_targets(["q_proj", "up_proj", "lm_head"]);
    let mut config = LlamaConfig::tiny();
    config.tie_word_embeddings = false;
    let base = Llama::scrambled(&config, device);
    ["law", "code"].iter().fold(base, |model, name| {
        perturb(model.attach(name, &lora).unwrap(), name)
    })
}

fn tensor(ids: &[u32], device: &Device) -> Tensor<2, Int> {
    let values: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    Tensor::from_data(TensorData::new(values, [1, ids.len()]), device)
}

/// What follows the prompt if the whole text is read anew for each token; `logits` `[1, tokens, vocabulary]`.
fn anew(logits: impl Fn(&[u32]) -> Tensor<3>) -> Vec<u32> {
    let mut text = PROMPT.to_vec();
    for _ in 0..NEW {
        let all = logits(&text);
        let last = all.narrow(1, text.len() - 1, 1);
        text.push(last.argmax(2).into_scalar::<i64>() as u32);
    }
    text.split_off(PROMPT.len())
}

#[test]
fn x_lora_generates_what_it_gives_for_whole_texts() {
    let device = device();
    let model = with_experts(&device);
    let width = model.config().hidden_size;
    let config_of = XLoraConfig {
        layerwise_scalings: true,
        scaling_pass_value: 0.3,
        softmax_temperature: 0.05,
        ..XLoraConfig::new()
    };
    let xlora = config_of.init(&model, &["law", "code"], width).unwrap();
    let expected = anew(|text| {
        let ids = tensor(text, &device);
        xlora.forward(
            ForwardContext::new(),
            |model, context| model.hidden_in(ids.clone(), context),
            |model, context| model.forward_in(ids.clone(), context),
        )
    });
    let routing = TextRouting::ByHidden {
        first: xlora.first_pass(),
        then: Box::new(|hidden| xlora.routing(hidden)),
    };
    let found = xlora
        .model
        .routed_by(&routing)
        .generate_ids(&PROMPT, &config());
    assert_eq!(found.unwrap(), expected);
    for name in ["law", "code"] {
        let alone = model.activate(&[name]).unwrap();
        let alone = alone.generate_ids(&PROMPT, &config()).unwrap();
        assert_ne!(alone, expected, "the weights change nothing");
    }
}

#[test]
fn arrow_generates_what_it_gives_for_whole_texts() {
    let device = device();
    let model = with_experts(&device);
    let (routed, routing) = arrow(&model, &["law", "code"], ArrowConfig::new(1)).unwrap();
    let expected = anew(|text| {
        let context = ForwardContext::new().with_routing(routing.clone());
        routed.forward_in(tensor(text, &device), context)
    });
    let routing = TextRouting::Same(routing);
    let found = routed.routed_by(&routing).generate_ids(&PROMPT, &config());
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn a_routing_that_does_not_fit_is_refused() {
    let device = device();
    let model = with_experts(&device);
    let names = || ["law".to_string(), "code".to_string()];
    let routed = model
        .set_composition(&Composition::Routed(names().to_vec()))
        .unwrap();
    let weights = |rows, tokens, adapters| {
        let names = ["law", "code"].into_iter().take(adapters);
        let weights = Tensor::<3>::full([rows, tokens, adapters], 0.5, &device);
        TextRouting::Same(Routing::per_token(names, weights))
    };
    let refused = |model: &Llama, routing: &TextRouting<'_>, word: &str| {
        let error = model.routed_by(routing).generate_ids(&PROMPT, &config());
        let error = error.unwrap_err();
        assert!(matches!(error, GenerateError::Routing { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(&routed, &weights(2, 1, 2), "2 rows");
    refused(&routed, &weights(1, 3, 2), "3 tokens");
    refused(&routed, &weights(1, 1, 1), "`code`");
    refused(&model, &weights(1, 1, 2), "set_composition");
    let then = TextRouting::ByHidden {
        first: Routing::per_row(names(), Tensor::zeros([1, 2], &device)),
        then: Box::new(|hidden| {
            Routing::per_row(["law"], hidden.narrow(2, 0, 1).mean_dim(1).squeeze_dim(1))
        }),
    };
    refused(&routed, &then, "`code`");
    let error = routed.generate_ids(&PROMPT, &config()).unwrap_err();
    assert!(error.to_string().contains("routed_by"), "{error}");
    let one = weights(1, 1, 2);
    assert_eq!(
        routed
            .routed_by(&one)
            .generate_ids(&PROMPT, &config())
            .unwrap()
            .len(),
        NEW
    );
    let trained = with_experts(&device.clone().autodiff());
    let trained = trained.set_composition(&Composition::Routed(names().to_vec()));
    refused(&trained.unwrap(), &one, "valid()");
}

/// Those whose layers have parameters of each task, and no prompt.
#[test]
fn layers_of_several_tasks_are_told_which() {
    let device = device();
    let poly = PolyConfig::new(4, 3)
        .with_init_weights(false)
        .with_targets(["q_proj", "up_proj", "down_proj"]);
    let mtl = MtlLoraConfig::new(4, 3)
        .with_alpha(400.0)
        .with_targets(["q_proj", "up_proj"]);
    let methods: [&dyn peft::core::method::Method; 2] = [&poly, &mtl];
    for method in methods {
        // Noise is added to what is trained, which a device without autodiff does not know.
        let model = Llama::tiny(&device.clone().autodiff());
        let model = perturb(model.attach("mine", method).unwrap(), "mine").valid();
        assert_eq!(model.num_tasks().into_iter().collect::<Vec<_>>(), [3]);
        for task in [None, Some(3)] {
            let mut config = config();
            config.task = task;
            let error = model
                .generate_ids(&PROMPT, &config)
                .unwrap_err()
                .to_string();
            assert!(error.contains("3 tasks, counted from 0"), "{error}");
        }
        for task in 0..3 {
            let found = model
                .generate_ids(&PROMPT, &config().with_task(task))
                .unwrap();
            let expected = anew(|text| {
                let context = ForwardContext::new().with_tasks(TaskIds::new([task]));
                model.forward_in(tensor(text, &device), context)
            });
            assert_eq!(found, expected);
        }
        let [first, last] = [0, 2].map(|task| {
            let context = ForwardContext::new().with_tasks(TaskIds::new([task]));
            model.forward_in(tensor(&PROMPT, &device), context)
        });
        let apart: f32 = (first - last).abs().max().into_scalar();
        assert!(apart > 1e-5, "the tasks say the same: {apart}");
    }
}
