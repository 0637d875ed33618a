//! Refuses all that can be refused, before any time is spent.

use burn::tensor::{Int, Tensor};
use peft_core::calibration::Calibrate;
use peft_models::{Bert, BertClassifier, Llama, Pooling};

use super::{LeftOut, Order};
use crate::definition::{Kind, MethodChoice, Task};
use crate::job::{Inputs, model_folder, rows};
use crate::{Error, Result};

impl Order {
    /// Reads what the tasks need and refuses all that can be refused, before any time is spent. With the methods
    /// `all`, those that a task's model has no place for are left out instead; the plan says which and why.
    ///
    /// # Errors
    ///
    /// Settings that cannot work, data or models that are not here or not what is expected,
    /// configurations that their method refuses or that do not fit the model.
    pub fn prepare(&mut self) -> Result<()> {
        if self.suite.seeds.is_empty() {
            return self.refuse("seeds: there must be one at least");
        }
        if self.tasks.is_empty() || self.methods.is_empty() {
            return self.refuse("there must be a task and a method at least");
        }
        for task in &self.tasks {
            self.check_settings(task)?;
        }
        self.left_out.clear();
        for task in self.tasks.clone() {
            self.inputs.insert(task.name.clone(), Inputs::of(&task)?);
            self.check_kinds(&task)?;
            for method in self.methods_of(&task) {
                self.job(&task, method, 1.0, 0).configured(&self.registry)?;
            }
            self.try_on(&task)?;
            if self.methods_of(&task).next().is_none() {
                return self.refuse(&format!("no method is for task {}", task.name));
            }
        }
        Ok(())
    }

    fn refuse<T>(&self, reason: &str) -> Result<T> {
        Err(Error::Definition {
            file: format!("suite {}", self.suite.name),
            reason: reason.into(),
        })
    }

    fn check_settings(&self, task: &Task) -> Result<()> {
        let training = &task.training;
        let least = match task.kind {
            Kind::Classification => 3,
            Kind::LanguageModel => 8,
        };
        if training.epochs == 0 || training.batch_size == 0 || task.max_len < least {
            return self.refuse(&format!(
                "epochs and batch_size must be at least 1, max_len at least {least}"
            ));
        }
        let split = &task.split;
        if [split.train, split.dev, split.test].contains(&Some(0)) {
            return self.refuse(&format!(
                "task {}: train, dev and test must be at least 1 each",
                task.name
            ));
        }
        let positive = [training.learning_rate_factor, training.clip_norm];
        if !positive.iter().all(|value| *value > 0.0) || !(0.0..1.0).contains(&training.warmup) {
            return self
                .refuse("learning_rate_factor and clip_norm must be above 0, warmup in [0, 1)");
        }
        let metric = task.kind.metric().name;
        if task.metric != metric {
            return self.refuse(&format!(
                "task {} has the metric `{}`, and its kind is measured by `{metric}`",
                task.name, task.metric
            ));
        }
        let (others, field) = match task.kind {
            Kind::Classification if training.gradient_checkpointing => {
                ("a language model", "gradient_checkpointing")
            }
            Kind::Classification if task.split.general.is_some() => ("a language model", "general"),
            Kind::LanguageModel if training.group_by_length => {
                ("classification", "group_by_length")
            }
            _ => return Ok(()),
        };
        self.refuse(&format!("task {}: {field} is for {others}", task.name))
    }

    /// That a method that was asked for by name is for this kind of task. References are in every suite, and take part
    /// where they can.
    fn check_kinds(&self, task: &Task) -> Result<()> {
        let misplaced = self
            .methods
            .iter()
            .find(|method| !method.reference && !method.kinds.contains(&task.kind));
        match (misplaced, &self.suite.methods) {
            (Some(method), MethodChoice::Named(_)) => {
                let why = match &method.left_out {
                    Some(why) => format!(" ({why})"),
                    None => String::new(),
                };
                self.refuse(&format!(
                    "method {} is not for tasks like {}{why}",
                    method.name, task.name
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_length(&self, task: &Task, positions: usize) -> Result<()> {
        if task.max_len <= positions {
            return Ok(());
        }
        self.refuse(&format!(
            "max_len: {} tokens, and the model of task {} reads at most {positions}",
            task.max_len, task.name
        ))
    }

    /// Attaches each method to the task's model.
    fn try_on(&mut self, task: &Task) -> Result<()> {
        let device = peft_core::device::device(&self.device)?.autodiff();
        let folder = model_folder(&task.model)?;
        let left_out = match task.kind {
            Kind::Classification => {
                let bert = Bert::load(&folder, &device)?;
                self.check_length(task, bert.config().max_position_embeddings)?;
                let classes = rows(task)?.0.labels.len();
                let model = BertClassifier::new_head(bert, classes, Pooling::Mean, 0.0, &device)?;
                self.misfits(task, &model, |model, ids| model.forward(ids, None))?
            }
            Kind::LanguageModel => {
                let model = Llama::load(&folder, &device)?;
                self.check_length(task, model.config().max_position_embeddings)?;
                self.misfits(task, &model, |model, ids| model.forward(ids, None).mean())?
            }
        };
        self.left_out.extend(left_out);
        Ok(())
    }

    /// What has no place on the task's model. `forward` runs the model on token ids, `[1, 4]`, to numbers of which the
    /// mean stands for a loss.
    fn misfits<M, const D: usize>(
        &self,
        task: &Task,
        model: &M,
        forward: impl Fn(&M, Tensor<2, Int>) -> Tensor<D>,
    ) -> Result<Vec<LeftOut>>
    where
        M: Calibrate,
    {
        let mut left_out = Vec::new();
        for method in self.methods_of(task).filter(|method| method.trains()) {
            let job = self.job(task, method, 1.0, 0);
            let configured = job.configured(&self.registry)?;
            let mut parts = Vec::new();
            for part in &job.parts {
                let method = job.of_part(part).configured(&self.registry)?;
                parts.push((&part.name, method));
            }
            // Of any text, where a method asks for statistics: what it chooses is thrown away.
            let loss = |model: &M, ()| {
                let device = &model.devices()[0];
                forward(model, Tensor::zeros([1, 4], device)).mean()
            };
            let attached = parts
                .iter()
                .try_fold(model.clone(), |model, (name, part)| {
                    model.attach(name, part.as_ref())
                })
                .and_then(|model| model.attach_on("compared", configured.as_ref(), [()], loss));
            let Err(error) = attached else {
                continue;
            };
            match &self.suite.methods {
                MethodChoice::All(_) => left_out.push(LeftOut {
                    task: task.name.clone(),
                    method: method.name.clone(),
                    reason: error.to_string(),
                }),
                MethodChoice::Named(_) => {
                    return self.refuse(&format!(
                        "method {} does not fit the model of task {}: {error}",
                        method.name, task.name
                    ));
                }
            }
        }
        Ok(left_out)
    }
}
