//! What a run computes with, besides its configuration: by it a checkpoint is told from one of another run.

use std::collections::BTreeMap;

use peft_core::PeftModule;
use peft_core::method::LayoutParam;
use peft_core::quantize::QuantizedModule as _;
use peft_core::state::AdapterState as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::Result;
use crate::data::Dataset;
use crate::digest::hex;
use crate::optimizer::AdamW;

/// Values of each axis that a digest is made of.
const SAMPLE: usize = 16;

/// Model, rates and data, as far as they decide the numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inputs {
    /// Configurations of the adapters, by name.
    adapters: BTreeMap<String, Value>,
    /// How many weights of the base are packed, by format.
    packed: BTreeMap<String, usize>,
    /// Digest of a sample of the base's values, without those that are trained.
    base: String,
    /// Factors of the learning rate, by path of the parameter.
    rates: BTreeMap<String, f64>,
    /// Digest of the training data.
    data: String,
    /// Digest of the held-out data.
    held_out: Option<String>,
}

impl Inputs {
    pub(crate) fn new<M: PeftModule>(
        model: &M,
        optimizer: &AdamW,
        data: &Dataset,
        held_out: Option<&Dataset>,
    ) -> Result<Self> {
        let mut adapters = BTreeMap::new();
        for name in model.adapters() {
            let adapter = model.adapter_config(&name)?;
            adapters.insert(name, adapter);
        }
        let mut packed: BTreeMap<String, usize> = BTreeMap::new();
        for (_, weight) in model.quantized_weights() {
            *packed.entry(weight.format().to_string()).or_default() += 1;
        }
        Ok(Self {
            adapters,
            packed,
            base: sampled(model),
            rates: optimizer.factors(model),
            data: data.digest(),
            held_out: held_out.map(Dataset::digest),
        })
    }

    /// Why a run with these cannot go on from one with `saved`, apart from the data; none if it can.
    pub(crate) fn conflict(&self, saved: &Self) -> Option<String> {
        if let Some(name) = differing(&self.adapters, &saved.adapters) {
            return Some(format!(
                "that run had other adapters: `{name}` is not there, or configured otherwise; attach it as it \
                 was"
            ));
        }
        if let Some(format) = differing(&self.packed, &saved.packed) {
            let [theirs, ours] =
                [saved, self].map(|inputs| inputs.packed.get(format).copied().unwrap_or(0));
            return Some(format!(
                "that run's base model had {theirs} weights in {format}, this one's has {ours}; pack it as it \
                 was"
            ));
        }
        if self.base != saved.base {
            return Some(
                "that run had another base model, or one packed otherwise: the weights differ; load \
                 the same"
                    .into(),
            );
        }
        if let Some(path) = differing(&self.rates, &saved.rates) {
            let [theirs, ours] =
                [saved, self].map(|inputs| inputs.rates.get(path).copied().unwrap_or(1.0));
            return Some(format!(
                "that run had {theirs} times the learning rate for `{path}`, this one {ours} times; call \
                 `with_rate` as for that run"
            ));
        }
        None
    }

    /// Which data differ from those of `saved`; none if none do.
    pub(crate) fn other_data(&self, saved: &Self) -> Option<&'static str> {
        if self.data != saved.data {
            return Some("training");
        }
        (self.held_out != saved.held_out).then_some("held-out")
    }
}

/// A key whose values differ, or that one of the two lacks.
fn differing<'a, V: PartialEq>(
    ours: &'a BTreeMap<String, V>,
    theirs: &'a BTreeMap<String, V>,
) -> Option<&'a String> {
    let mut names = ours.keys().chain(theirs.keys());
    names.find(|name| ours.get(*name) != theirs.get(*name))
}

/// Digest of names, shapes, formats and some values of what is not trained. It tells models apart without
/// reading all of them.
fn sampled<M: PeftModule>(model: &M) -> String {
    let mut hasher = Sha256::new();
    let layout = model.layout();
    // A tied head is its table, which is sampled.
    let own = layout.params.iter().filter(|param| !param.is_tied());
    for param in own.filter(|param| !param.is_trainable()) {
        let (name, shape, dtype) = (&param.name, param.shape(), param.dtype());
        let format = param.quantized_format().unwrap_or_default();
        hasher.update(format!("{name} {shape:?} {dtype:?} {format}\n"));
        if format.is_empty() {
            hasher.update(sample(param));
        }
    }
    for (name, weight) in model.quantized_weights() {
        let [_, columns] = weight.shape();
        let mut row = vec![0.0; columns];
        weight.decode(0, &mut row);
        hasher.update(name);
        for value in &row {
            hasher.update(value.to_le_bytes());
        }
    }
    hex(hasher)
}

/// The first values along each axis.
fn sample(param: &LayoutParam) -> Vec<u8> {
    match param.shape().len() {
        1 => corner::<1>(param),
        2 => corner::<2>(param),
        3 => corner::<3>(param),
        4 => corner::<4>(param),
        _ => Vec::new(),
    }
}

fn corner<const D: usize>(param: &LayoutParam) -> Vec<u8> {
    let value = param.value::<D>();
    let ranges = value.dims().map(|size| 0..size.min(SAMPLE));
    value.slice(ranges).into_data().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use peft_models::{Llama, LlamaConfig};
    use peft_quantization::QuantizationConfig;
    use peft_reparameterization::{LoraConfig, lora_plus};

    use super::*;
    use crate::TrainConfig;

    fn device() -> Device {
        peft_core::device::cpu_devices().remove(0).1.autodiff()
    }

    fn inputs(model: &Llama, rate: Option<f64>) -> Inputs {
        let mut optimizer = AdamW::new(&TrainConfig::new());
        if let Some(rate) = rate {
            let up = lora_plus(model, "mine").unwrap().up;
            optimizer = optimizer.with_rate(up, rate);
        }
        Inputs::new(model, &optimizer, &Dataset::default(), None).unwrap()
    }

    fn tuned(base: &Llama) -> Llama {
        base.attach("mine", &LoraConfig::new(2)).unwrap()
    }

    #[test]
    fn what_a_run_computes_with_must_agree() {
        let device = device();
        let base = Llama::tiny(&device);
        // Fresh values of an adapter come from the checkpoint, whatever they are here.
        let [saved, again] = [1, 2].map(|seed| {
            device.seed(seed);
            inputs(&tuned(&base), None)
        });
        assert_eq!(again.conflict(&saved), None);
        let json = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<Inputs>(&json).unwrap(), saved);

        let conflict = |inputs: &Inputs| inputs.conflict(&saved).unwrap();
        let doubled = base.attach("mine", &LoraConfig::new(4)).unwrap();
        let refused = conflict(&inputs(&doubled, None));
        assert!(refused.contains("`mine`"), "{refused}");
        let other = LlamaConfig::tiny().init(&device);
        let refused = conflict(&inputs(&tuned(&other), None));
        assert!(refused.contains("another base model"), "{refused}");
    }

    #[test]
    fn a_packed_base_is_another() {
        let base = Llama::tiny(&device());
        let packed = |config: &QuantizationConfig| {
            let packed = base.pack_weights(config).unwrap();
            inputs(&tuned(&packed), None)
        };
        let dense = inputs(&tuned(&base), None);
        let nf4 = packed(&QuantizationConfig::nf4());
        let fp4 = packed(&QuantizationConfig::fp4());
        for (ours, theirs) in [(&dense, &nf4), (&nf4, &dense), (&fp4, &nf4)] {
            let refused = ours.conflict(theirs).unwrap();
            assert!(refused.contains("pack it as it was"), "{refused}");
        }
        assert_eq!(nf4.conflict(&packed(&QuantizationConfig::nf4())), None);
    }

    #[test]
    fn rates_of_groups_belong_to_the_run() {
        let model = tuned(&Llama::tiny(&device()));
        let [plain, plus, more] = [None, Some(16.0), Some(8.0)].map(|rate| inputs(&model, rate));
        assert!(plus.rates.keys().all(|path| path.ends_with("lora_b")));
        assert_eq!(plus.rates.len(), 14, "7 layers of each of 2 blocks");
        for (ours, theirs, text) in [
            (&plain, &plus, "16"),
            (&plus, &plain, "16"),
            (&more, &plus, "8"),
        ] {
            let refused = ours.conflict(theirs).unwrap();
            assert!(
                refused.contains("lora_b") && refused.contains(text),
                "{refused}"
            );
        }
        assert_eq!(plus.conflict(&inputs(&model, Some(16.0))), None);
    }
}
