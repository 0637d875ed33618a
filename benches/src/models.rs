//! The models of the cases, and one iteration on each.

mod layer;
mod llama;
mod minilm;

use std::hint::black_box;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use peft::core::PeftModule;
use peft::reparameterization::LoraConfig;

use crate::account::Account;
use crate::case::{Case, Engine, Method, Pass, Shape};

type Failure = Box<dyn std::error::Error>;

/// A case that is ready to run.
pub(crate) struct Work {
    pub(crate) iterate: Box<dyn FnMut()>,
    pub(crate) tokens: usize,
    pub(crate) trainable: usize,
    pub(crate) account: Option<Account>,
}

pub(crate) fn work(case: Case, device: &str) -> Result<Work, Failure> {
    let device = peft::core::device::device(device)?;
    device.seed(1);
    if matches!(case.engine, Engine::Burn | Engine::Unfused) {
        peft::core::ops::set_fused(false);
    }
    let device = match case.pass {
        Pass::Train => device.autodiff(),
        Pass::Infer => device,
    };
    match case.shape {
        Shape::LlamaBlock => llama::work(case, &device),
        Shape::Linear => layer::work(case, &device),
        _ => minilm::work(case, &device),
    }
}

/// Forward passes; their results are waited for.
fn infer<M: PeftModule + 'static>(
    model: M,
    tokens: usize,
    forward: impl Fn(&M) -> TensorData + 'static,
) -> Work {
    Work {
        tokens,
        trainable: 0,
        iterate: Box::new(move || {
            black_box(forward(&model));
        }),
        account: None,
    }
}

/// Training steps: forward, backward, AdamW.
fn train<M: Module + PeftModule + 'static>(
    model: M,
    tokens: usize,
    device: &Device,
    loss: impl Fn(&M) -> Tensor<1> + 'static,
) -> Work {
    let (trainable, _) = trainable(&model);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let mut model = Some(model);
    let device = device.clone();
    let iterate = move || {
        let Some(now) = model.take() else { return };
        let loss = loss(&now);
        let gradients = GradientsParams::from_grads(loss.backward(), &now);
        model = Some(optimizer.step(1e-4, now, gradients));
        // Nothing is left to do in the background when the clock stops.
        let _ = device.sync();
    };
    Work {
        tokens,
        trainable,
        iterate: Box::new(iterate),
        account: None,
    }
}

/// Elements of parameters that are trained, whoever put them there: of all, and of the largest.
fn trainable<M: Module>(model: &M) -> (usize, usize) {
    struct Tally(usize, usize);
    impl ModuleVisitor for Tally {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let elements = param.lazy_shape().num_elements();
                self.0 += elements;
                self.1 = self.1.max(elements);
            }
        }
    }
    let mut tally = Tally(0, 0);
    model.visit(&mut tally);
    (tally.0, tally.1)
}

/// LoRA of ours, r 8 and alpha 16, on the case's targets.
fn lora(method: Method, qv: [&str; 2]) -> LoraConfig {
    let config = LoraConfig::new(8).with_alpha(16.0);
    match method {
        Method::LoraAll => config.with_targets("all-linear"),
        _ => config.with_targets(qv),
    }
}

/// The parameters whose paths match a pattern.
fn matching(pattern: &str) -> Result<ParamGroup, Failure> {
    ParamGroup::from_regex(pattern).map_err(|error| format!("{pattern}: {error:?}").into())
}
