//! The values that training changes, by their paths in the model.
//!
//! Parameter ids are drawn anew in every process, paths are not: they are what checkpoints go by. All
//! parameters of adapters are among them, the frozen ones too (LoRA-FA's A, random projections), so that
//! a run goes on from the same numbers whatever the seed of the process that goes on.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use crate::tensors::Tensors;

/// Path segment between a parameter or site and its adapters.
const ADAPTERS: &str = "peft";

fn belongs<const D: usize>(path: &[String], param: &Param<Tensor<D>>) -> bool {
    param.is_require_grad() || path.iter().any(|segment| segment == ADAPTERS)
}

#[derive(Default)]
struct Survey {
    path: Vec<String>,
    shapes: BTreeMap<String, Vec<usize>>,
    trained: usize,
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.trained += usize::from(param.is_require_grad());
        if belongs(&self.path, param) {
            let shape = param.lazy_shape().to_vec();
            self.shapes.insert(self.path.join("."), shape);
        }
    }
}

fn survey<M: Module>(model: &M) -> Survey {
    let mut survey = Survey::default();
    model.visit(&mut survey);
    survey
}

/// How many parameter tensors get gradients.
pub(crate) fn count<M: Module>(model: &M) -> usize {
    survey(model).trained
}

#[derive(Default)]
struct Read {
    path: Vec<String>,
    values: Tensors,
}

impl ModuleVisitor for Read {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if belongs(&self.path, param) {
            let path = self.path.join(".");
            self.values.insert(path, param.base().into_data());
        }
    }
}

/// Copies of the values.
pub(crate) fn values<M: Module>(model: &M) -> Tensors {
    let mut read = Read::default();
    model.visit(&mut read);
    read.values
}

/// Whether all values are numbers.
pub(crate) fn finite<M: Module>(model: &M) -> bool {
    let values = values(model);
    let finite = |data: &TensorData| data.iter::<f64>().all(f64::is_finite);
    values.values().all(finite)
}

struct Fill<'a> {
    path: Vec<String>,
    values: &'a Tensors,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(data) = self.values.get(&self.path.join(".")) else {
            return param;
        };
        let (device, dtype) = (param.device(), param.dtype());
        let data = data.clone().convert_dtype(dtype);
        param.map(|old| {
            let trained = old.is_require_grad();
            Tensor::from_data(data, (&device, dtype)).set_require_grad(trained)
        })
    }
}

/// Whether the values are of this model.
///
/// # Errors
///
/// What differs, if they are of another model or adapter.
pub(crate) fn fit<M: Module>(model: &M, values: &Tensors) -> Result<(), String> {
    let shapes = survey(model).shapes;
    if let Some(path) = shapes.keys().find(|path| !values.contains_key(*path)) {
        return Err(format!(
            "it holds no `{path}`, which the model trains; attach the adapter as it was attached for that run"
        ));
    }
    for (path, data) in values {
        let found = data.shape().to_vec();
        match shapes.get(path) {
            None => {
                return Err(format!(
                    "it holds `{path}`, which the model has not; attach the adapter under the same name and \
                     with the same configuration"
                ));
            }
            Some(shape) if *shape != found => {
                return Err(format!(
                    "`{path}` is {found:?} there and {shape:?} in the model; attach the adapter with the same \
                     configuration"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The model with those values in place of its own.
///
/// # Errors
///
/// As [`fit`].
pub(crate) fn restored<M: Module>(model: M, values: &Tensors) -> Result<M, String> {
    fit(&model, values)?;
    Ok(model.map(&mut Fill {
        path: Vec::new(),
        values,
    }))
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use peft_core::PeftModule as _;
    use peft_reparameterization::LoraConfig;

    use super::*;

    #[derive(Module, Debug)]
    struct Model {
        first: Linear,
        second: Linear,
    }

    fn model(rank: usize) -> Model {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let layer = || LinearConfig::new(4, 4).init(&device);
        let model = Model {
            first: layer(),
            second: layer(),
        };
        let lora = LoraConfig::new(rank)
            .with_init(false)
            .with_targets(["first"]);
        model.attach("mine", &lora).unwrap()
    }

    #[test]
    fn values_go_from_one_model_to_another_by_path() {
        let [given, other] = [model(2), model(2)];
        let values_given = values(&given);
        let names: Vec<_> = values_given.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "first.weight.peft.mine.lora_a",
                "first.weight.peft.mine.lora_b"
            ]
        );
        assert_eq!(count(&given), 2);
        assert_ne!(values(&other), values_given);
        assert!(finite(&given));
        let mut broken = values_given.clone();
        let data = broken.values_mut().last().unwrap();
        data.as_mut_slice::<f32>().unwrap()[1] = f32::NAN;
        assert!(!finite(&restored(given.clone(), &broken).unwrap()));
        let restored = restored(other, &values_given).unwrap();
        assert_eq!(values(&restored), values_given);
        assert_eq!(count(&restored), 2, "they still get gradients");
    }

    #[test]
    fn values_of_another_adapter_are_refused() {
        let values = values(&model(2));
        let error = restored(model(3), &values).unwrap_err();
        assert!(error.contains("lora_a") && error.contains('3'), "{error}");
        let bare = model(2).detach("mine").unwrap();
        let error = restored(bare, &values).unwrap_err();
        assert!(error.contains("which the model has not"), "{error}");
    }
}
