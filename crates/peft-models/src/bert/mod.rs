//! BERT (Devlin et al., 2019), the encoder of Hugging Face's `BertModel`.

mod attention;
mod classifier;
mod config;
mod embeddings;
mod encoder;
mod load;
mod pooling;
mod residual;
mod tiny;
mod token_classifier;
mod vocabulary;

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use peft_core::calibration::Calibration;
use peft_core::nn::{ForwardContext, HiddenState, SiteContext};
use peft_core::{HiddenSite, KeyMapping};

pub use attention::{BertAttention, BertSelfAttention};
pub use classifier::BertClassifier;
pub use config::{BertConfig, HiddenAct};
pub use embeddings::BertEmbeddings;
pub use encoder::{BertEncoder, BertIntermediate, BertLayer};
pub use pooling::{BertPooler, Pooling};
pub use residual::BertResidual;
pub use token_classifier::BertTokenClassifier;

pub(crate) use pooling::draw_now;
pub(crate) use tiny::Scramble;

/// Fields here whose modules are called otherwise upstream.
const RENAMES: &[(&str, &str)] = &[("self_attention", "self"), ("layer_norm", "LayerNorm")];

/// The encoder: token ids to hidden states.
///
/// Module paths, once renamed by [`names`](Self::names), are those of Hugging Face's `BertModel`.
/// Adapter sites: [`BertEmbeddings::prompt`], [`Bert::site`] behind the embeddings, in every layer [`BertLayer::prompt`],
/// [`BertSelfAttention::prefix`] and [`BertSelfAttention::heads_site`],
/// [`BertResidual::site`] behind the attention and behind the feed-forward part, and [`BertLayer::site`] behind it all.
///
/// Dropout acts on autodiff devices only, as Burn's does; `model.valid()` is without it. For
/// gradient checkpointing build the model on `device.autodiff().gradient_checkpointing()`: it is a
/// property of the device and nothing here changes.
#[derive(Module, Debug)]
pub struct Bert {
    /// Token, position and segment embeddings.
    pub embeddings: BertEmbeddings,
    /// Where adapters act on the embeddings, before the first layer.
    pub site: HiddenSite,
    /// The layers.
    pub encoder: BertEncoder,
    /// The projection of the first token; sentence encoders are often published without it.
    pub pooler: Option<BertPooler>,
    /// Upstream's names for the modules.
    pub names: KeyMapping,
    #[module(skip)]
    config: BertConfig,
}

/// What [`Bert::forward`] returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BertOutput {
    /// Hidden states of the last layer, `[batch, virtual_tokens + seq, hidden_size]`.
    pub hidden: Tensor<3>,
    /// How many leading positions of every row are virtual tokens of prompt adapters.
    pub virtual_tokens: usize,
    /// What flowed with the forward pass, for what comes after the encoder.
    pub context: ForwardContext,
}

impl BertConfig {
    /// A model with fresh weights: matrices from N(0, `initializer_range`²), biases 0, norms 1, as
    /// upstream initialises; with a pooler.
    ///
    /// All values are drawn here, in a fixed order, so `device.seed(..)` before the call decides
    /// them (as long as no other thread draws from the same backend meanwhile).
    pub fn init(&self, device: &Device) -> Bert {
        let bert = self.build(true, device);
        pooling::draw_now(&bert);
        bert
    }

    /// A model whose parameters are not drawn yet.
    fn build(&self, pooler: bool, device: &Device) -> Bert {
        Bert {
            embeddings: BertEmbeddings::new(self, device),
            site: HiddenSite::new(HiddenState::EmbeddingOutput, self.hidden_size),
            encoder: BertEncoder::new(self, device),
            pooler: pooler.then(|| BertPooler::new(self, device)),
            names: KeyMapping::new(RENAMES).with_model_type("bert"),
            config: self.clone(),
        }
    }
}

impl Bert {
    /// The configuration that the model was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Hidden states for token `ids` of shape `[batch, seq]`.
    ///
    /// `padding`, `[batch, seq]`, is true where a token only fills up its row; such positions are
    /// attended by none. All tokens are of segment 0. The output has the virtual tokens of active
    /// prompt adapters in front.
    ///
    /// # Panics
    ///
    /// If virtual tokens, prefixes and `seq` together exceed the configuration's `max_position_embeddings`.
    pub fn forward(&self, ids: Tensor<2, Int>, padding: Option<Tensor<2, Bool>>) -> BertOutput {
        self.forward_in(ids, ForwardContext::new().with_padding(padding))
    }

    /// The keys and values of a text in every layer, of the model without its adapters: what a prefix or a cartridge may
    /// start from. `ids` are the text's tokens, special ones included.
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
            model.forward(ids, None);
        })
    }

    /// As [`forward`](Self::forward), with what adapters find in the context: routing, values of a method. The model
    /// adds positions and virtual tokens to it.
    ///
    /// # Panics
    ///
    /// As `forward`.
    pub fn forward_in(&self, ids: Tensor<2, Int>, context: ForwardContext) -> BertOutput {
        let prefix = self.encoder.prefix_positions();
        let (mut hidden, context) = self.embeddings.forward(ids, context, prefix);
        if self.site.is_active() {
            hidden = self.site.forward(hidden, &SiteContext::new(&context));
        }
        let (hidden, context) = self.encoder.forward(hidden, context);
        BertOutput {
            hidden,
            virtual_tokens: context.virtual_tokens(),
            context,
        }
    }
}
