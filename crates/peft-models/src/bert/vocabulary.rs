//! More tokens than the encoder was trained with: a larger table.

use std::path::Path;

use super::{Bert, BertClassifier, BertTokenClassifier};
use crate::LoadError;
use crate::vocabulary::{Tables, check_resizable, grown, replaced};

/// The table of the encoder, and the same within a task model.
const TABLE: &str = "embeddings.word_embeddings";
const TABLE_WITHIN: &str = "bert.embeddings.word_embeddings";

impl Bert {
    /// The model with `rows` token embeddings: for tokens that a tokenizer has got
    /// ([`Tokenizer::with_tokens`](crate::Tokenizer::with_tokens)). The new rows are the mean of those that are there.
    /// Upstream's `resize_token_embeddings` draws them from a normal distribution of that mean, with a billionth of the
    /// rows' covariance.
    ///
    /// Attach adapters afterwards. Adapters that were made on the smaller model fit the larger one, unless they have
    /// factors of the table.
    ///
    /// ```no_run
    /// use burn::tensor::Device;
    /// use peft_models::{Bert, Tokenizer};
    ///
    /// # fn main() -> Result<(), peft_models::LoadError> {
    /// let (tokenizer, _) = Tokenizer::load("all-MiniLM-L6-v2")?.with_tokens(&["[QUERY]"], true)?;
    /// let model = Bert::load("all-MiniLM-L6-v2", &Device::default())?;
    /// let model = model.resize_token_embeddings(tokenizer.vocab_size())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for fewer rows than there are, for a model with adapters, or with a quantized table.
    pub fn resize_token_embeddings(&self, rows: usize) -> Result<Self, LoadError> {
        check_resizable(self, [self.config.vocab_size, rows], &[TABLE])?;
        Ok(self.with_rows(rows))
    }

    /// The model with the vocabulary that an adapter was trained on: the folder of an adapter that Hugging Face PEFT saved
    /// over a model with more tokens holds that model's table.
    /// [`load_adapter`](peft_core::PeftModule::load_adapter) then takes it.
    ///
    /// The model gets the rows of the file for its new tokens. A folder without a table gives the model as it is.
    ///
    /// # Errors
    ///
    /// As [`resize_token_embeddings`](Self::resize_token_embeddings); [`LoadError::Packing`] for a folder that cannot be
    /// read; [`LoadError::Setting`] for a table of another width, or with other values for the tokens that the model has.
    pub fn with_vocabulary_of(&self, adapter: impl AsRef<Path>) -> Result<Self, LoadError> {
        let tables = Tables::read(adapter.as_ref())?;
        let Some(table) = tables.of(TABLE) else {
            return Ok(self.clone());
        };
        let mut model = self.resize_token_embeddings(table.count())?;
        let weight = &self.embeddings.word_embeddings.weight;
        model.embeddings.word_embeddings.weight =
            replaced(weight, table.rows(weight, weight.val())?);
        Ok(model)
    }

    /// The model with so many rows, which may be those that it has.
    fn with_rows(&self, rows: usize) -> Self {
        let mut model = self.clone();
        if rows > self.config.vocab_size {
            let weight = &self.embeddings.word_embeddings.weight;
            model.embeddings.word_embeddings.weight = replaced(weight, grown(weight, rows, 0));
            model.config.vocab_size = rows;
        }
        model
    }
}

/// The same of a model with a head on the encoder.
macro_rules! below_a_head {
    ($model:ty) => {
        impl $model {
            /// As [`Bert::resize_token_embeddings`], of the encoder below the head.
            ///
            /// # Errors
            ///
            /// As [`Bert::resize_token_embeddings`].
            pub fn resize_token_embeddings(&self, rows: usize) -> Result<Self, LoadError> {
                let before = self.bert.config.vocab_size;
                check_resizable(self, [before, rows], &[TABLE_WITHIN])?;
                let mut model = self.clone();
                model.bert = self.bert.with_rows(rows);
                Ok(model)
            }

            /// As [`Bert::with_vocabulary_of`], of the encoder below the head.
            ///
            /// # Errors
            ///
            /// As [`Bert::with_vocabulary_of`].
            pub fn with_vocabulary_of(&self, adapter: impl AsRef<Path>) -> Result<Self, LoadError> {
                let tables = Tables::read(adapter.as_ref())?;
                let Some(table) = tables.of(TABLE_WITHIN) else {
                    return Ok(self.clone());
                };
                let mut model = self.resize_token_embeddings(table.count())?;
                let weight = &self.bert.embeddings.word_embeddings.weight;
                model.bert.embeddings.word_embeddings.weight =
                    replaced(weight, table.rows(weight, weight.val())?);
                Ok(model)
            }
        }
    };
}

below_a_head!(BertClassifier);
below_a_head!(BertTokenClassifier);
