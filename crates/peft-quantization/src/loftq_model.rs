//! LoftQ on all layers of a model, in memory or while it is loaded.

use std::cell::RefCell;

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::quantize::QuantizedModule as _;
use peft_core::quantize::{QuantizedLayer, WeightQuantizer};
use peft_ops::quantized::QuantizedWeight;

use crate::config::{Storage, refused};
use crate::{Error, FourBit, QuantizationConfig, Result, loftq};

/// The factors that make up for what quantization took from a layer's weight.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoftQLayer {
    /// Upstream's name of the layer, as in `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// A, `[in, rank]`.
    pub down: Tensor<2>,
    /// B, `[rank, out]`. The change of the layer is `x A B`, with a scale of 1.
    pub up: Tensor<2>,
    /// ‖W − Q(W)‖ / ‖W‖ (Frobenius) of quantization alone.
    pub error_before: f64,
    /// ‖W − Q − (A B)ᵀ‖ / ‖W‖ (Frobenius).
    pub error_after: f64,
}

/// Factors before they are on a device.
struct Factors {
    name: String,
    down: TensorData,
    up: TensorData,
    error_before: f64,
    error_after: f64,
}

/// A [`WeightQuantizer`] that quantizes by LoftQ, and keeps the factors: for loading a model whose dense weights are
/// never all there. [`loftq_model()`] is for one that is there.
///
/// Layers that `wants` is not true for are quantized as the configuration says, as are tables and heads.
pub struct LoftQQuantizer<'a, W> {
    config: &'a QuantizationConfig,
    rank: usize,
    iterations: usize,
    wants: W,
    found: RefCell<Vec<Factors>>,
}

impl<'a, W: Fn(&str) -> bool> LoftQQuantizer<'a, W> {
    /// Packs as `config` says, with factors of `rank` for the layers that `wants` is true for; `iterations` as
    /// for [`loftq()`].
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a configuration that does not quantize to 4 bits or is refused, and for a rank or a
    /// number of iterations of 0.
    pub fn new(
        config: &'a QuantizationConfig,
        rank: usize,
        iterations: usize,
        wants: W,
    ) -> Result<Self> {
        config.validate()?;
        if !config.load_in_4bit {
            let expected = "true: LoftQ is of bitsandbytes' 4-bit formats";
            return Err(Error::setting("load_in_4bit", false, expected));
        }
        for (setting, value) in [("rank", rank), ("iterations", iterations)] {
            if value == 0 {
                return Err(Error::setting(setting, value, "at least 1"));
            }
        }
        Ok(Self {
            config,
            rank,
            iterations,
            wants,
            found: RefCell::default(),
        })
    }

    /// The factors of what was quantized, on a device.
    pub fn into_layers(self, device: &Device) -> Vec<LoftQLayer> {
        let layers = self.found.into_inner().into_iter();
        let layers = layers.map(|factors| LoftQLayer {
            name: factors.name,
            down: Tensor::from_data(factors.down, device),
            up: Tensor::from_data(factors.up, device),
            error_before: factors.error_before,
            error_after: factors.error_after,
        });
        layers.collect()
    }
}

impl<W: Fn(&str) -> bool> WeightQuantizer for LoftQQuantizer<'_, W> {
    fn pack(
        &self,
        layer: QuantizedLayer<'_>,
        values: &[f32],
    ) -> peft_core::Result<Option<QuantizedWeight>> {
        if self.config.storage(layer) != Storage::Quantized || !(self.wants)(layer.name) {
            return self.config.pack(layer, values);
        }
        let options = self.config.four_bit_options();
        let quantize = |values: &[f32]| FourBit::quantize(values, layer.shape, options);
        let found = loftq(values, layer.shape, self.rank, self.iterations, quantize)
            .map_err(|error| refused(layer.name, error))?;
        let [rows, columns] = layer.shape;
        self.found.borrow_mut().push(Factors {
            name: layer.name.to_string(),
            down: TensorData::new(found.down, [columns, self.rank]),
            up: TensorData::new(found.up, [self.rank, rows]),
            error_before: found.error_before,
            error_after: found.error_after,
        });
        Ok(Some(QuantizedWeight::new(found.quantized)))
    }

    fn wants(&self, layer: QuantizedLayer<'_>) -> bool {
        self.config.wants(layer)
    }
}

/// Packs a model as `config` says, with [`loftq()`] for the layers that `wants` is true for, which is told their
/// upstream names. The layers' factors are what a LoRA of `rank` on the quantized model is to start from
/// (`peft_reparameterization::init_from_factors`): it then computes nearly what the dense model does.
///
/// With one iteration the quantized weights are those of `config` alone. With more they are not: an adapter that
/// starts from the factors belongs to this quantized model, so save that, too.
///
/// # Errors
///
/// - Those of [`LoftQQuantizer::new`]; [`Error::Setting`] if no layer that `wants` is true for is quantized.
/// - [`Error::Model`] for a layer that is quantized already, has no room for factors of `rank` or cannot be
///   quantized, and for a merged model.
pub fn loftq_model<M: PeftModule>(
    model: &M,
    config: &QuantizationConfig,
    rank: usize,
    iterations: usize,
    wants: impl Fn(&str) -> bool,
) -> Result<(M, Vec<LoftQLayer>)> {
    let quantizer = LoftQQuantizer::new(config, rank, iterations, wants)?;
    let quantized = model.quantized_weights();
    if let Some((layer, _)) = quantized.iter().find(|(layer, _)| (quantizer.wants)(layer)) {
        return Err(peft_core::Error::Packing {
            layer: layer.clone(),
            reason:
                "it is quantized already, and LoftQ needs the weight as it was: take the dense model"
                    .to_string(),
        }
        .into());
    }
    let quantized = model.pack_weights(&quantizer)?;
    let (device, _) = model.layout().like();
    let layers = quantizer.into_layers(&device);
    if layers.is_empty() {
        return Err(Error::setting(
            "wants",
            "false for every layer that is quantized",
            "true for one at least",
        ));
    }
    Ok((quantized, layers))
}
