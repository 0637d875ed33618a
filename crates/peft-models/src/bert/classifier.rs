//! Classification and regression of texts.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_core::KeyMapping;
use peft_core::calibration::Calibration;
use peft_core::nn::{AdaptedForward, ForwardContext};

use super::{Bert, Pooling, pooling};
use crate::LoadError;

/// A BERT encoder with a linear head on its pooled output.
///
/// Module paths are those of Hugging Face's `BertForSequenceClassification` and `BertForMultipleChoice`: `bert.encoder…`,
/// `classifier`. The head is known as one to adapters: targets like `all-linear` skip it, and
/// training an adapter for sequence classification trains it along.
///
/// With one class it is a regression model: `[batch, 1]` outputs for a mean squared error.
#[derive(Module, Debug)]
pub struct BertClassifier {
    /// The encoder.
    pub bert: Bert,
    /// Dropout of the pooled output.
    pub dropout: Dropout,
    /// The head, `hidden_size` to the number of classes.
    pub classifier: Linear,
    /// Upstream's names for the modules, and which are heads.
    pub names: KeyMapping,
    #[module(skip)]
    pooling: Pooling,
}

impl BertClassifier {
    /// A fresh head for `classes` classes (1 for regression) on an encoder. `dropout`, in [0, 1),
    /// acts on the pooled output while training.
    ///
    /// The head's matrix is drawn here from N(0, `initializer_range`²), so `device.seed(..)` before
    /// the call decides it; its bias is 0.
    ///
    /// # Errors
    ///
    /// [`LoadError::Setting`] for no classes, a dropout out of range, or [`Pooling::Cls`] of an
    /// encoder without a pooler.
    pub fn new_head(
        bert: Bert,
        classes: usize,
        pooling: Pooling,
        dropout: f64,
        device: &Device,
    ) -> Result<Self, LoadError> {
        check_head("classes", classes, dropout)?;
        if pooling == Pooling::Cls && bert.pooler.is_none() {
            let expected = "`Mean` for this encoder: its checkpoint has no pooler";
            return Err(refusal("pooling", "`Cls`", expected));
        }
        let model = Self::build(bert, classes, pooling, dropout, device);
        pooling::draw_now(&model.classifier);
        Ok(model)
    }

    /// The model with a head that is not drawn yet.
    pub(super) fn build(
        bert: Bert,
        classes: usize,
        pooling: Pooling,
        dropout: f64,
        device: &Device,
    ) -> Self {
        let config = bert.config();
        let names = KeyMapping::new(&[]).with_heads(&["classifier"]);
        Self {
            classifier: config.linear(config.hidden_size, classes, device),
            dropout: DropoutConfig::new(dropout).init(),
            bert,
            names: match pooling {
                Pooling::Cls => names.with_model_class("BertForSequenceClassification"),
                Pooling::Mean => names,
            },
            pooling,
        }
    }

    /// How hidden states become the head's input.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Logits `[batch, classes]`, or predictions `[batch, 1]`, for token `ids` `[batch, seq]` and
    /// `padding` `[batch, seq]`, true where padded.
    ///
    /// # Panics
    ///
    /// As [`Bert::forward`] does.
    pub fn forward(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<2> {
        self.forward_in(ids, ForwardContext::new().with_padding(padding))
    }

    /// Scores `[batch, choices]` for token `ids` `[batch, choices, seq]` and `padding` of that shape: each choice is a text, and
    /// its score is the one output of a head of one class. Upstream's `BertForMultipleChoice`, whose checkpoints
    /// [`load`](Self::load) reads.
    ///
    /// # Panics
    ///
    /// As [`Bert::forward`] does, and if the head has another number of classes than 1.
    pub fn choices(&self, ids: Tensor<3, Int>, padding: Option<Tensor<3, Bool>>) -> Tensor<2> {
        let [batch, choices, seq] = ids.dims();
        let texts = [batch * choices, seq];
        let padding = padding.map(|padding| padding.reshape(texts));
        self.forward(ids.reshape(texts), padding)
            .reshape([batch, choices])
    }

    /// As [`Bert::key_values`], under the names of this model's layers.
    ///
    /// # Errors
    ///
    /// As `Bert::key_values`.
    ///
    /// # Panics
    ///
    /// As `Bert::key_values`.
    pub fn key_values(&self, ids: &[u32]) -> peft_core::Result<Calibration> {
        crate::key_values::of_text(self, ids, |model, ids| {
            model.bert.forward(ids, None);
        })
    }

    /// As [`forward`](Self::forward), with what adapters find in the context: see [`Bert::forward_in`].
    ///
    /// # Panics
    ///
    /// As `forward`.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<2> {
        let padding = context.padding();
        let output = self.bert.forward_in(ids, context);
        let context = output.context.clone();
        let pooled = self.bert.pool(output, padding, self.pooling);
        self.classifier
            .adapted_in(self.dropout.adapted(pooled), &context)
    }
}

fn refusal(setting: &'static str, found: &str, expected: &str) -> LoadError {
    LoadError::Setting {
        setting,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// Refuses a head of no outputs (`setting` says what they are), and a dropout that is no probability below 1.
pub(super) fn check_head(
    setting: &'static str,
    outputs: usize,
    dropout: f64,
) -> Result<(), LoadError> {
    if outputs == 0 {
        return Err(refusal(setting, "0", "at least 1"));
    }
    if !(0.0..1.0).contains(&dropout) {
        return Err(refusal("dropout", &dropout.to_string(), "in [0, 1)"));
    }
    Ok(())
}
