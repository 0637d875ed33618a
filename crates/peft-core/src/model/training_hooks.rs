//! The schedules of a model's adapters, driven by a training loop that knows none of them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use crate::attached::traversal;
use crate::checkpoint::read;
use crate::checkpoint::write::write_tensors;
use crate::error::{Error, Result};
use crate::method::hooks::MethodHooks;
use crate::model::states::{self, unmerged};

/// What the methods of a model's active adapters do in a training loop: penalties, gradients, schedules of
/// ranks. [`PeftModule::training_hooks`](crate::PeftModule::training_hooks) gives it. With methods that do nothing, which
/// are most, its calls cost nothing.
///
/// ```
/// # use burn::optim::{GradientsParams, ModuleOptimizer};
/// # use burn::tensor::Tensor;
/// # use peft_core::{PeftModule, Result};
/// # fn train<M: PeftModule>(
/// #     mut model: M,
/// #     mut optimizer: ModuleOptimizer,
/// #     loss_of: impl Fn(&M) -> Tensor<1>,
/// # ) -> Result<M> {
/// # let (steps, rate) = (100, 1e-3);
/// let mut training = model.training_hooks(steps)?;
/// for _ in 0..steps {
///     let mut loss = loss_of(&model);
///     if let Some(penalty) = training.penalty(&model)? {
///         loss = loss + penalty;
///     }
///     let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
///     training.before_step(&model, &mut gradients)?;
///     model = optimizer.step(rate, model, gradients);
///     model = training.after_step(model)?;
/// }
/// # Ok(model) }
/// ```
#[derive(Debug)]
pub struct TrainingHooks {
    steps: usize,
    done: usize,
    /// By the adapters' names, in the order of attachment.
    schedules: Vec<(String, Box<dyn MethodHooks>)>,
}

impl TrainingHooks {
    pub(crate) fn new<M: Module>(model: &M, steps: usize) -> Result<Self> {
        let attached = unmerged(model)?;
        let mut schedules = Vec::new();
        for name in attached.names() {
            if !attached.is_active(&name) {
                continue;
            }
            let states = states::of(&attached, &name)?;
            let schedule = attached.origin(&name)?.method.schedule(steps, &states)?;
            schedules.extend(schedule.map(|schedule| (name, schedule)));
        }
        Ok(Self {
            steps,
            done: 0,
            schedules,
        })
    }

    /// Goes on where [`save`](Self::save) wrote `file`. Model and optimizer are the caller's to bring back;
    /// the same adapters have to be active.
    ///
    /// # Errors
    ///
    /// As [`PeftModule::training_hooks`](crate::PeftModule::training_hooks); [`Error::Io`]; [`Error::Checkpoint`] for a
    /// file that is damaged, of a training of another length or of other adapters.
    pub fn resume<M: Module>(model: &M, steps: usize, file: impl AsRef<Path>) -> Result<Self> {
        let path = file.as_ref();
        let wrong = |reason| Error::Checkpoint {
            path: path.into(),
            reason,
        };
        let mut training = Self::new(model, steps)?;
        let mut tensors = read::read_tensors(path)?;
        let integers = tensors.iter().find(|(_, data)| !data.dtype().is_float());
        if let Some((key, data)) = integers {
            let found = data.dtype();
            return Err(wrong(format!(
                "tensor `{key}` holds {found:?}; {}",
                read::FLOATS
            )));
        }
        let planned = count(&mut tensors, "steps").map_err(wrong)?;
        training.done = count(&mut tensors, "step").map_err(wrong)?;
        if planned != steps {
            return Err(wrong(format!(
                "it is of a training of {planned} steps, and this one has {steps}"
            )));
        }
        let attached = unmerged(model)?;
        for (name, schedule) in &mut training.schedules {
            let prefix = format!("{name}.");
            let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) = tensors
                .into_iter()
                .partition(|(key, _)| key.starts_with(&prefix));
            tensors = others;
            let mut own: BTreeMap<String, TensorData> = own
                .into_iter()
                .map(|(key, data)| (key[prefix.len()..].to_string(), data))
                .collect();
            let states = states::of(&attached, name)?;
            schedule.restore(&mut own, &states).map_err(wrong)?;
            let left = own.into_iter();
            tensors.extend(left.map(|(key, data)| (format!("{prefix}{key}"), data)));
        }
        match tensors.keys().next() {
            None => Ok(training),
            Some(key) => Err(wrong(format!(
                "no schedule of the model's active adapters has a place for tensor `{key}`"
            ))),
        }
    }

    /// How many steps are done.
    pub fn step(&self) -> usize {
        self.done
    }

    /// What is to be added to the loss, of shape `[1]`; `None` where no method has a penalty. A loop that
    /// accumulates gradients adds it once a step.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAdapter`], [`Error::Merged`], if the model is not what it was.
    pub fn penalty<M: Module>(&self, model: &M) -> Result<Option<Tensor<1>>> {
        let mut sum: Option<Tensor<1>> = None;
        if self.schedules.is_empty() {
            return Ok(sum);
        }
        let attached = unmerged(model)?;
        for (name, schedule) in &self.schedules {
            if let Some(penalty) = schedule.penalty(&states::of(&attached, name)?) {
                sum = Some(match sum {
                    Some(sum) => sum + penalty,
                    None => penalty,
                });
            }
        }
        Ok(sum)
    }

    /// To be called right before the optimizer's step, with the gradients that it will get: accumulated and
    /// clipped. A method may change them.
    ///
    /// # Errors
    ///
    /// As [`penalty`](Self::penalty).
    pub fn before_step<M: Module>(
        &mut self,
        model: &M,
        gradients: &mut GradientsParams,
    ) -> Result<()> {
        if self.schedules.is_empty() {
            return Ok(());
        }
        let attached = unmerged(model)?;
        for (name, schedule) in &mut self.schedules {
            let states = states::of(&attached, name)?;
            schedule.before_step(self.done + 1, &states, gradients);
        }
        Ok(())
    }

    /// To be called right after the optimizer's step: gives the model as the methods have changed it.
    ///
    /// # Errors
    ///
    /// As [`penalty`](Self::penalty).
    pub fn after_step<M: Module>(&mut self, mut model: M) -> Result<M> {
        let step = self.done + 1;
        for (name, schedule) in &mut self.schedules {
            let attached = unmerged(&model)?;
            let mut states = states::of(&attached, name)?;
            schedule.after_step(step, &mut states);
            if states.is_changed() {
                model = traversal::place(&model, states::put(&attached, name, states));
            }
        }
        self.done = step;
        Ok(model)
    }

    /// Writes how far the training is, and what the schedules remember, to one safetensors file. To be called
    /// between two steps; [`resume`](Self::resume) goes on with the same numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, file: impl AsRef<Path>) -> Result<()> {
        let one = |count: usize| TensorData::new(vec![count as f64], [1]);
        let mut tensors = BTreeMap::from([
            ("step".to_string(), one(self.done)),
            ("steps".to_string(), one(self.steps)),
        ]);
        for (name, schedule) in &self.schedules {
            let own = schedule.tensors().into_iter();
            tensors.extend(own.map(|(key, data)| (format!("{name}.{key}"), data)));
        }
        write_tensors(file.as_ref(), &tensors)
    }
}

/// The count that a tensor of one element holds.
fn count(tensors: &mut BTreeMap<String, TensorData>, key: &str) -> Result<usize, String> {
    let data = tensors
        .remove(key)
        .ok_or_else(|| format!("tensor `{key}` is missing"))?;
    match data.iter::<f64>().collect::<Vec<f64>>().as_slice() {
        [value] if *value >= 0.0 && value.fract() == 0.0 => Ok(*value as usize),
        _ => Err(format!("tensor `{key}` must hold one whole number")),
    }
}
