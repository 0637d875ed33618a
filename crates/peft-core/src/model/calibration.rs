//! Calibration: statistics of a model on data, before an adapter is attached.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Flag, Module, ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor};

use crate::adapter::site_type::SiteKind;
use crate::attached::traversal::{self, Edits};
use crate::attached::view::Attached;
use crate::error::{Error, Result};
use crate::layout::model_layout::{Layer, LayerKind, Layout, LayoutParam};
use crate::layout::targets::{ALL_LINEAR, Selection};
use crate::method::contract::Method;
use crate::model::attach;
use crate::model::peft_module::PeftModule;
use crate::statistics::calibration::Calibration;
use crate::statistics::gradients::GradientSums;
use crate::statistics::inputs::{InputKinds, InputRecorder};
use crate::statistics::wanted::CalibrationConfig;

/// What error messages call this, in the place of a method.
const TITLE: &str = "Calibration";

/// Calibration of any Burn module.
pub trait Calibrate: PeftModule {
    /// Begins to gather statistics of this model.
    ///
    /// Adapters that are on the model act as they do now. For the statistics that a new adapter will meet, which is
    /// active alone, call [`disable_adapters`](PeftModule::disable_adapters) first.
    ///
    /// # Errors
    ///
    /// [`Error::NoTarget`], [`Error::PartialTarget`] and the like for names that match no layer;
    /// [`Error::UnsupportedLayer`] if inputs are asked for of a layer that is not linear; [`Error::Calibration`] if no
    /// statistic is asked for, or if gradients are asked for of a quantized weight, of a tied head, or of a
    /// model that is not on an autodiff device; [`Error::Merged`].
    fn calibrate(&self, config: &CalibrationConfig) -> Result<Calibrator<Self>> {
        Calibrator::new(self, config)
    }

    /// As [`attach`](PeftModule::attach), with statistics for the method's plan.
    ///
    /// # Errors
    ///
    /// As `attach`, and [`Error::Calibration`] if the method needs statistics that are not there.
    fn attach_with(
        &self,
        name: &str,
        method: &dyn Method,
        calibration: &Calibration,
    ) -> Result<Self> {
        attach::attach(self, name, method, Some(calibration))
    }

    /// As [`attach`](PeftModule::attach), with the statistics that the method asks for
    /// ([`Method::statistics`](crate::method::Method::statistics)), if it asks for some: `loss` is computed of each of the
    /// `examples` with a copy of the model, and differentiated where gradients are asked for.
    ///
    /// ```no_run
    /// # use burn::tensor::Tensor;
    /// # use peft_core::{PeftModule, Result, calibration::Calibrate as _, method::Method};
    /// # fn f<M: PeftModule>(model: &M, method: &dyn Method, rows: Vec<()>, loss: impl Fn(&M, ()) -> Tensor<1>) -> Result<M> {
    /// model.attach_on("mine", method, rows, loss)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`calibrate`](Self::calibrate) and [`attach_with`](Self::attach_with).
    fn attach_on<X>(
        &self,
        name: &str,
        method: &dyn Method,
        examples: impl IntoIterator<Item = X>,
        mut loss: impl FnMut(&Self, X) -> Tensor<1>,
    ) -> Result<Self> {
        let Some(wanted) = method.statistics() else {
            return self.attach(name, method);
        };
        let mut calibrator = self.calibrate(&wanted)?;
        for example in examples {
            let loss = loss(calibrator.model(), example);
            if wanted.gradients || wanted.squared_gradients {
                calibrator.record_gradients(&loss.backward())?;
            }
        }
        self.attach_with(name, method, &calibrator.finish()?)
    }
}

impl<M: Module> Calibrate for M {}

/// A model that gathers statistics while the user runs it on batches.
///
/// [`model`](Self::model) is a copy that shares its weights with the original. Run it as usual; outputs are the
/// original's. Its dropout layers drop nothing. For gradients, compute a loss with it, and give the result of
/// `loss.backward()` to [`record_gradients`](Self::record_gradients). Recording ends when the calibrator is dropped.
///
/// ```no_run
/// # use burn::tensor::Tensor;
/// # use peft_core::method::Method;
/// use peft_core::calibration::{Calibrate as _, CalibrationConfig};
///
/// # fn f<M: peft_core::PeftModule>(model: &M, config: &dyn Method, batches: Vec<()>, loss: impl Fn(&M, &()) -> Tensor<1>)
/// # -> peft_core::Result<()> {
/// let wanted = CalibrationConfig {
///     second_moments: true,
///     gradients: true,
///     ..CalibrationConfig::new(["query", "value"])
/// };
/// let mut calibrator = model.calibrate(&wanted)?;
/// for batch in &batches {
///     let loss = loss(calibrator.model(), batch);
///     calibrator.record_gradients(&loss.backward())?;
/// }
/// let calibration = calibrator.finish()?;
/// let model = model.attach_with("mine", config, &calibration)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Calibrator<M> {
    model: M,
    inputs: Vec<(String, Arc<InputRecorder>)>,
    key_values: Vec<(String, Arc<InputRecorder>)>,
    gradients: Vec<(String, GradientSums)>,
    /// Whether a parameter that no loss depends on has a gradient of zero.
    unreached: bool,
    /// How many backward passes there were.
    batches: usize,
}

impl<M: Module> Calibrator<M> {
    fn new(model: &M, config: &CalibrationConfig) -> Result<Self> {
        let attached = traversal::gather(model);
        attached.refuse_foreign()?;
        attached.refuse_merged()?;
        let layout = &attached.layout;
        let (input_kinds, gradient_kinds) = (config.input_kinds(), config.gradient_kinds());
        let of_layers = input_kinds.any() || gradient_kinds.any();
        if !of_layers && config.key_values == 0 {
            return Err(Error::Calibration {
                place: "all layers".to_string(),
                reason: "no statistic is asked for: set `second_moments` of `CalibrationConfig`, or another of its fields"
                    .to_string(),
            });
        }
        let default = Selection::from(ALL_LINEAR);
        let layers = if of_layers {
            config.targets.select(layout, TITLE, &default, true)?
        } else {
            Vec::new()
        };
        // Nothing is differentiated but what is asked for.
        let frozen = layout
            .params
            .iter()
            .map(|param| (param.path.clone(), false));
        let mut edits = Edits {
            trainable: frozen.collect(),
            ..Edits::default()
        };
        let key_values = record_key_values(&attached, config.key_values, &mut edits)?;
        let mut inputs = Vec::new();
        let mut chosen = Vec::new();
        for layer in layers {
            if input_kinds.any() {
                let weight = linear_weight(layout, layer)?;
                let recorder = Arc::new(InputRecorder::new(input_kinds));
                let mut stack = attached.stack(&weight.path).cloned().unwrap_or_default();
                stack.recorder = Arc::downgrade(&recorder);
                edits.stacks.insert(weight.path.clone(), stack);
                inputs.push((layer.name.clone(), recorder));
            }
            if gradient_kinds.any() {
                for param in layer.params.iter().map(|&index| &layout.params[index]) {
                    // What is no parameter has no gradient.
                    if param.is_buffer() || config.unreached && param.is_tied() {
                        continue;
                    }
                    refuse_without_gradient(layout, param)?;
                    edits.trainable.insert(param.path.clone(), true);
                    chosen.push(param.path.clone());
                }
            }
        }
        let model = traversal::place_with(model, edits).map(&mut WithoutDropout);
        let gradients = model.layout().params.into_iter();
        let gradients = gradients.filter(|param| chosen.contains(&param.path));
        let sums = |param: LayoutParam| {
            let sums = GradientSums::new(gradient_kinds, &param.name, param.base);
            (param.name, sums)
        };
        Ok(Self {
            gradients: gradients.map(sums).collect(),
            model,
            inputs,
            key_values,
            unreached: config.unreached,
            batches: 0,
        })
    }

    /// The model to run on batches.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Adds the gradients of a backward pass through [`model`](Self::model) to the statistics. A selected parameter
    /// without a gradient counts as one with a gradient of zero. After an error the statistics are as they were.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] if no selected parameter has a gradient: the loss is of another model, or no gradients
    /// were asked for.
    pub fn record_gradients(&mut self, gradients: &Gradients) -> Result<()> {
        let mut any = false;
        for (_, sums) in &mut self.gradients {
            any |= sums.record(gradients);
        }
        if !any {
            let reason = if self.gradients.is_empty() {
                "no gradients were asked for: set `gradients` or `squared_gradients` of `CalibrationConfig`"
            } else {
                "these gradients have none of a selected parameter: compute the loss with `Calibrator::model`"
            };
            return Err(Error::Calibration {
                place: "all parameters".to_string(),
                reason: reason.to_string(),
            });
        }
        self.batches += 1;
        Ok(())
    }

    /// Ends the calibration.
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`] for a layer that saw no batch, a parameter that got no gradient where
    /// [`unreached`](CalibrationConfig::unreached) does not say otherwise, and statistics that are NaN or infinite.
    pub fn finish(self) -> Result<Calibration> {
        let finish = |recorders: &[(String, Arc<InputRecorder>)]| {
            let all = recorders.iter();
            let all = all.map(|(layer, recorder)| Ok((layer.clone(), recorder.finish(layer)?)));
            all.collect::<Result<BTreeMap<_, _>>>()
        };
        let (inputs, key_values) = (finish(&self.inputs)?, finish(&self.key_values)?);
        let gradients = self.gradients.into_iter();
        let finish = |sums: GradientSums| sums.finish(self.batches, self.unreached);
        let gradients = gradients.map(|(param, sums)| Ok((param, finish(sums)?)));
        Ok(Calibration {
            inputs,
            key_values,
            gradients: gradients.collect::<Result<_>>()?,
        })
    }
}

/// Puts a recorder at every site of keys and values, for `tokens` tokens; none for 0.
fn record_key_values(
    attached: &Attached,
    tokens: usize,
    edits: &mut Edits,
) -> Result<Vec<(String, Arc<InputRecorder>)>> {
    if tokens == 0 {
        return Ok(Vec::new());
    }
    let kinds = InputKinds {
        samples: tokens,
        ..InputKinds::default()
    };
    let sites = attached.layout.key_value_sites();
    let recorders: Vec<_> = sites
        .map(|site| {
            let recorder = Arc::new(InputRecorder::new(kinds));
            let mut stack = attached.stack(&site.path).cloned().unwrap_or_default();
            stack.recorder = Arc::downgrade(&recorder);
            edits.stacks.insert(site.path.clone(), stack);
            (site.name.clone(), recorder)
        })
        .collect();
    if recorders.is_empty() {
        return Err(attached.layout.no_site(TITLE, SiteKind::KeyValue));
    }
    Ok(recorders)
}

/// The weight of a layer whose inputs can be recorded.
fn linear_weight<'a>(layout: &'a Layout, layer: &Layer) -> Result<&'a LayoutParam> {
    let weight = layout
        .param(layer, "weight")
        .filter(|_| layer.kind == LayerKind::Linear);
    weight.ok_or_else(|| Error::UnsupportedLayer {
        method: "Calibration of inputs",
        layer: layer.name.clone(),
        kind: layer.kind.to_string(),
        supported: "Linear".into(),
    })
}

/// Refuses a parameter that cannot have a gradient of its own.
fn refuse_without_gradient(layout: &Layout, param: &LayoutParam) -> Result<()> {
    let reason = if param.is_tied() {
        let mut tied = layout.tied_weights();
        let table = tied.find(|(head, _)| head.path == param.path);
        let table = table.map_or("", |(_, table)| table.name.as_str());
        format!("a tied head has no gradient of its own: select its table, `{table}`")
    } else if param.quantized_format().is_some() {
        "a quantized weight has no gradient: calibrate the model before its weights are quantized"
            .to_string()
    } else if !param.device().is_autodiff() {
        "gradients need autodiff: put the model on `device.autodiff()`".to_string()
    } else {
        return Ok(());
    };
    Err(Error::Calibration {
        place: param.name.clone(),
        reason,
    })
}

/// Turns dropout off, also on autodiff devices.
struct WithoutDropout;

impl ModuleMapper for WithoutDropout {
    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        flag.with_value(false)
    }
}
