//! Late prompts against the parts of a model, put together by hand.

use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft::core::nn::ForwardContext;
use peft::core::state::AdapterState as _;
use peft::core::{Error, PeftModule as _, device::cpu_devices};
use peft::soft_prompt::{
    LatePrompt, LatePromptConfig, NpgToken, PromptGenerator, PromptGeneratorType,
};
use peft_models::{Bert, BertConfig, Llama};

fn farthest<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    let (a, b) = (a.into_data(), b.into_data());
    assert_eq!(a.shape(), b.shape());
    peft_testing::farthest(a.iter::<f64>(), b.iter::<f64>())
}

fn bert(device: &Device) -> Bert {
    let mut config = BertConfig::tiny();
    config.num_hidden_layers = 3;
    config.init(device)
}

/// Two rows; the first is two tokens shorter.
fn batch(left: bool, device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let ids: Vec<i64> = (0..14).map(|at| 3 + at * 5 % 40).collect();
    let ids = Tensor::from_data(TensorData::new(ids, [2, 7]), device);
    let padded = if left { 0..2 } else { 5..7 };
    let padding: Vec<bool> = (0..14).map(|at| padded.contains(&at)).collect();
    (
        ids,
        Tensor::from_data(TensorData::new(padding, [2, 7]), device),
    )
}

/// The places of a row's own tokens.
fn own(row: usize, left: bool) -> std::ops::Range<usize> {
    match (row, left) {
        (0, false) => 0..5,
        (0, true) => 2..7,
        _ => 0..7,
    }
}

/// A generator's prompt for one row's own hidden states `[tokens, d]`, as the authors' program makes it.
fn prompt_of(generator: &PromptGenerator, hidden: Tensor<2>) -> Tensor<2> {
    let down = |x: Tensor<2>| {
        x.matmul(generator.down.weight.val()) + generator.down.bias.val().unsqueeze()
    };
    let [length, width] = hidden.dims();
    let tokens = generator.tokens;
    let seen = match generator.kind {
        PromptGeneratorType::Npg => {
            let at = if generator.token == NpgToken::First {
                0
            } else {
                length - 1
            };
            down(hidden.slice_dim(0, at..at + 1))
        }
        kind => {
            let inside = down(hidden);
            let parts = (0..tokens).map(|at| {
                let stretch = at * length / tokens..((at + 1) * length).div_ceil(tokens);
                let stretch = inside.clone().slice_dim(0, stretch);
                if kind == PromptGeneratorType::Appg {
                    stretch.mean_dim(0)
                } else {
                    stretch.max_dim(0)
                }
            });
            Tensor::cat(parts.collect(), 0)
        }
    };
    let up = relu(seen).matmul(generator.up.weight.val());
    let up = up + generator.up.bias.val().unsqueeze();
    up.reshape([tokens, width])
}

#[test]
fn a_late_prompt_is_put_in_between_layers() {
    let generated = |kind, token| {
        LatePromptConfig::new()
            .with_num_prompt_tokens(3)
            .with_proj_down_size(6)
            .with_generator_type(kind)
            .with_npg_token(token)
    };
    let fixed = LatePromptConfig::new().with_generator_type(PromptGeneratorType::Fixed);
    let configs = [
        fixed.with_add_prompt_layer(2),
        generated(PromptGeneratorType::Npg, NpgToken::First),
        generated(PromptGeneratorType::Npg, NpgToken::Last).with_add_prompt_layer(0),
        generated(PromptGeneratorType::Appg, NpgToken::First).with_add_prompt_layer(1),
        generated(PromptGeneratorType::Mppg, NpgToken::First).with_add_prompt_layer(2),
    ];
    for (name, device) in cpu_devices() {
        let base = bert(&device);
        for (config, left) in configs
            .iter()
            .flat_map(|config| [(config, false), (config, true)])
        {
            let what = format!("{config:?}, left {left}, on {name}");
            let layer = config.add_prompt_layer.unwrap_or(1);
            let model = base.attach("mine", config).unwrap();
            let states = model.adapter_states::<LatePrompt>("mine").unwrap();
            assert_eq!(states.len(), 1);
            assert_eq!(states[0].0, format!("encoder.layer.{layer}"));

            let (ids, padding) = batch(left, &device);
            let mut below = base.clone();
            let above = below.encoder.layer.split_off(layer);
            let hidden = below.forward(ids.clone(), Some(padding.clone())).hidden;
            let prompts = (0..2).map(|row| match &states[0].1 {
                LatePrompt::Prompt(prompt) => prompt.val(),
                LatePrompt::Generator(generator) => {
                    let row_states = hidden.clone().slice_dim(0, row..row + 1);
                    let own = row_states.squeeze_dim::<2>(0).slice_dim(0, own(row, left));
                    prompt_of(generator, own)
                }
            });
            let prompts = Tensor::stack::<3>(prompts.collect(), 0);
            let [_, tokens, _] = prompts.dims();
            let none = Tensor::<2, Bool>::full([2, tokens], false, &device);
            let longer = Tensor::cat(vec![none, padding.clone()], 1);
            let context = ForwardContext::new().with_padding(Some(longer));
            let mut rest = base.encoder.clone();
            rest.layer = above;
            let (expected, _) = rest.forward(Tensor::cat(vec![prompts, hidden], 1), context);

            let found = model.forward(ids, Some(padding));
            assert_eq!(found.virtual_tokens, tokens, "{what}");
            let distance = farthest(found.hidden, expected);
            assert!(distance < 1e-5, "{what}: {distance}");
        }
    }
}

#[test]
fn the_middle_is_the_default_and_written_down() {
    let (_, device) = cpu_devices().remove(0);
    let llama = Llama::tiny(&device);
    let model = llama.attach("mine", &LatePromptConfig::new()).unwrap();
    let config = model.adapter_config("mine").unwrap();
    assert_eq!(config["add_prompt_layer"], 1);
    let states = model.adapter_states::<LatePrompt>("mine").unwrap();
    assert_eq!(states[0].0, "model.layers.1");
    let beyond = LatePromptConfig::new().with_add_prompt_layer(2);
    let error = llama.attach("mine", &beyond).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Config {
                field: "add_prompt_layer",
                ..
            }
        ),
        "{error}"
    );
    // Two prompts at different layers make rows of different lengths on the way.
    let early = LatePromptConfig::new().with_add_prompt_layer(0);
    let two = model.attach("early", &early).unwrap();
    let error = two.set_adapter_per_row(&[Some("mine"), Some("early")]);
    assert!(matches!(error, Err(Error::Composition { .. })));
}
