//! QLoRA in one configuration: the format of a frozen base, and the LoRA on it.

use std::collections::{BTreeMap, HashSet};

use burn::tensor::DType;

use peft_core::PeftModule;
use peft_core::ops::quantized::QuantizedWeight;

use peft_core::quantize::{QuantizedLayer, RawTensor, WeightQuantizer};
use peft_core::state::AdapterState as _;
use peft_reparameterization::{LoraConfig, LoraLinear, cast_factors, init_from_factors};
use serde_json::Value;

use crate::{Error, LoftQQuantizer, QuantizationConfig, Result};

/// Number format in which an adapter's factors are kept and trained. Products are computed in the base's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterDtype {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits: half the memory of the adapter and of its file. A step of training that is smaller than a
    /// 256th of a value is lost in it; moments stay in 32 bits.
    Bfloat16,
}

impl AdapterDtype {
    fn dtype(self) -> DType {
        match self {
            Self::Float32 => DType::F32,
            Self::Bfloat16 => DType::BF16,
        }
    }
}

/// QLoRA (Dettmers et al. 2023, sections 3 and 5): LoRA on a frozen base in 4 bits.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use peft_models::LlamaLoader;
/// use peft_quantization::QLoraConfig;
///
/// let device = peft_core::device::device("flex")?.autodiff();
/// let config = QLoraConfig::new(16).with_loftq(1);
/// let quantizer = config.quantizer()?;
/// let base = LlamaLoader::new("SmolLM2-135M").with_quantizer(&quantizer).load(&device)?;
/// let model = quantizer.attach(&base, "austen")?;
/// # Ok(())
/// # }
/// ```
///
/// A model that is there already is quantized with `base.pack_weights(&quantizer)?` in the loader's place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QLoraConfig {
    /// The base's format. Default: NF4 in blocks of 64 with double quantization, tables and heads in `bfloat16`.
    pub quantization: QuantizationConfig,
    /// The adapter. Default: the rank given, alpha 16, all linear layers but heads.
    pub lora: LoraConfig,
    /// Iterations of LoftQ (Li et al. 2023) for the adapter's initial values; 0, the default, for LoRA's own. With
    /// one the quantized weights are those of `quantization` alone; with more they are not, so save the base, too.
    pub loftq_iterations: usize,
    /// Number format of the adapter. Default: 32 bits.
    pub adapter_dtype: AdapterDtype,
}

impl QLoraConfig {
    /// As the paper trains, with an adapter of rank `r`.
    pub fn new(r: usize) -> Self {
        Self {
            quantization: QuantizationConfig::nf4().with_double_quantization(true),
            lora: LoraConfig::new(r).with_alpha(16.0),
            loftq_iterations: 0,
            adapter_dtype: AdapterDtype::Float32,
        }
    }

    /// Sets the base's format.
    #[must_use]
    pub fn with_quantization(mut self, quantization: QuantizationConfig) -> Self {
        self.quantization = quantization;
        self
    }

    /// Sets the adapter.
    #[must_use]
    pub fn with_lora(mut self, lora: LoraConfig) -> Self {
        self.lora = lora;
        self
    }

    /// Sets LoftQ's iterations.
    #[must_use]
    pub fn with_loftq(mut self, iterations: usize) -> Self {
        self.loftq_iterations = iterations;
        self
    }

    /// Sets the adapter's number format.
    #[must_use]
    pub fn with_adapter_dtype(mut self, dtype: AdapterDtype) -> Self {
        self.adapter_dtype = dtype;
        self
    }

    /// What packs the base while it is loaded, and then puts the adapter on it.
    ///
    /// # Errors
    ///
    /// What the two configurations refuse; [`Error::Setting`] for LoftQ of several iterations where the adapter is
    /// not on all linear layers, as the others' weights would be changed without a factor that makes up for it.
    pub fn quantizer(&self) -> Result<QLoraQuantizer<'_>> {
        peft_core::method::Method::validate(&self.lora)?;
        self.quantization.validate()?;
        let targets = &self.lora.targets;
        let all = match &targets.target_modules {
            None => true,
            Some(targets) => targets.is_all_linear(),
        };
        let all = all && targets.exclude_modules.is_none() && targets.layers_to_transform.is_none();
        if self.loftq_iterations > 1 && !all {
            let expected = "at most 1 unless the adapter is on all linear layers";
            return Err(Error::setting(
                "loftq_iterations",
                self.loftq_iterations,
                expected,
            ));
        }
        let loftq = match self.loftq_iterations {
            0 => None,
            iterations => {
                let every: Wanted = |_| true;
                let quantizer =
                    LoftQQuantizer::new(&self.quantization, self.lora.r, iterations, every)?;
                Some(quantizer)
            }
        };
        Ok(QLoraQuantizer {
            config: self,
            loftq,
        })
    }
}

/// Which layers are to have factors, by name.
type Wanted = fn(&str) -> bool;

/// A [`WeightQuantizer`] for the base of a [`QLoraConfig`]; of one base, if there is LoftQ.
///
/// It reads checkpoints whose weights are in 4 bits already, and writes them
/// (`Llama::export_quantized` of peft-models), as the configuration's [`QuantizationConfig`] does. LoftQ, which starts from dense weights, is refused for those.
pub struct QLoraQuantizer<'a> {
    config: &'a QLoraConfig,
    loftq: Option<LoftQQuantizer<'a, Wanted>>,
}

impl QLoraQuantizer<'_> {
    /// `base`, which this has quantized, with the adapter called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] with what `attach` refuses; with LoftQ, for a base that it has not quantized, and for adapters
    /// that cannot start from factors (DoRA, PiSSA, OLoRA).
    pub fn attach<M: PeftModule>(self, base: &M, name: &str) -> Result<M> {
        let mut model = base.attach(name, &self.config.lora)?;
        if let Some(loftq) = self.loftq {
            let (device, _) = base.layout().like();
            let adapted: HashSet<String> = model
                .adapter_states::<LoraLinear>(name)?
                .into_iter()
                .map(|(layer, _)| layer)
                .collect();
            let found = loftq.into_layers(&device).into_iter();
            let factors: Vec<_> = found
                .filter(|layer| adapted.contains(&layer.name))
                .map(|layer| (layer.name, layer.down, layer.up))
                .collect();
            if factors.is_empty() {
                let reason = "LoftQ's quantizer has not quantized any layer that the adapter is on: load the base with it, \
                              or pack it";
                return Err(Error::Model(peft_core::Error::Packing {
                    layer: adapted.into_iter().min().unwrap_or_default(),
                    reason: reason.to_string(),
                }));
            }
            model = init_from_factors(&model, name, factors)?;
        }
        if self.config.adapter_dtype != AdapterDtype::Float32 {
            model = cast_factors(&model, name, self.config.adapter_dtype.dtype())?;
        }
        Ok(model)
    }
}

impl WeightQuantizer for QLoraQuantizer<'_> {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        match &self.loftq {
            Some(loftq) => loftq.pack(layer, values),
            None => self.config.quantization.pack(layer, values),
        }
    }

    fn wants(&self, layer: QuantizedLayer<'_>) -> bool {
        self.config.quantization.wants(layer)
    }

    fn read_parts(
        &self,
        layer: QuantizedLayer<'_>,
        parts: &BTreeMap<String, RawTensor>,
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        if self.loftq.is_some() {
            return Err(peft_core::Error::Packing {
                layer: layer.name.to_string(),
                reason: "LoftQ starts from dense weights, and the checkpoint holds this one in 4 bits: take \
                         `with_loftq(0)`, or a checkpoint of the dense model"
                    .to_string(),
            });
        }
        self.config.quantization.read_parts(layer, parts)
    }

    fn write_parts(
        &self,
        layer: &str,
        rows: &QuantizedWeight,
    ) -> peft_core::Result<Option<BTreeMap<String, RawTensor>>> {
        self.config.quantization.write_parts(layer, rows)
    }

    fn quantization_config(&self, dense: &[String]) -> Option<Value> {
        self.config.quantization.quantization_config(dense)
    }
}
