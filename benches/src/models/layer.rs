//! One wide linear layer.

use burn::module::{Lora, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use peft::core::PeftModule as _;
use peft::core::nn::AdaptedForward as _;

use super::{Failure, Work, infer, lora, train, trainable};
use crate::case::{Case, Engine, Method, Pass};
use crate::memory_model::Layer as Sizes;

const WIDTH: usize = 4096;
const TOKENS: usize = 512;

#[derive(Module, Debug)]
struct Layer {
    linear: Linear,
}

pub(super) fn work(case: Case, device: &Device) -> Result<Work, Failure> {
    let linear = LinearConfig::new(WIDTH, WIDTH)
        .with_bias(false)
        .init(device);
    let model = Layer { linear };
    let model = match (case.method, case.engine) {
        (Method::Full | Method::Base, _) => model,
        (Method::LoraAll, Engine::Burn) => model.apply_lora(Lora::new(8, 16.0)),
        (Method::LoraAll, _) => model.attach(
            "bench",
            &lora(case.method, ["linear"; 2]).with_targets(["linear"]),
        )?,
        (method, _) => return Err(format!("no `{}` here", method.name()).into()),
    };
    let x = Tensor::<2>::random([TOKENS, WIDTH], Distribution::Default, device);
    if case.pass == Pass::Infer {
        return Ok(infer(model, TOKENS, move |model: &Layer| {
            model.linear.adapted(x.clone()).into_data()
        }));
    }
    let (trainable, largest) = trainable(&model);
    let sizes = Sizes {
        width: WIDTH as u64,
        tokens: TOKENS as u64,
        largest: largest as u64,
        trainable: trainable as u64,
    };
    let mut work = train(model, TOKENS, device, move |model: &Layer| {
        // A layer within a model: what comes in has a gradient.
        let x = x.clone().detach().require_grad();
        model.linear.adapted(x).powi_scalar(2).mean()
    })?;
    work.memory_model = (case.engine == Engine::Ours).then(|| sizes.memory_model(case.method));
    Ok(work)
}
