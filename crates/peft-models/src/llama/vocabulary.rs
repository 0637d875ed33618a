//! More tokens than the model was trained with: a larger table, and a head as large.

use std::path::Path;

use burn::tensor::Tensor;
use peft_core::TiedHead;

use super::Llama;
use crate::LoadError;
use crate::vocabulary::{Tables, check_resizable, grown, refused, replaced};

const TABLE: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

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
        let tables = Tables::read(adapter.as_ref())?;
        let Some(table) = tables.of(TABLE) else {
            return Ok(self.clone());
        };
        let mut model = self.resize_token_embeddings(table.count())?;
        let weight = &self.model.embed_tokens.weight;
        model.model.embed_tokens.weight = replaced(weight, table.rows(weight, weight.val())?);
        if let (Some(head), Some(old)) = (&mut model.lm_head, &self.lm_head)
            && let Some(stored) = tables.of(HEAD)
        {
            let rows = stored.rows(&old.weight, old.weight.val().transpose())?;
            head.weight = replaced(&old.weight, rows.transpose());
        }
        Ok(model)
    }

    fn check_resizable(&self, rows: usize) -> Result<(), LoadError> {
        check_resizable(self, [self.config.vocab_size, rows], &[TABLE, HEAD])?;
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
