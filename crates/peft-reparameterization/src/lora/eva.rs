//! EVA: A begins as the directions in which a layer's inputs vary most.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use peft_core::calibration::{Calibrate, CalibrationConfig};
use peft_core::method::{Bias, ByLayer, LayerKind, Method as _};
use peft_core::state::AdapterState as _;
use peft_core::{Error, PeftModule, Result, Targets};

use crate::lora::config::{LORA, LoraConfig};
use crate::lora::conv::LoraConv2d;
use crate::lora::fixed_factors::{Factors, Kind, LoraFromFactors, exactly, only};
use crate::lora::init::Start;
use crate::lora::state::{LoraEmbedding, LoraLinear};
use crate::math::linalg;

/// Attaches a LoRA adapter whose A holds the leading right singular vectors of each layer's inputs, and
/// whose ranks go where these explain most (Paischer et al. 2024, Parameter Efficient Fine-tuning via
/// Explained Variance Adaptation, section 3). B begins at zero, so outputs are the base's.
///
/// `look` gets a copy of the model that is to be run on some batches of the data that will be trained on;
/// outputs are not looked at. The copy is without adapters and not on an autodiff device. The model must call its
/// layers through [`AdaptedForward`](peft_core::nn::AdaptedForward). While batches run, the second moments of a layer
/// with `in` input features take 4 · in² bytes ([`CalibrationConfig`]).
///
/// The sum of all ranks stays that of the configuration; `rho` (upstream's default: 2) is how many times
/// its own rank a layer may get, and 1 leaves ranks as they are. A layer that ends with rank 0 gets no
/// adapter. Scales stay as the configuration has them. Upstream looks for singular vectors batch by batch
/// until they settle; here second moments are summed over all batches, which gives them exactly.
///
/// ```no_run
/// # use peft_reparameterization::{LoraConfig, eva};
/// # fn f<M: peft_core::PeftModule>(model: &M, batches: Vec<()>, run: impl Fn(&M, &())) -> peft_core::Result<()> {
/// let config = LoraConfig::new(8).with_targets(["query", "value"]);
/// let model = eva(model, "mine", &config, 2.0, |probed| {
///     for batch in &batches {
///         run(probed, batch);
///     }
/// })?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`Error::Config`] for DoRA and other variants, biases, token rows, a frozen A or another initialisation in the
/// configuration, and a `rho` below 1; [`Error::Calibration`] for a layer that saw no input, or inputs that are not finite; and what
/// [`PeftModule::attach`] refuses.
pub fn eva<M: PeftModule>(
    model: &M,
    name: &str,
    config: &LoraConfig,
    rho: f64,
    look: impl FnOnce(&M),
) -> Result<M> {
    let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
        Err(Error::config(LORA.title, field, value, expected))
    };
    if !(1.0..=1000.0).contains(&rho) {
        return refuse("rho", &rho, "in [1, 1000]");
    }
    check(config)?;
    config.validate()?;
    let start = config.init_lora_weights.start()?;
    if !matches!(start, Start::Kaiming { zero: true } | Start::Eva) {
        let value = &config.init_lora_weights;
        return refuse("init_lora_weights", value, "true or \"eva\"");
    }
    let adapted = adapted_layers(model, name, config)?;
    let layout = model.layout();
    let targets = Targets::new(only(adapted.iter(), &layout));
    let wanted = CalibrationConfig {
        targets,
        second_moments: true,
        ..CalibrationConfig::default()
    };
    let calibrator = model.disable_adapters()?.calibrate(&wanted)?;
    look(&calibrator.model().valid());
    let calibration = calibrator.finish()?;
    let mut layers = Vec::new();
    for layer in adapted {
        let rank = config.rank_pattern.of(&layer, config.r)?;
        // Of a symmetric matrix, singular vectors are eigenvectors.
        let svd = linalg::svd(calibration.inputs(&layer)?.second_moment()?);
        let Some(svd) = svd else {
            let expected = "a layer whose inputs have a singular value decomposition";
            return refuse("target_modules", &layer, expected);
        };
        layers.push((layer, rank, svd));
    }
    let given = distribute(config, rho, &layers, model)?;
    model.attach(name, &given)
}

/// Refuses what does not go with directions of inputs.
pub(crate) fn check(config: &LoraConfig) -> Result<()> {
    let refuse = |field, value: &dyn std::fmt::Debug, expected: &str| {
        Err(Error::config(LORA.title, field, value, expected))
    };
    if config.ensure_weight_tying {
        let expected = "false: factors that come from a layer's inputs are not a table's";
        return refuse("ensure_weight_tying", &true, expected);
    }
    let plain = "leave it out: not with EVA";
    if config.use_dora {
        return refuse("use_dora", &true, plain);
    }
    if config.lora_bias {
        return refuse("lora_bias", &true, plain);
    }
    if config.bias != Bias::None {
        return refuse("bias", &config.bias, plain);
    }
    if config.freeze_a {
        return refuse("freeze_a", &true, plain);
    }
    if let Some(rows) = &config.trainable_token_indices {
        return refuse("trainable_token_indices", rows, plain);
    }
    if let Some(field) = config.linear_only() {
        return refuse(field, &"set", plain);
    }
    Ok(())
}

/// A `[in, r]` of a layer: the leading directions of what goes into it. `None` where it is not finite.
pub(crate) fn directions(moment: Tensor<2>, rank: usize) -> Option<Tensor<2>> {
    // Of a symmetric matrix, singular vectors are eigenvectors.
    let svd = linalg::svd(moment)?;
    let [width, all] = svd.u.dims();
    Some(svd.u.slice([0..width, 0..rank.min(all)]))
}

/// The linear layers that `config` adapts, sorted. Refuses what attaching it would refuse, before batches are run.
fn adapted_layers<M: PeftModule>(
    model: &M,
    name: &str,
    config: &LoraConfig,
) -> Result<Vec<String>> {
    let random = config.clone().with_init_lora_weights(true);
    let attached = model.attach(name, &random)?;
    let others = [
        (
            LayerKind::Embedding,
            first(attached.adapter_states::<LoraEmbedding>(name)?),
        ),
        (
            LayerKind::Conv2d,
            first(attached.adapter_states::<LoraConv2d>(name)?),
        ),
    ];
    for (kind, layer) in others {
        if let Some(layer) = layer {
            return Err(Error::UnsupportedLayer {
                method: LORA.title,
                layer,
                kind: kind.to_string(),
                supported: "Linear".into(),
            });
        }
    }
    let states = attached.adapter_states::<LoraLinear>(name)?;
    let mut layers: Vec<String> = states.into_iter().map(|(layer, _)| layer).collect();
    layers.sort();
    Ok(layers)
}

/// The place of the first state.
fn first<A>(states: Vec<(String, A)>) -> Option<String> {
    states.into_iter().next().map(|(layer, _)| layer)
}

/// Gives each layer as many directions as explain most over all layers.
fn distribute<M: PeftModule>(
    config: &LoraConfig,
    rho: f64,
    layers: &[(String, usize, linalg::Svd)],
    model: &M,
) -> Result<LoraFromFactors> {
    let budget: usize = layers.iter().map(|(_, rank, _)| rank).sum();
    let mut shares: Vec<(f64, usize)> = Vec::new();
    for (index, (_, rank, svd)) in layers.iter().enumerate() {
        let values: Vec<f32> = svd.s.to_data().iter().collect();
        let all: f64 = values.iter().map(|value| f64::from(*value)).sum();
        let most = (*rank as f64 * rho).round() as usize;
        let shared = |value: &f32| (f64::from(*value) / all.max(f64::MIN_POSITIVE), index);
        shares.extend(values.iter().take(most).map(shared));
    }
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut counts = vec![0; layers.len()];
    for (_, index) in shares.iter().take(budget) {
        counts[*index] += 1;
    }
    let layout = model.layout();
    let mut factors = BTreeMap::new();
    let mut written = config.clone();
    written.init_lora_weights = "eva".into();
    written.rank_pattern = ByLayer::default();
    written.alpha_pattern = ByLayer::default();
    for ((layer, rank, svd), count) in layers.iter().zip(counts) {
        if count == 0 {
            continue;
        }
        let alpha = config.alpha_pattern.of(layer, config.lora_alpha)?;
        let divisor = |rank: usize| {
            if config.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            }
        };
        let scale = alpha / divisor(*rank);
        if count != config.r {
            written.rank_pattern.insert(&exactly(layer), count);
        }
        let alpha = scale * divisor(count);
        if (alpha - config.lora_alpha).abs() > 1e-12 {
            written.alpha_pattern.insert(&exactly(layer), alpha);
        }
        let out = layout
            .params
            .iter()
            .find(|param| param.name == format!("{layer}.weight"))
            .map_or(0, |param| param.shape()[1]);
        let [width, all] = svd.u.dims();
        let left = svd.u.clone().slice([0..width, 0..count.min(all)]);
        factors.insert(
            layer.clone(),
            Factors {
                kind: Kind::Linear,
                right: Tensor::zeros([count, out], &left.device()),
                left,
                scale,
                more: false,
            },
        );
    }
    written.targets = Targets {
        target_modules: Some(only(factors.keys(), &layout)),
        ..Targets::default()
    };
    Ok(LoraFromFactors::with_config(written, factors))
}
