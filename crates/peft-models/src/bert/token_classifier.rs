//! Scores of tokens: labels, and where answers begin and end.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_core::KeyMapping;
use peft_core::nn::{AdaptedForward, ForwardContext};

use super::classifier::check_head;
use super::{Bert, pooling};
use crate::LoadError;

/// The module of the head in a model that answers questions.
pub(super) const ANSWERS: &str = "qa_outputs";

/// A BERT encoder with a linear head on the hidden state of every token.
///
/// It is Hugging Face's `BertForTokenClassification` (module paths `bert.encoder…`, `classifier`) or, with the scores where an
/// answer begins and ends, `BertForQuestionAnswering` (`bert.encoder…`, `qa_outputs`). It has no pooler. The head is known as
/// one to adapters: targets like `all-linear` skip it, and training an adapter for one of these tasks trains it along.
#[derive(Module, Debug)]
pub struct BertTokenClassifier {
    /// The encoder.
    pub bert: Bert,
    /// Dropout of the hidden states; none where answers are scored.
    pub dropout: Dropout,
    /// The head, `hidden_size` to the number of scores.
    pub classifier: Linear,
    /// Upstream's names for the modules, and which are heads.
    pub names: KeyMapping,
}

impl BertTokenClassifier {
    /// A fresh head for `labels` labels on an encoder. `dropout`, in [0, 1), acts on hidden states while training.
    ///
    /// The head's matrix is drawn here from N(0, `initializer_range`²), so `device.seed(..)` before the call decides it; its
    /// bias is 0.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for no labels, or a dropout out of range.
    pub fn new_head(
        bert: Bert,
        labels: usize,
        dropout: f64,
        device: &Device,
    ) -> Result<Self, LoadError> {
        check_head("labels", labels, dropout)?;
        let model = Self::build(bert, Some((labels, dropout)), device);
        pooling::draw_now(&model.classifier);
        Ok(model)
    }

    /// A fresh head for answers on an encoder, drawn as [`new_head`](Self::new_head) draws it.
    pub fn new_answers(bert: Bert, device: &Device) -> Self {
        let model = Self::build(bert, None, device);
        pooling::draw_now(&model.classifier);
        model
    }

    /// The model with a head that is not drawn yet: of so many labels and with such dropout, or of answers.
    pub(super) fn build(mut bert: Bert, labels: Option<(usize, f64)>, device: &Device) -> Self {
        bert.pooler = None;
        let config = bert.config();
        let (scores, dropout) = labels.unwrap_or((2, 0.0));
        let names = match labels {
            Some(_) => KeyMapping::new(&[]).with_model_class("BertForTokenClassification"),
            None => KeyMapping::new(&[("classifier", ANSWERS)])
                .with_model_class("BertForQuestionAnswering"),
        };
        Self {
            classifier: config.linear(config.hidden_size, scores, device),
            dropout: DropoutConfig::new(dropout).init(),
            bert,
            names: names.with_heads(&["classifier"]),
        }
    }

    /// Scores `[batch, virtual_tokens + seq, labels]` for token `ids` `[batch, seq]` and `padding` `[batch, seq]`, true where
    /// padded. Virtual tokens of active prompt adapters are in front, as in [`Bert::forward`] and upstream.
    ///
    /// # Panics
    ///
    /// As [`Bert::forward`] does.
    pub fn forward(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.forward_in(ids, ForwardContext::new().with_padding(padding))
    }

    /// As [`forward`](Self::forward), with what adapters find in the context: see [`Bert::forward_in`].
    ///
    /// # Panics
    ///
    /// As `forward`.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<3> {
        let output = self.bert.forward_in(ids, context);
        self.classifier
            .adapted_in(self.dropout.adapted(output.hidden), &output.context)
    }
}
