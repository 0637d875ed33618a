//! Upstream's names for a model's modules.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::Device;

use crate::slot;

/// How Hugging Face calls what the fields of a model are called here.
///
/// A field of the model, without parameters. Everything that names layers (targets, listings,
/// checkpoints) uses the upstream name, so a configuration or file written in Python fits. A model
/// without this field is known by its own field names.
///
/// Renames act on single path segments, anywhere below the struct that holds the field:
///
/// ```
/// # use peft_core::KeyMapping;
/// let names = KeyMapping::new(&[("self_attention", "self"), ("layer_norm", "LayerNorm")]);
/// assert_eq!(names.rename("self_attention"), "self");
/// assert_eq!(names.rename("query"), "query");
/// ```
///
/// Burn's `gamma` and `beta` of normalisation layers are `weight` and `bias` upstream; that is
/// known and needs no entry.
#[derive(Clone, Debug, Default)]
pub struct KeyMapping {
    renames: &'static [(&'static str, &'static str)],
    heads: &'static [&'static str],
    groups: Vec<(String, usize)>,
    model_type: Option<Cow<'static, str>>,
    model_class: Option<&'static str>,
    decoder: Option<DecoderSettings>,
}

/// What a decoder computes with and its weights do not say: for a method that builds a smaller one of the same kind.
#[derive(Clone)]
pub struct DecoderSettings {
    /// What normalisations add to the mean square.
    pub norm_epsilon: f64,
    /// The frequencies, in radians per position, by which positions turn the pairs of a head of that many features: half
    /// as many.
    pub frequencies: Arc<dyn Fn(usize) -> Vec<f64> + Send + Sync>,
}

impl fmt::Debug for DecoderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecoderSettings")
            .field("norm_epsilon", &self.norm_epsilon)
            .finish_non_exhaustive()
    }
}

impl KeyMapping {
    /// Renames as pairs of the field here and the module upstream.
    pub fn new(renames: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            renames,
            heads: &[],
            groups: Vec::new(),
            model_type: None,
            model_class: None,
            decoder: None,
        }
    }

    /// Fields, of the struct that holds this, which are output heads: `all-linear` skips them,
    /// and the task types that have a head (`SEQ_CLS` and its like) train and save them whole.
    #[must_use]
    pub fn with_heads(mut self, heads: &'static [&'static str]) -> Self {
        self.heads = heads;
        self
    }

    /// How many groups convolutions have, by the path of fields (dots between them) from the struct that holds this. Burn
    /// keeps that number where only the layer's own forward pass sees it. A method whose tensors depend on it takes a
    /// convolution that is not named here for one of a single group.
    ///
    /// ```
    /// # use peft_core::KeyMapping;
    /// let names = KeyMapping::default().with_groups([("stem.depthwise", 8)]);
    /// # let _ = names;
    /// ```
    #[must_use]
    pub fn with_groups<N: Into<String>>(
        mut self,
        groups: impl IntoIterator<Item = (N, usize)>,
    ) -> Self {
        let groups = groups.into_iter().map(|(path, count)| (path.into(), count));
        self.groups.extend(groups);
        self
    }

    /// What kind of model the struct that holds this is: `model_type` in Hugging Face's `config.json`, as in `bert`. Methods
    /// whose default layers depend on it go by that. Default: not said.
    #[must_use]
    pub fn with_model_type(mut self, model_type: impl Into<Cow<'static, str>>) -> Self {
        self.model_type = Some(model_type.into());
        self
    }

    /// Which of transformers' classes computes what the struct that holds this computes, as in `BertForTokenClassification`: with
    /// that it is known what the head computes. Heads beside adapters (AdapterHub's) are read and written by it. Default: not
    /// said; then a head is one for sequence classification, or `lm_head`.
    #[must_use]
    pub fn with_model_class(mut self, model_class: &'static str) -> Self {
        self.model_class = Some(model_class);
        self
    }

    /// Which class it is.
    pub(crate) fn model_class(&self) -> Option<&'static str> {
        self.model_class
    }

    /// What the struct that holds this computes with, if it is a decoder. Default: not said.
    #[must_use]
    pub fn with_decoder(mut self, settings: DecoderSettings) -> Self {
        self.decoder = Some(settings);
        self
    }

    /// What it computes with, if it is a decoder.
    pub(crate) fn decoder(&self) -> Option<&DecoderSettings> {
        self.decoder.as_ref()
    }

    /// What kind of model it is.
    pub(crate) fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// The upstream name of one segment.
    pub fn rename<'a>(&self, segment: &'a str) -> &'a str {
        self.renames
            .iter()
            .find(|(here, _)| *here == segment)
            .map_or(segment, |(_, upstream)| upstream)
    }

    /// How many groups the convolution at this path of fields, from the struct that holds this, has.
    pub(crate) fn groups(&self, path: &str) -> Option<usize> {
        let found = self.groups.iter().find(|(named, _)| named == path);
        found.map(|(_, groups)| *groups)
    }

    /// Whether a field of the struct that holds this is an output head.
    pub fn is_head(&self, field: &str) -> bool {
        self.heads.contains(&field)
    }
}

impl Module for KeyMapping {
    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {
        slot::report(|| self.clone());
    }

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn fork(self, _device: &Device) -> Self {
        self
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for KeyMapping {
    fn content(&self, content: Content) -> Option<Content> {
        content
            .add_formatted(&format!("KeyMapping {{{} renames}}", self.renames.len()))
            .optional()
    }
}

impl ModuleDisplay for KeyMapping {}
