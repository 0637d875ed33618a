//! More tokens than the model was trained with: a larger table, and a head as large.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use peft_core::checkpoint::{MODEL_FILE, read_config, read_tensors};
use peft_core::quantize::QuantizedModule as _;
use peft_core::{PeftModule as _, TiedHead};

use super::Llama;
use crate::LoadError;

/// In front of the model's names in Hugging Face PEFT's files.
const PREFIX: &str = "base_model.model.";
const TABLE: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";
/// What may stand between a table's name and `.weight`, the base's own values first: of a module that is saved whole, of a
/// table with trained rows, of an adapted one, of one as it is.
const BASES: [&str; 4] = [
    ".original_module",
    ".token_adapter.base_layer",
    ".base_layer",
    "",
];

fn refused(setting: &'static str, found: impl ToString, expected: impl ToString) -> LoadError {
    LoadError::Setting {
        setting,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

impl Llama {
    /// The model with `rows` embeddings: for tokens that a tokenizer has got
    /// ([`LlamaTokenizer::with_tokens`](crate::LlamaTokenizer::with_tokens)). The head grows with the table, whether it is the
    /// table or not.
    ///
    /// The new rows are the mean of those that are there, in the table and in the head: the model takes new tokens for
    /// average ones, and gives them about the mean's probability. Upstream's `resize_token_embeddings` draws them from a
    /// normal distribution of that mean, with a billionth of the rows' covariance.
    ///
    /// Attach adapters afterwards. Adapters that were made on the smaller model fit the larger one, unless they have
    /// factors of the table or the head.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use peft_models::{Llama, LlamaTokenizer};
    ///
    /// # fn main() -> Result<(), peft_models::LoadError> {
    /// let (tokenizer, _) = LlamaTokenizer::load("SmolLM2-135M")?.with_tokens(&["<|tool|>"], true)?;
    /// let model = Llama::load("SmolLM2-135M", &Device::default())?;
    /// let model = model.resize_token_embeddings(tokenizer.vocab_size())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for fewer rows than there are, for a model with adapters, with a quantized table or
    /// head, or whose tied head has got a weight of its own by merging.
    pub fn resize_token_embeddings(&self, rows: usize) -> Result<Self, LoadError> {
        self.check_resizable(rows)?;
        let mut model = self.clone();
        if rows == self.config.vocab_size {
            return Ok(model);
        }
        let table = &self.model.embed_tokens.weight;
        model.model.embed_tokens.weight = replaced(table, grown(table, rows, 0));
        if let (Some(head), Some(old)) = (&mut model.lm_head, &self.lm_head) {
            head.weight = replaced(&old.weight, grown(&old.weight, rows, 1));
            head.bias = old.bias.as_ref().map(|bias| {
                let value = bias.val();
                let mean = value.clone().mean().expand([rows - value.dims()[0]]);
                replaced(bias, Tensor::cat(vec![value, mean], 0))
            });
        }
        model.config.vocab_size = rows;
        Ok(model)
    }

    /// The model with the vocabulary that an adapter was trained on: the folder of an adapter that Hugging Face PEFT saved
    /// over a model with more tokens holds that model's table and head. [`load_adapter`](peft_core::PeftModule::load_adapter) then
    /// takes it.
    ///
    /// The model gets the rows of the file for its new tokens. A folder without tables gives the model as it is.
    ///
    /// # Errors
    ///
    /// As [`resize_token_embeddings`](Self::resize_token_embeddings); [`LoadError::Packing`] for a folder that cannot be
    /// read; [`LoadError::Setting`] for tables of another width, or with other values for the tokens that the model has.
    pub fn with_vocabulary_of(&self, adapter: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = adapter.as_ref();
        let config = read_config(dir)?;
        let tensors = read_tensors(&dir.join(MODEL_FILE))?;
        let saved = |name: &str| {
            let named = config["modules_to_save"].as_array();
            let named = named.into_iter().flatten().filter_map(|name| name.as_str());
            named.into_iter().any(|saved| name.ends_with(saved))
        };
        let Some(table) = stored(&tensors, TABLE, saved(TABLE)) else {
            return Ok(self.clone());
        };
        let rows = table.data.shape()[0];
        let mut model = self.resize_token_embeddings(rows)?;
        let weight = &self.model.embed_tokens.weight;
        model.model.embed_tokens.weight = replaced(weight, table.rows(weight, weight.val())?);
        if let (Some(head), Some(old)) = (&mut model.lm_head, &self.lm_head)
            && let Some(stored) = stored(&tensors, HEAD, saved(HEAD))
        {
            let rows = stored.rows(&old.weight, old.weight.val().transpose())?;
            head.weight = replaced(&old.weight, rows.transpose());
        }
        Ok(model)
    }

    fn check_resizable(&self, rows: usize) -> Result<(), LoadError> {
        let before = self.config.vocab_size;
        if rows < before {
            let expected = format!("at least {before}, the embeddings that the model has");
            return Err(refused("rows", rows, expected));
        }
        let adapters = self.adapters();
        if !adapters.is_empty() {
            let expected = "none: attach adapters to the model with its new table";
            return Err(refused("adapters", adapters.join(", "), expected));
        }
        let quantized = self.quantized_weights();
        let tables = [TABLE, HEAD];
        if let Some((name, _)) = quantized
            .iter()
            .find(|(name, _)| tables.contains(&name.as_str()))
        {
            let expected = "dense: a quantized table or head does not grow";
            return Err(refused(
                "the weights",
                format!("`{name}` quantized"),
                expected,
            ));
        }
        if self.tied_head.as_ref().and_then(TiedHead::own).is_some() {
            let expected = "the table: save this model and load it again, with a head of its own";
            return Err(refused(
                "the head",
                "a weight of a merged adapter's",
                expected,
            ));
        }
        Ok(())
    }
}

/// A parameter with another value, trained as it was.
fn replaced<const D: usize>(param: &Param<Tensor<D>>, value: Tensor<D>) -> Param<Tensor<D>> {
    let value = value.detach().set_require_grad(param.is_require_grad());
    Param::from_tensor(value)
}

/// A matrix with `rows` entries along `axis`, the new ones the mean of those that are there.
fn grown(param: &Param<Tensor<2>>, rows: usize, axis: usize) -> Tensor<2> {
    let value = param.val().detach();
    let mut shape = value.dims();
    let mean = value.clone().mean_dim(axis);
    shape[axis] = rows - shape[axis];
    Tensor::cat(vec![value, mean.expand(shape)], axis)
}

/// A table of the file, `[rows, width]`.
struct Stored<'a> {
    key: String,
    data: &'a TensorData,
}

/// The base's values of a table or head that the file has; of one that is saved whole, the trained ones are no base's.
fn stored<'a>(
    tensors: &'a BTreeMap<String, TensorData>,
    name: &str,
    saved: bool,
) -> Option<Stored<'a>> {
    let found = BASES.iter().find_map(|base| {
        let key = format!("{PREFIX}{name}{base}.weight");
        let data = tensors.get(&key)?;
        Some(Stored { key, data })
    })?;
    let trained = saved && found.key == format!("{PREFIX}{name}.weight");
    (!trained && found.data.shape().len() == 2).then_some(found)
}

impl Stored<'_> {
    /// The table's rows, if those that the model has are among them: `own`, `[rows, width]`.
    fn rows(&self, like: &Param<Tensor<2>>, own: Tensor<2>) -> Result<Tensor<2>, LoadError> {
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
