//! Tables of token embeddings that grow, and the tables that adapters' files bring along.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use peft_core::PeftModule;
use peft_core::checkpoint::{MODEL_FILE, read_config, read_tensors};
use peft_core::quantize::QuantizedModule as _;

use crate::LoadError;

/// In front of the model's names in Hugging Face PEFT's files.
const PREFIX: &str = "base_model.model.";
/// What may stand between a table's name and `.weight`, the base's own values first: of a module that is saved whole, of a
/// table with trained rows, of an adapted one, of one as it is.
const BASES: [&str; 4] = [
    ".original_module",
    ".token_adapter.base_layer",
    ".base_layer",
    "",
];

pub(crate) fn refused(
    setting: &'static str,
    found: impl ToString,
    expected: impl ToString,
) -> LoadError {
    LoadError::Setting {
        setting,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// Refuses `rows` for a model that cannot have them in the place of `before`: fewer, a model with adapters, one of whose
/// `tables` is quantized.
pub(crate) fn check_resizable<M: PeftModule>(
    model: &M,
    [before, rows]: [usize; 2],
    tables: &[&str],
) -> Result<(), LoadError> {
    if rows < before {
        let expected = format!("at least {before}, the embeddings that the model has");
        return Err(refused("rows", rows, expected));
    }
    let adapters = model.adapters();
    if !adapters.is_empty() {
        let expected = "none: attach adapters to the model with its new table";
        return Err(refused("adapters", adapters.join(", "), expected));
    }
    let quantized = model.quantized_weights();
    let mut names = quantized.iter().map(|(name, _)| name);
    if let Some(name) = names.find(|name| tables.contains(&name.as_str())) {
        let expected = "dense: a quantized table or head does not grow";
        let found = format!("`{name}` quantized");
        return Err(refused("the weights", found, expected));
    }
    Ok(())
}

/// A parameter with another value, trained as it was.
pub(crate) fn replaced<const D: usize>(
    param: &Param<Tensor<D>>,
    value: Tensor<D>,
) -> Param<Tensor<D>> {
    let value = value.detach().set_require_grad(param.is_require_grad());
    Param::from_tensor(value)
}

/// A matrix with `rows` entries along `axis`, the new ones the mean of those that are there.
pub(crate) fn grown(param: &Param<Tensor<2>>, rows: usize, axis: usize) -> Tensor<2> {
    let value = param.val().detach();
    let mut shape = value.dims();
    let mean = value.clone().mean_dim(axis);
    shape[axis] = rows - shape[axis];
    Tensor::cat(vec![value, mean.expand(shape)], axis)
}

/// The tables that an adapter's folder may hold.
pub(crate) struct Tables {
    tensors: BTreeMap<String, TensorData>,
    /// Ends of names of modules that are saved whole.
    saved: Vec<String>,
}

/// A table of the file, `[rows, width]`.
pub(crate) struct Stored<'a> {
    key: String,
    data: &'a TensorData,
}

impl Tables {
    pub(crate) fn read(dir: &Path) -> Result<Self, LoadError> {
        let config = read_config(dir)?;
        let tensors = read_tensors(&dir.join(MODEL_FILE))?;
        let saved = config["modules_to_save"].as_array();
        let saved = saved.into_iter().flatten().filter_map(|name| name.as_str());
        Ok(Self {
            tensors,
            saved: saved.map(str::to_string).collect(),
        })
    }

    /// The base's values of a table or head that the file has; of one that is saved whole, the trained ones are no base's.
    pub(crate) fn of(&self, name: &str) -> Option<Stored<'_>> {
        let found = BASES.iter().find_map(|base| {
            let key = format!("{PREFIX}{name}{base}.weight");
            let data = self.tensors.get(&key)?;
            Some(Stored { key, data })
        })?;
        let saved = self.saved.iter().any(|saved| name.ends_with(saved));
        let trained = saved && found.key == format!("{PREFIX}{name}.weight");
        (!trained && found.data.shape().len() == 2).then_some(found)
    }
}

impl Stored<'_> {
    /// How many rows it has.
    pub(crate) fn count(&self) -> usize {
        self.data.shape()[0]
    }

    /// The table's rows, if those that the model has are among them: `own`, `[rows, width]`.
    pub(crate) fn rows(
        &self,
        like: &Param<Tensor<2>>,
        own: Tensor<2>,
    ) -> Result<Tensor<2>, LoadError> {
        let [before, width] = own.dims();
        let found = self.data.shape().to_vec();
        let device = own.device();
        let stored = Tensor::<2>::from_data(self.data.clone(), (&device, like.val().dtype()));
        let fits = found[1] == width && found[0] >= before;
        let same = fits && {
            let own = own.detach();
            let off = stored.clone().narrow(0, 0, before) - own.clone();
            // A file of 16 bits has the values to its last place.
            let near = own.abs() / 128.0 + 1e-6;
            off.abs().lower_equal(near).all().into_scalar::<bool>()
        };
        if same {
            return Ok(stored);
        }
        let found = format!("{found:?}{}", if fits { " of other values" } else { "" });
        let expected = format!(
            "`{}` with the model's own {before} rows of {width} first: the adapter was made on another model",
            self.key
        );
        Err(refused("the adapter's table", found, expected))
    }
}
