//! The values that training changes, by their paths in the model.
//!
//! Parameter ids are drawn anew in every process, paths are not: they are what checkpoints go by. All
//! parameters of active adapters are among them, the frozen ones too (LoRA-FA's A, random projections, the indices
//! of sparse changes), so that a run goes on from the same numbers whatever the seed of the process that goes on. Those of inactive ones are
//! not: training does not change them.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::nn::{ACTIVE_ADAPTER, INACTIVE_ADAPTER};

use crate::tensors::Tensors;

/// Where a traversal of a model is.
#[derive(Default)]
pub(crate) struct Place {
    path: Vec<String>,
    /// How many adapters it is inside of that take part in the forward pass, and that do not.
    active: usize,
    inactive: usize,
}

impl Place {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_string());
        self.active += usize::from(container == ACTIVE_ADAPTER);
        self.inactive += usize::from(container == INACTIVE_ADAPTER);
    }

    pub(crate) fn exit(&mut self, container: &str) {
        self.path.pop();
        self.active -= usize::from(container == ACTIVE_ADAPTER);
        self.inactive -= usize::from(container == INACTIVE_ADAPTER);
    }

    /// The path of what is visited.
    pub(crate) fn path(&self) -> String {
        self.path.join(".")
    }

    /// Whether training changes the parameter that is visited.
    pub(crate) fn trains<const D: usize>(&self, param: &Param<Tensor<D>>) -> bool {
        param.is_require_grad() && self.inactive == 0
    }

    /// Whether the parameter that is visited is one of those that a run goes on from.
    fn belongs<const D: usize>(&self, param: &Param<Tensor<D>>) -> bool {
        self.trains(param) || self.active > 0
    }
}

#[derive(Default)]
struct Survey {
    place: Place,
    shapes: BTreeMap<String, Vec<usize>>,
    /// Paths of those that are integers.
    integers: BTreeSet<String>,
    /// Paths of those that get gradients.
    trained: BTreeSet<String>,
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.place.trains(param) {
            self.trained.insert(self.place.path());
        }
        if self.place.belongs(param) {
            let shape = param.lazy_shape().to_vec();
            self.shapes.insert(self.place.path(), shape);
        }
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if self.place.active > 0 {
            let shape = param.lazy_shape().to_vec();
            self.shapes.insert(self.place.path(), shape);
            self.integers.insert(self.place.path());
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
    survey(model).trained.len()
}

/// The paths of the parameters that get gradients.
pub(crate) fn paths<M: Module>(model: &M) -> BTreeSet<String> {
    survey(model).trained
}

#[derive(Default)]
struct Read {
    place: Place,
    values: Tensors,
}

impl ModuleVisitor for Read {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.place.belongs(param) {
            let path = self.place.path();
            self.values.insert(path, param.base().into_data());
        }
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        if self.place.active > 0 {
            let path = self.place.path();
            self.values.insert(path, param.val().into_data());
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
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(data) = self.values.get(&self.path.join(".")) else {
            return param;
        };
        let (device, dtype) = (param.device(), param.dtype());
        let data = data.clone().convert_dtype(dtype);
        param.map(|_| Tensor::from_data(data, (&device, dtype)))
    }
}

/// Whether the values are of this model.
///
/// # Errors
///
/// What differs, if they are of another model or adapter.
pub(crate) fn fit<M: Module>(model: &M, values: &Tensors) -> Result<(), String> {
    let Survey {
        shapes, integers, ..
    } = survey(model);
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
            Some(_) if integers.contains(path) == data.dtype().is_float() => {
                return Err(format!(
                    "`{path}` holds {:?} there, and the model has {} in its place",
                    data.dtype(),
                    if integers.contains(path) {
                        "integers"
                    } else {
                        "floats"
                    }
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
            .with_init_lora_weights(false)
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
    fn inactive_adapters_are_not_among_the_values() {
        let names = |model: &Model| values(model).into_keys().collect::<Vec<_>>();
        let second = LoraConfig::new(3)
            .with_init_lora_weights(false)
            .with_targets(["second"]);
        let both = model(2).attach("other", &second).unwrap();
        let other = [
            "second.weight.peft.other.lora_a",
            "second.weight.peft.other.lora_b",
        ];
        assert_eq!(names(&both), other);
        assert_eq!(count(&both), 2);
        let mine = both.activate(&["mine"]).unwrap();
        assert_eq!(names(&mine), names(&model(2)));
        let all = both.activate(&["mine", "other"]).unwrap();
        assert_eq!(names(&all).len(), 4);
        // Rows of a batch have both.
        let rows = both
            .set_adapter_per_row(&[Some("mine"), Some("other")])
            .unwrap();
        assert_eq!(names(&rows).len(), 4);
        assert_eq!(count(&both.disable_adapters().unwrap()), 0);
    }

    #[derive(Module, Debug)]
    struct Named {
        peft: Linear,
        other: Linear,
    }

    #[test]
    fn a_field_of_the_users_that_is_called_peft_is_no_adapter() {
        let (_, device) = peft_core::device::cpu_devices().remove(0);
        let device = device.autodiff();
        let layer = || LinearConfig::new(4, 4).init(&device);
        let model = Named {
            peft: layer(),
            other: layer(),
        };
        let lora = LoraConfig::new(2).with_targets(["peft"]);
        let model = model.attach("mine", &lora).unwrap();
        let names: Vec<_> = values(&model).into_keys().collect();
        let expected = ["lora_a", "lora_b"].map(|factor| format!("peft.weight.peft.mine.{factor}"));
        assert_eq!(names, expected);
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
