//! One block of a Llama: TinyLlama-1.1B's.

use burn::module::{Lora, Module};
use burn::nn::{
    Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding, RotaryEncodingConfig,
};
use burn::tensor::{Device, Distribution, Tensor, activation::silu};
use peft::core::ops::{AttentionOptions, attention};
use peft::core::{AdaptedForward as _, PeftModule as _};

use super::{Failure, Work, infer, lora, matching, train};
use crate::case::{Case, Engine, Method, Pass};

const WIDTH: usize = 2048;
const INSIDE: usize = 5632;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const TOKENS: usize = 256;

#[derive(Module, Debug)]
struct Block {
    input_norm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_norm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    rotary: RotaryEncoding,
}

impl Block {
    fn new(device: &Device) -> Self {
        let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(WIDTH).with_epsilon(1e-5).init(device);
        let narrow = WIDTH / HEADS * KV_HEADS;
        Self {
            input_norm: norm(),
            q_proj: linear(WIDTH, WIDTH),
            k_proj: linear(WIDTH, narrow),
            v_proj: linear(WIDTH, narrow),
            o_proj: linear(WIDTH, WIDTH),
            post_norm: norm(),
            gate_proj: linear(WIDTH, INSIDE),
            up_proj: linear(WIDTH, INSIDE),
            down_proj: linear(INSIDE, WIDTH),
            rotary: RotaryEncodingConfig::new(TOKENS, WIDTH / HEADS).init(device),
        }
    }

    /// `x` and the result are `[batch, seq, WIDTH]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let h = self.input_norm.forward(x.clone());
        let context = attention(
            self.rotate(self.q_proj.adapted(h.clone()), HEADS),
            self.rotate(self.k_proj.adapted(h.clone()), KV_HEADS),
            self.v_proj.adapted(h),
            None,
            AttentionOptions {
                kv_heads: KV_HEADS,
                causal: true,
                ..AttentionOptions::new(HEADS)
            },
        );
        let x = x + self.o_proj.adapted(context);
        let h = self.post_norm.forward(x.clone());
        let inside = silu(self.gate_proj.adapted(h.clone())) * self.up_proj.adapted(h);
        x + self.down_proj.adapted(inside)
    }

    fn rotate(&self, x: Tensor<3>, heads: usize) -> Tensor<3> {
        let [batch, length, width] = x.dims();
        let split = x
            .reshape([batch, length, heads, width / heads])
            .swap_dims(1, 2);
        self.rotary
            .forward(split)
            .swap_dims(1, 2)
            .reshape([batch, length, width])
    }
}

pub(super) fn work(case: Case, device: &Device) -> Result<Work, Failure> {
    const QV: [&str; 2] = ["q_proj", "v_proj"];
    let model = Block::new(device);
    let model = match (case.method, case.engine) {
        (Method::Full | Method::Base, _) => model,
        (Method::LoraQv | Method::LoraAll, Engine::Burn) => {
            let pattern = match case.method {
                Method::LoraAll => r"_proj\.weight$",
                _ => r"(q|v)_proj\.weight$",
            };
            let lora = Lora::new(8, 16.0);
            model.apply_lora(lora.set_param_group(matching(pattern)?))
        }
        (Method::LoraQv | Method::LoraAll, _) => {
            // There is no head here that `all-linear` would leave out.
            let config = lora(case.method, QV);
            let config = match case.method {
                Method::LoraAll => config.with_targets(r".*_proj"),
                _ => config,
            };
            model.attach("bench", &config)?
        }
        (method, _) => return Err(format!("no `{}` here", method.name()).into()),
    };
    let x = Tensor::<3>::random([1, TOKENS, WIDTH], Distribution::Default, device);
    if case.pass == Pass::Infer {
        return Ok(infer(model, TOKENS, move |model: &Block| {
            model.forward(x.clone()).into_data()
        }));
    }
    Ok(train(model, TOKENS, device, move |model: &Block| {
        // A block within a model: what comes in has a gradient.
        let x = x.clone().detach().require_grad();
        model.forward(x).powi_scalar(2).mean()
    }))
}
