//! Llama (Touvron et al. 2023) and its like: the decoders of Hugging Face's `LlamaForCausalLM`,
//! `MistralForCausalLM` and `Qwen2ForCausalLM`.

mod attention;
mod batch;
mod cache;
mod config;
mod gradients;
mod layer;
mod load;
mod pieces;
mod rope;
mod tiny;
mod vocabulary;

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_core::calibration::Calibration;
use peft_core::nn::{
    AdaptedForward, ForwardContext, HiddenState, SiteContext, adapted_cross_entropy,
};
use peft_core::ops::Rotary;
use peft_core::{HiddenSite, KeyMapping, PromptSite, TiedHead};
use serde_json::Value;

pub use attention::LlamaAttention;
pub use batch::LmBatch;
pub use cache::KvCache;
pub use config::LlamaConfig;
pub use layer::{LlamaLayer, LlamaMlp};
pub use load::LlamaLoader;
pub use rope::{Rope, RopeScaling};

use attention::Positions;

/// Fields here whose modules are called otherwise upstream.
const RENAMES: &[(&str, &str)] = &[("tied_head", "lm_head")];

/// A causal language model: token ids to logits of what follows each.
///
/// Module paths are those of Hugging Face's `LlamaForCausalLM`. Adapter sites: [`LlamaModel::prompt`],
/// [`LlamaModel::site`] behind the embeddings, and in every layer [`LlamaLayer::prompt`], [`LlamaAttention::prefix`],
/// [`LlamaAttention::heads_site`], [`LlamaLayer::attention_site`] and [`LlamaLayer::feed_forward_site`].
///
/// Weights may be quantized ([`quantize::QuantizedModule::pack_weights`](peft_core::quantize::QuantizedModule::pack_weights), or while loading:
/// [`LlamaLoader::with_quantizer`]): QLoRA is LoRA on such a model.
#[derive(Module, Debug)]
pub struct Llama {
    /// Embeddings and layers.
    pub model: LlamaModel,
    /// The output head, unless it is the embedding table.
    pub lm_head: Option<Linear>,
    /// The output head that is the embedding table.
    pub tied_head: Option<TiedHead>,
    /// Upstream's names for the modules, and which is the head.
    pub names: KeyMapping,
    #[module(skip)]
    config: LlamaConfig,
    /// The `config.json` that the model was loaded with; an object, or null.
    #[module(skip)]
    pub(crate) source: Arc<Value>,
}

/// What is below the head.
#[derive(Module, Debug)]
pub struct LlamaModel {
    /// Embeddings of tokens, `[vocab_size, hidden_size]`.
    pub embed_tokens: Embedding,
    /// Where virtual tokens go in front of the embeddings.
    pub prompt: PromptSite,
    /// Where adapters act on the embeddings, before the first layer. What can be undone is undone in front of the head.
    pub site: HiddenSite,
    /// The layers.
    pub layers: Vec<LlamaLayer>,
    /// Normalisation of the last hidden states.
    pub norm: RmsNorm,
}

impl LlamaConfig {
    /// A model with fresh weights: matrices from N(0, `initializer_range`²), biases 0, norms 1, as upstream
    /// initialises. All values are drawn here, in a fixed order: `device.seed(..)` before the call decides
    /// them.
    pub fn init(&self, device: &Device) -> Llama {
        let llama = self.build(device);
        crate::bert::draw_now(&llama);
        llama
    }

    /// A model whose parameters are not drawn yet.
    fn build(&self, device: &Device) -> Llama {
        let layers = (0..self.num_hidden_layers).map(|_| LlamaLayer::new(self, device));
        let tied = self.tie_word_embeddings;
        Llama {
            model: LlamaModel {
                embed_tokens: self.embedding(device),
                prompt: PromptSite::new(self.hidden_size).with_name("embed_tokens"),
                site: HiddenSite::new(HiddenState::EmbeddingOutput, self.hidden_size),
                layers: layers.collect(),
                norm: self.norm(device),
            },
            lm_head: (!tied).then(|| self.linear(self.hidden_size, self.vocab_size, false, device)),
            tied_head: tied.then(|| TiedHead::new("model.embed_tokens")),
            names: KeyMapping::new(RENAMES)
                .with_heads(&["lm_head", "tied_head"])
                .with_model_type(self.model_type.clone())
                .with_decoder(self.decoder_settings()),
            config: self.clone(),
            source: Arc::default(),
        }
    }
}

impl Llama {
    /// The configuration that the model was built from.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where the model is, with its autodiff setting.
    pub fn device(&self) -> Device {
        self.model.norm.gamma.lazy_device()
    }

    /// Logits `[batch, virtual tokens + seq, vocab_size]` for token `ids` `[batch, seq]`.
    ///
    /// `padding`, `[batch, seq]`, is true where a token only fills up its row, at the end or the beginning;
    /// such positions are attended by none. As upstream without `position_ids`, positions count from the
    /// row's beginning. Where adapters have virtual tokens, padding at the beginning does not count: the text follows
    /// them as it does without padding. `padding` is read from the device then.
    ///
    /// # Panics
    ///
    /// If there are more positions than `max_position_embeddings`.
    pub fn forward(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.forward_in(ids, ForwardContext::new().with_padding(padding))
    }

    /// As [`forward`](Self::forward), with what adapters find in the context: routing, values of a method. The model
    /// adds positions and virtual tokens to it.
    ///
    /// # Panics
    ///
    /// As `forward`.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<3> {
        let (x, context) = self.last_states(ids, context);
        self.logits(x, &context)
    }

    /// The hidden states that the head sees, `[batch, virtual tokens + seq, hidden_size]`: what a router goes by, or a
    /// probe. Arguments and panics are those of [`forward_in`](Self::forward_in).
    pub fn hidden_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<3> {
        self.last_states(ids, context).0
    }

    /// The normalised states after the last layer, and what flowed with the forward pass.
    fn last_states(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
    ) -> (Tensor<3>, ForwardContext) {
        let [rows, length] = ids.dims();
        let places = self.places(length, context.padding());
        let (x, context) = self.embed(ids, context);
        let count = x.dims()[1];
        let padding = context.padding();
        let mask = padding.map(|padding| hidden(padding.reshape([rows, 1, count])));
        let positions = self.positions(places, mask, context, &x.device());
        debug_assert_eq!(count, length + self.model.prompt.virtual_tokens());
        let (x, positions) = self.through_layers(x, positions);
        let x = self.leave_stream(x, &positions.context);
        (x, positions.context)
    }

    /// The keys and values of a text in every layer, of the model without its adapters: what a prefix or a cartridge may
    /// start from. `ids` are the text's tokens, special ones included.
    ///
    /// ```no_run
    /// # use peft_core::{calibration::Calibrate as _, method::Method};
    /// # fn f(llama: &peft_models::Llama, ids: &[u32], cartridge: &dyn Method) -> peft_core::Result<()> {
    /// let text = llama.key_values(ids)?;
    /// let model = llama.attach_with("mine", cartridge, &text)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Calibration`](peft_core::Error::Calibration) if there is no token, or if keys or values are not finite;
    /// [`Error::Merged`](peft_core::Error::Merged).
    ///
    /// # Panics
    ///
    /// If there are more tokens than `max_position_embeddings`, or one that the model does not know.
    pub fn key_values(&self, ids: &[u32]) -> peft_core::Result<Calibration> {
        crate::key_values::of_text(self, ids, |model, ids| {
            model.next_logits(ids, &mut model.cache());
        })
    }

    /// The sum over the batch's targets of their negative log likelihoods, in nats: `[1]`. The logits of the
    /// whole batch are never there at once.
    ///
    /// # Panics
    ///
    /// If the batch does not fit the model.
    pub fn loss(&self, batch: &LmBatch) -> Tensor<1> {
        let (x, positions) = self.enter(batch);
        let (x, positions) = self.through_layers(x, positions);
        let context = &positions.context;
        let loss = self.head_loss(x, batch, context);
        let scored = context.take_scored().into_iter();
        scored.fold(loss, |loss, (state, weight)| {
            let context = &context.of_last_tokens(batch.length, state.dims()[1]);
            loss + self.loss_of_state(state, batch, context) * weight
        })
    }

    /// Logits `[rows · length, vocab_size]` of what follows each of the batch's tokens.
    ///
    /// # Panics
    ///
    /// If the batch does not fit the model.
    pub fn batch_logits(&self, batch: &LmBatch) -> Tensor<2> {
        let (x, positions) = self.enter(batch);
        let (x, positions) = self.through_layers(x, positions);
        let count = x.dims()[1];
        let x = x.slice_dim(1, count - batch.length..count);
        let context = positions.context.of_last_tokens(batch.length, count);
        let x = self.leave_stream(x, &context);
        self.logits(x, &context)
            .reshape([batch.rows * batch.length, self.config.vocab_size])
    }

    /// What goes into the first layer, and where it is.
    fn enter(&self, batch: &LmBatch) -> (Tensor<3>, Positions) {
        let device = self.device();
        let shape = [batch.rows, batch.length];
        batch.check(self.config.vocab_size);
        let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
        let segments = batch.visible();
        let context = batch.context(&device).with_segments(segments.clone());
        let (x, context) = self.embed(ids, context);
        let prompt = self.model.prompt.virtual_tokens();
        let prefix = self.prefix_positions();
        let positions = batch.positions(prompt, self.begins_with_virtual_tokens());
        let positions = positions.into_iter();
        let positions = positions.map(|position| prefix + position).collect();
        let positions = Positions {
            segments,
            ..self.positions((positions, batch.rows), None, context, &device)
        };
        (x, positions)
    }

    /// How many positions the active adapters take: virtual tokens in front of the text, or in front of its
    /// keys and values.
    pub fn virtual_tokens(&self) -> usize {
        self.model.prompt.virtual_tokens() + self.prefix_positions()
    }

    /// How many of those have keys and values only: the most that a layer has.
    fn prefix_positions(&self) -> usize {
        let layers = self.model.layers.iter();
        let prefixes = layers.map(|layer| layer.self_attn.prefix.positions());
        prefixes.max().unwrap_or(0)
    }

    /// Whether virtual tokens are in front of the text, or of its keys and values, whether they take positions or not.
    fn begins_with_virtual_tokens(&self) -> bool {
        let layers = &mut self.model.layers.iter();
        self.model.prompt.is_active()
            || layers.any(|layer| {
                let attention = &layer.self_attn;
                attention.prefix.virtual_tokens() > 0
                    || attention.heads_site.is_active()
                    || layer.prompt.is_active()
            })
    }

    fn embed(&self, ids: Tensor<2, Int>, context: ForwardContext) -> (Tensor<3>, ForwardContext) {
        let context = context.with_token_ids(ids.clone()).with_causal();
        let words = self.model.embed_tokens.adapted_in(ids, &context);
        let (x, context) = self.model.prompt.add_prompt(words, context);
        (self.enter_stream(x, &context), context)
    }

    /// Embeddings as the adapters behind them leave them.
    fn enter_stream(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        if !self.model.site.is_active() {
            return x;
        }
        self.model.site.forward(x, &SiteContext::new(context))
    }

    /// The normalised stream as the head sees it: what the adapters behind the embeddings did is undone.
    fn leave_stream(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        let x = self.model.norm.adapted_in(x, context);
        if !self.model.site.is_active() {
            return x;
        }
        self.model.site.inverse(x, &SiteContext::new(context))
    }

    /// Positions of virtual tokens and `length` tokens, and of how many rows they are: of one where all have the same.
    fn places(&self, length: usize, padding: Option<Tensor<2, Bool>>) -> (Vec<usize>, usize) {
        let (prompt, prefix) = (self.model.prompt.virtual_tokens(), self.prefix_positions());
        let same = || ((prefix..prefix + prompt + length).collect(), 1);
        // Without virtual tokens it is the distances that matter, and padding shifts all of a row.
        let Some(padding) = padding.filter(|_| self.begins_with_virtual_tokens()) else {
            return same();
        };
        let padding: Vec<bool> = padding.into_data().iter().collect();
        let rows = padding.chunks(length.max(1));
        if rows.clone().all(|row| !row.starts_with(&[true])) {
            return same();
        }
        let count = rows.len();
        let positions = rows.flat_map(|row| {
            let first = row.iter().take_while(|padded| **padded).count();
            let text = (0..length).map(move |at| prefix + prompt + at.saturating_sub(first));
            (prefix..prefix + prompt).chain(text)
        });
        (positions.collect(), count)
    }

    /// `positions` are those of `rows` rows.
    fn positions(
        &self,
        (positions, rows): (Vec<usize>, usize),
        mask: Option<Tensor<3>>,
        context: ForwardContext,
        device: &Device,
    ) -> Positions {
        let last = positions.iter().max().map_or(0, |last| last + 1);
        let most = self.config.max_position_embeddings;
        assert!(
            last <= most,
            "{last} positions ({} of them virtual tokens), but the model was made for {most}: truncate the text",
            self.virtual_tokens(),
        );
        let frequencies = self.config.rope.frequencies(self.config.head_dim);
        Positions {
            angles: Rotary::new(&positions, rows, &frequencies, 1.0, device),
            context: context.with_positions(rows, positions),
            mask,
            segments: None,
            rows,
        }
    }

    /// The stream after the last layer, and where it is: prompts between layers make it longer.
    fn through_layers(&self, x: Tensor<3>, positions: Positions) -> (Tensor<3>, Positions) {
        let layers = self.model.layers.iter();
        layers.fold((x, positions), |(x, positions), layer| {
            let (x, positions) = self.before(layer, x, positions);
            (layer.forward(x, &positions, None), positions)
        })
    }

    /// What goes into a layer, with the prompts in front of it. They are not rotated: their position is 0.
    fn before(
        &self,
        layer: &LlamaLayer,
        x: Tensor<3>,
        positions: Positions,
    ) -> (Tensor<3>, Positions) {
        if !layer.prompt.is_active() {
            return (x, positions);
        }
        let Positions {
            context,
            mask,
            segments,
            rows,
            ..
        } = positions;
        let device = x.device();
        let (x, context) = layer.prompt.add_prompt(x, context);
        let [batch, count, _] = x.dims();
        let mask = mask.and(context.padding());
        let mask = mask.map(|padding| hidden(padding.reshape([batch, 1, count])));
        let known = |row| context.positions(row).into_iter().flatten().copied();
        let values = (0..rows).flat_map(known).collect();
        let positions = Positions {
            segments,
            ..self.positions((values, rows), mask, context, &device)
        };
        (x, positions)
    }

    /// Logits of normalised hidden states.
    fn logits(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        match (&self.lm_head, &self.tied_head) {
            (Some(head), _) => head.adapted_in(x, context),
            (None, Some(head)) => head.logits(&self.model.embed_tokens, x, context),
            (None, None) => unreachable!("a model has a head"),
        }
    }

    /// The loss of what comes out of the last layer.
    fn head_loss(&self, x: Tensor<3>, batch: &LmBatch, context: &ForwardContext) -> Tensor<1> {
        let count = x.dims()[1];
        let x = x.slice_dim(1, count - batch.length..count);
        let context = &context.of_last_tokens(batch.length, count);
        self.loss_of_state(self.leave_stream(x, context), batch, context)
    }

    /// The loss of what the head sees: of its last states, one for each token of the batch.
    fn loss_of_state(&self, x: Tensor<3>, batch: &LmBatch, context: &ForwardContext) -> Tensor<1> {
        let [rows, count, width] = x.dims();
        let x = x.slice_dim(1, count - batch.length..count);
        let x = x.reshape([rows * batch.length, width]);
        match (&self.lm_head, &self.tied_head) {
            (Some(head), _) => adapted_cross_entropy(head, x, &batch.targets, context),
            (None, Some(head)) => {
                head.cross_entropy(&self.model.embed_tokens, x, &batch.targets, context)
            }
            (None, None) => unreachable!("a model has a head"),
        }
    }
}

/// What is added to attention's scores where `mask` hides a key.
fn hidden(mask: Tensor<3, Bool>) -> Tensor<3> {
    // Finite, so that a row that sees nothing gives no NaN.
    Tensor::zeros(mask.dims(), &mask.device()).mask_fill(mask, f32::MIN)
}
