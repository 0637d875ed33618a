//! Llama and its tokenizer, as the loop uses them.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_models::{Llama, LlamaTokenizer, LmBatch, LoadError, Message, Moment};

use crate::data::Tokenize;
use crate::model::{CausalLm, Limits};

impl CausalLm for Llama {
    fn nll(&self, batch: &LmBatch) -> Tensor<1> {
        self.loss(batch)
    }

    fn limits(&self) -> Option<Limits> {
        let config = self.config();
        let taken = self.virtual_tokens();
        Some(Limits {
            positions: config.max_position_embeddings.saturating_sub(taken),
            vocabulary: config.vocab_size,
        })
    }

    fn logits(&self, batch: &LmBatch) -> Option<Tensor<2>> {
        Some(self.batch_logits(batch))
    }

    fn has_logits(&self) -> bool {
        true
    }

    fn has_checkpointing(&self) -> bool {
        true
    }

    fn nll_gradients(
        &self,
        batch: &LmBatch,
        checkpointing: bool,
        scale: f64,
    ) -> (f64, GradientsParams) {
        self.loss_and_gradients(batch, checkpointing, scale)
    }
}

impl Tokenize for LlamaTokenizer {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, LoadError> {
        LlamaTokenizer::encode(self, text, special)
    }

    fn eos(&self) -> Option<u32> {
        LlamaTokenizer::eos(self).first().copied()
    }

    fn chat(&self, messages: &[Message], reply: bool, now: Moment) -> Result<String, LoadError> {
        self.apply_chat_template_at(messages, reply, now)
    }
}
