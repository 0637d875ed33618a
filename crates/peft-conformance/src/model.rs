//! The model of the suite: a small transformer with every place where an adapter can act.

mod layer;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use peft_core::nn::{AdaptedForward, ForwardContext, HiddenState, SiteContext, TaskIds};
use peft_core::{HiddenSite, KeyMapping, PromptSite, TiedHead};

pub use layer::{Attention, Intermediate, Layer, Output, SelfAttention};

const VOCABULARY: usize = 97;
const WIDTH: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const POSITIONS: usize = 40;
/// How many tasks the rows of a batch are of.
const TASKS: usize = 2;
/// The tokens whose scores under the tied head are added to the classifier's, one for each class.
const LABEL_TOKENS: [usize; 2] = [3, 50];

/// Fields here whose modules have another name in Hugging Face's models.
const RENAMES: &[(&str, &str)] = &[("self_attention", "self"), ("layer_norm", "LayerNorm")];

/// A small encoder that classifies texts, for tests.
///
/// It has what adapters act on: linear layers with biases, embedding tables, a convolution, normalisation layers, a
/// head with a matrix, a head that is the embedding table, and sites of every kind. Module names are those of Hugging
/// Face's `BertModel` (`encoder.layer.0.attention.self.query`), with `convolution`, `lm_head` and `classifier` beside
/// them. Width 32, 2 layers, 4 heads, feed-forward width 64, 97 tokens, 40 positions.
///
/// Where the caller gives no tasks of rows ([`TaskIds`]), they are 0, 1, 0, 1 and so on.
///
/// The values of its parameters come from a generator of its own. They are the same on every device and in every run.
/// Biases are not 0 and norms are not 1, so that a forgotten one changes the outputs.
#[derive(Module, Debug)]
pub struct TinyTransformer {
    /// Tokens, positions, and what is done to them before the first layer.
    pub embeddings: Embeddings,
    /// Where adapters act on the embeddings. What can be undone is undone in front of the tied head.
    pub site: HiddenSite,
    /// The layers.
    pub encoder: Encoder,
    /// A head that is the table of tokens. The scores of two tokens are added to the classifier's logits.
    pub lm_head: TiedHead,
    /// A head with a matrix, from 32 features to 2 classes.
    pub classifier: Linear,
    /// Hugging Face's names for the modules, and which of them are heads.
    pub names: KeyMapping,
}

/// Embeddings of tokens and positions, and a convolution over neighbouring tokens.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// Embeddings of tokens, `[97, 32]`.
    pub word_embeddings: Embedding,
    /// Embeddings of positions, `[40, 32]`.
    pub position_embeddings: Embedding,
    /// A convolution over three neighbouring tokens, with the attention heads as channels; kernel `[4, 4, 3, 1]`.
    pub convolution: Conv2d,
    /// Normalisation of the sum of all three.
    pub layer_norm: LayerNorm,
    /// Where prompts are put in front of the embeddings of tokens.
    pub prompt: PromptSite,
}

/// All layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// The layers, from the embeddings on.
    pub layer: Vec<Layer>,
}

impl TinyTransformer {
    /// The model on a device. It is the same in every call.
    pub fn new(device: &Device) -> Self {
        let table = |rows| EmbeddingConfig::new(rows, WIDTH).init(device);
        let model = Self {
            embeddings: Embeddings {
                word_embeddings: table(VOCABULARY),
                position_embeddings: table(POSITIONS),
                convolution: Conv2dConfig::new([HEADS, HEADS], [3, 1])
                    .with_padding(PaddingConfig2d::Explicit(1, 0, 1, 0))
                    .init(device),
                layer_norm: layer::norm(device),
                prompt: PromptSite::new(WIDTH).with_name("word_embeddings"),
            },
            site: HiddenSite::new(HiddenState::EmbeddingOutput, WIDTH),
            encoder: Encoder {
                layer: (0..LAYERS).map(|_| Layer::new(device)).collect(),
            },
            lm_head: TiedHead::new("embeddings.word_embeddings"),
            classifier: LinearConfig::new(WIDTH, LABEL_TOKENS.len()).init(device),
            names: KeyMapping::new(RENAMES).with_heads(&["lm_head", "classifier"]),
        };
        model.map(&mut Noise {
            state: 0x5eed,
            field: String::new(),
        })
    }

    /// Logits `[batch, 2]` of token `ids` `[batch, seq]`; `padding` `[batch, seq]` is true where a token only fills up
    /// its row.
    ///
    /// # Panics
    ///
    /// If virtual tokens and `seq` together are more than 40.
    pub fn forward(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<2> {
        self.forward_in(ids, ForwardContext::new().with_padding(padding))
    }

    /// As [`forward`](Self::forward), with what adapters find in the context. The model adds positions and virtual
    /// tokens to it.
    ///
    /// # Panics
    ///
    /// As `forward`.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> Tensor<2> {
        let padding = context.padding();
        let (embedded, context) = self.embed(ids, context);
        let (hidden, context) = self.encode(embedded, context);
        let pooled = mean(hidden, padding, context.virtual_tokens());
        let table = &self.embeddings.word_embeddings;
        let scores = pooled.clone().unsqueeze_dim(1);
        let scores = self.site.inverse(scores, &SiteContext::new(&context));
        let scores = self.lm_head.logits(table, scores, &context);
        let tokens = LABEL_TOKENS.map(|token| scores.clone().narrow(2, token, 1));
        let scores = Tensor::cat(tokens.into(), 2).squeeze_dim::<2>(1);
        self.classifier.adapted_in(pooled, &context) + scores
    }

    /// Hidden states `[batch, virtual_tokens + seq, 32]` after the last layer; arguments and panics are those of
    /// [`forward`](Self::forward).
    pub fn hidden(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let (embedded, context) = self.embed(ids, ForwardContext::new().with_padding(padding));
        self.encode(embedded, context).0
    }

    /// What goes into the first layer, `[batch, virtual_tokens + seq, 32]`, and the context with positions, virtual
    /// tokens and their padding.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn embed(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
    ) -> (Tensor<3>, ForwardContext) {
        let layers = self.encoder.layer.iter();
        let prefixes = layers.map(|layer| layer.attention.self_attention.prefix.positions());
        let first = prefixes.max().unwrap_or(0);
        let (embedded, context) = self.embeddings.forward(ids, context, first);
        let embedded = self.site.forward(embedded, &SiteContext::new(&context));
        (embedded, context)
    }

    fn encode(&self, embedded: Tensor<3>, context: ForwardContext) -> (Tensor<3>, ForwardContext) {
        let device = embedded.device();
        let layers = self.encoder.layer.iter();
        layers.fold((embedded, context), |(hidden, context), layer| {
            let (hidden, context) = layer.prompt.add_prompt(hidden, context);
            let padding = context.padding();
            let mask = padding.map(|padding| layer::attention_mask(padding, &device));
            (layer.forward(hidden, mask, &context), context)
        })
    }
}

impl Embeddings {
    /// Embeddings of `ids`; the positions before `first` belong to prefixes.
    fn forward(
        &self,
        ids: Tensor<2, Int>,
        context: ForwardContext,
        first: usize,
    ) -> (Tensor<3>, ForwardContext) {
        let device = ids.device();
        let context = with_tasks(context, ids.dims()[0]).with_token_ids(ids.clone());
        let words = self.word_embeddings.adapted_in(ids, &context);
        let (words, context) = self.prompt.add_prompt(words, context);
        let [batch, tokens, _] = words.dims();
        let last = first + tokens;
        assert!(
            last <= POSITIONS,
            "{last} positions, but the model has embeddings for {POSITIONS}"
        );
        let context = context.with_positions(1, (first..last).collect::<Vec<_>>());
        let positions = Tensor::<1, Int>::arange(first as i64..last as i64, &device);
        let positions = self
            .position_embeddings
            .adapted_in(positions.unsqueeze::<2>(), &context);
        // A token's neighbours are no padding.
        let near = match context.padding() {
            Some(padding) => {
                let padding = padding.unsqueeze_dim::<3>(2);
                let padding = padding.expand([batch, tokens, WIDTH]);
                words.clone().mask_fill(padding, 0.0)
            }
            None => words.clone(),
        };
        let near = near.reshape([batch, tokens, HEADS, WIDTH / HEADS]);
        let near = self
            .convolution
            .adapted_in(near.swap_dims(1, 2), &context)
            .swap_dims(1, 2);
        let sum = words + positions + near.reshape([batch, tokens, WIDTH]);
        let embedded = layer::normalised(&self.layer_norm, sum, &context);
        (embedded, context)
    }
}

/// The context with the tasks of `rows` rows, where the caller gives none: 0, 1, 0, 1 and so on.
fn with_tasks(context: ForwardContext, rows: usize) -> ForwardContext {
    if context.tasks().is_some() {
        return context;
    }
    let tasks: Vec<usize> = (0..rows).map(|row| row % TASKS).collect();
    context.with_tasks(TaskIds::new(tasks))
}

/// The mean of the hidden states of a row's own tokens: no virtual tokens and no padding.
fn mean(hidden: Tensor<3>, padding: Option<Tensor<2, Bool>>, virtual_tokens: usize) -> Tensor<2> {
    let tokens = hidden.dims()[1] - virtual_tokens;
    let hidden = hidden.narrow(1, virtual_tokens, tokens);
    match padding {
        Some(padding) => {
            let own = padding.bool_not().float().cast(hidden.dtype());
            let own = own.unsqueeze_dim::<3>(2);
            let sum = (hidden * own.clone()).sum_dim(1);
            (sum / own.sum_dim(1)).squeeze_dim::<2>(1)
        }
        None => hidden.mean_dim(1).squeeze_dim::<2>(1),
    }
}

/// Fills in noise: uniform in [-0.3, 0.3), around 1 for the scales of norms and around 0 for everything else.
struct Noise {
    /// That of Vigna's splitmix64.
    state: u64,
    /// The field that was entered last: that of the parameter.
    field: String,
}

impl Noise {
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        0.3 * ((bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    }
}

impl ModuleMapper for Noise {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.field = name.to_string();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let middle = if self.field == "gamma" { 1.0 } else { 0.0 };
        let values = (0..shape.num_elements()).map(|_| middle + self.next());
        let values = TensorData::new(values.collect::<Vec<f32>>(), shape);
        let value = Tensor::from_data(values, &param.lazy_device());
        let id = param.id;
        param.transform_for_load(value, id)
    }
}
