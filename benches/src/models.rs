//! The models of the cases, and one iteration on each.

mod layer;
pub(crate) mod llama;
pub(crate) mod minilm;

use std::hint::black_box;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use peft::core::PeftModule;
use peft::core::ops::MixedPrecision;
use peft::reparameterization::LoraConfig;
use peft_core::quantize::QuantizedModule as _;

use crate::case::{Case, Engine, Method, Pass, RANK, Shape};
use crate::memory_model::MemoryModel;

type Failure = Box<dyn std::error::Error>;

/// Steps that a training is said to have: more than are measured. What a method does in the last part of a training is not
/// measured.
const STEPS: usize = 1_000_000;

/// A case that is ready to run.
pub(crate) struct Work {
    pub(crate) iterate: Box<dyn FnMut() -> Result<(), Failure>>,
    pub(crate) tokens: usize,
    pub(crate) trainable: usize,
    /// Bytes of the model's own weights as they are stored.
    pub(crate) weights: u64,
    /// Bits of a weight in the quantized matrices.
    pub(crate) bits: Option<f64>,
    pub(crate) memory_model: Option<MemoryModel>,
}

pub(crate) fn work(case: Case, device: &str) -> Result<Work, Failure> {
    let device = peft::core::device::device(device)?;
    device.seed(1);
    if matches!(case.engine, Engine::Burn | Engine::Unfused) {
        peft::core::ops::set_fused(false);
    }
    if case.engine == Engine::OursBf16 {
        peft::core::ops::set_mixed_precision(MixedPrecision::Bf16);
    }
    let device = match case.pass {
        Pass::Train => device.autodiff(),
        Pass::Infer => device,
    };
    match case.shape {
        Shape::SmolLm2 => llama::work(case, &device),
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
        weights: weight_bytes(&model),
        bits: bits(&model),
        iterate: Box::new(move || {
            black_box(forward(&model));
            Ok(())
        }),
        memory_model: None,
    }
}

/// Training steps: forward, backward, AdamW, and what the method does besides.
fn train<M: Module + PeftModule + 'static>(
    model: M,
    tokens: usize,
    device: &Device,
    loss: impl Fn(&M) -> Tensor<1> + 'static,
) -> Result<Work, Failure> {
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let mut training = model.training_hooks(STEPS)?;
    let step = move |model: M| {
        let loss = loss(&model);
        let loss = match training.penalty(&model)? {
            Some(penalty) => loss + penalty,
            None => loss,
        };
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        training.before_step(&model, &mut gradients)?;
        let model = optimizer.step(1e-4, model, gradients);
        Ok(training.after_step(model)?)
    };
    Ok(train_by(model, tokens, device, step))
}

/// The same of steps by `step`.
fn train_by<M: Module + PeftModule + 'static>(
    model: M,
    tokens: usize,
    device: &Device,
    mut step: impl FnMut(M) -> Result<M, Failure> + 'static,
) -> Work {
    let (trainable, _) = trainable(&model);
    let (weights, bits) = (weight_bytes(&model), bits(&model));
    let mut model = Some(model);
    let device = device.clone();
    let iterate = move || {
        let now = model.take().ok_or("a step before this one failed")?;
        model = Some(step(now)?);
        // Nothing is left to do in the background when the clock stops.
        let _ = device.sync();
        Ok(())
    };
    Work {
        tokens,
        trainable,
        weights,
        bits,
        iterate: Box::new(iterate),
        memory_model: None,
    }
}

/// Bytes of the model's own weights as they are stored.
fn weight_bytes<M: PeftModule>(model: &M) -> u64 {
    let layout = model.layout();
    let dense = layout
        .params
        .iter()
        .filter(|param| param.quantized_format().is_none() && !param.is_tied());
    let dense: usize = dense
        .map(|param| param.elements() * param.dtype().size())
        .sum();
    let packed = model.quantized_weights();
    let packed: usize = packed.iter().map(|(_, rows)| rows.bytes()).sum();
    (dense + packed) as u64
}

/// Bits of a weight in the quantized matrices, scales included; tables in 16 bits are not quantized.
fn bits<M: PeftModule>(model: &M) -> Option<f64> {
    let packed = model.quantized_weights();
    let quantized = packed
        .iter()
        .filter(|(_, rows)| !matches!(rows.format(), "bfloat16" | "float16"));
    let (bytes, elements) = quantized.fold((0, 0), |(bytes, elements), (_, rows)| {
        let [height, width] = rows.shape();
        (bytes + rows.bytes(), elements + height * width)
    });
    (elements > 0).then(|| bytes as f64 * 8.0 / elements as f64)
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
pub(crate) fn lora(method: Method, qv: [&str; 2]) -> LoraConfig {
    let config = LoraConfig::new(RANK).with_alpha(16.0);
    if method.all_linear() {
        config.with_targets("all-linear")
    } else {
        config.with_targets(qv)
    }
}

/// The parameters whose paths match a pattern.
fn matching(pattern: &str) -> Result<ParamGroup, Failure> {
    ParamGroup::from_regex(pattern).map_err(|error| format!("{pattern}: {error:?}").into())
}
