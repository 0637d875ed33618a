//! Partial fine-tuning: the model's own parameters train, chosen by where they are.

use std::collections::BTreeMap;

use peft_core::method::{
    Common, Layer, LayerKind, Layout, LayoutParam, Method, Plan, Value, method_config,
};
use peft_core::{Error, Result, Selection, Targets};
use serde::{Deserialize, Serialize};

use crate::upstream::json_without;

/// A part of a model, for [`PartialConfig::parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Linear layers of attention: those with `attention`, `attn` or `mha` in their names. Norms are not among them.
    Attention,
    /// Linear layers of blocks that are not attention's.
    FeedForward,
    /// Normalisation layers.
    Norms,
    /// Embedding tables. A head that is the table follows it.
    Embeddings,
    /// Every bias, of norms, too.
    Biases,
}

impl Part {
    fn contains(self, layer: &Layer, param: &LayoutParam) -> bool {
        let linear = layer.kind == LayerKind::Linear;
        match self {
            Self::Attention => linear && is_attention(&layer.name),
            Self::FeedForward => linear && layer.block().is_some() && !is_attention(&layer.name),
            Self::Norms => layer.kind == LayerKind::Norm,
            Self::Embeddings => layer.kind == LayerKind::Embedding,
            Self::Biases => param.field() == "bias" && param.shape().len() == 1,
        }
    }
}

/// Whether a layer is in an attention module, by the names that models of Hugging Face's and Burn's have for them.
fn is_attention(name: &str) -> bool {
    name.split('.').any(|segment| {
        let segment = segment.to_ascii_lowercase();
        segment.contains("attention") || segment.contains("attn") || segment == "mha"
    })
}

/// Partial fine-tuning's configuration.
///
/// A parameter trains if it is in one of the [`parts`](Self::parts), in one of the outer blocks
/// ([`first_layers`](Self::first_layers), [`last_layers`](Self::last_layers)) and in a layer that targets select. What is
/// not given selects all. Heads are left out, unless targets name them: they are trained by `modules_to_save` or
/// `task_type`, as with every method.
///
/// ```
/// # use peft_selective::{Part, PartialConfig};
/// let top = PartialConfig::last(2);
/// let attention = PartialConfig::attention();
/// let attention_of_the_top = PartialConfig::last(2).with_parts([Part::Attention]);
/// ```
#[method_config(
    PARTIAL, peft_type = "PARTIAL", title = "Partial fine-tuning", family = Selective, identity_at_init, mergeable, new(),
    reference = "Lee et al. 2019, What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning, section 3; \
                 Touvron et al. 2022, Three things everyone should know about Vision Transformers, section 4",
    to_json = PartialConfig::json
)]
pub struct PartialConfig {
    /// Parts of the model; several add up. Default: everything but heads.
    pub parts: Option<Vec<Part>>,
    /// How many of the first blocks train: those nearest to the input. Default: all, or none beside `last_layers`.
    #[field(at_least = 1)]
    pub first_layers: Option<usize>,
    /// How many of the last blocks train: those nearest to the output. Default: all, or none beside `first_layers`.
    #[field(at_least = 1)]
    pub last_layers: Option<usize>,
    /// Whether the parameters themselves train, without a copy. This saves their memory once, and the base's values are
    /// lost: there is no adapter then to disable, detach or save, and the model itself is saved.
    #[field(default = false)]
    pub in_place: bool,
    /// Layers whose parameters train. Default: all but heads.
    pub targets: Targets,
    /// Fields that every method has.
    pub common: Common,
}

impl PartialConfig {
    /// The last `count` blocks whole: those nearest to the output. Nothing below them is differentiated.
    pub fn last(count: usize) -> Self {
        Self::new().with_last_layers(count)
    }

    /// The first `count` blocks whole: those nearest to the input.
    pub fn first(count: usize) -> Self {
        Self::new().with_first_layers(count)
    }

    /// Attention's linear layers in all blocks.
    pub fn attention() -> Self {
        Self::new().with_parts([Part::Attention])
    }

    /// Embedding tables.
    pub fn embeddings() -> Self {
        Self::new().with_parts([Part::Embeddings])
    }

    /// Without `target_modules` where they are not given: core would write the layers whose weights train in their place, and
    /// parameters of other names would be missed when the file is read.
    fn json(&self) -> Value {
        json_without(self, &["target_modules"])
    }

    /// Refuses what the model has not.
    fn check(&self, layout: &Layout, chosen: &[(&Layer, &LayoutParam)]) -> Result<()> {
        let parts = self.parts.as_deref().unwrap_or_default();
        let missing = parts.iter().find(|part| {
            let mut chosen = chosen.iter();
            !chosen.any(|(layer, param)| part.contains(layer, param))
        });
        if missing.is_some() || parts.is_empty() && self.parts.is_some() {
            let expected = "parts that the model has in the selected layers and blocks, one at least; it has a part if \
                            one of its layers has the kind and the name for it";
            return Err(Error::config(PARTIAL.title, "parts", parts, expected));
        }
        if chosen.is_empty() {
            let selected = &self.targets.target_modules;
            let blocks = blocks(layout).len();
            let expected = format!(
                "layers with parameters in the selected blocks; the model has {blocks} lists of blocks"
            );
            return Err(Error::config(
                PARTIAL.title,
                "target_modules",
                selected,
                expected,
            ));
        }
        Ok(())
    }

    /// Whether a layer is in one of the outer blocks.
    fn is_outer(&self, layer: &Layer, blocks: &BTreeMap<&str, usize>) -> bool {
        if self.first_layers.is_none() && self.last_layers.is_none() {
            return true;
        }
        let Some((list, index)) = layer.block() else {
            return false;
        };
        let first = self.first_layers.unwrap_or(0);
        let last = self.last_layers.unwrap_or(0);
        index < first || index + last >= blocks[list]
    }

    /// Refuses more blocks than there are.
    fn check_blocks(&self, blocks: &BTreeMap<&str, usize>) -> Result<()> {
        let fewest = blocks.values().min().copied().unwrap_or(0);
        let fields = [
            ("first_layers", self.first_layers),
            ("last_layers", self.last_layers),
        ];
        for (field, count) in fields {
            if let Some(count) = count.filter(|count| *count > fewest) {
                let expected = match fewest {
                    0 => "a model with blocks: names with a number, as in `encoder.layer.0`".into(),
                    fewest => format!("at most {fewest}, the number of blocks"),
                };
                return Err(Error::config(PARTIAL.title, field, count, expected));
            }
        }
        Ok(())
    }
}

/// The model's lists of blocks, and how many blocks each has.
fn blocks(layout: &Layout) -> BTreeMap<&str, usize> {
    let mut lists = BTreeMap::new();
    for (list, index) in layout.layers.iter().filter_map(Layer::block) {
        let count = lists.entry(list).or_insert(0);
        *count = (index + 1).max(*count);
    }
    lists
}

impl Method for PartialConfig {
    fn plan(&self, layout: &Layout, plan: &mut Plan) -> Result<()> {
        let everything = Selection::from(".*");
        let blocks = blocks(layout);
        self.check_blocks(&blocks)?;
        let title = PARTIAL.title;
        let by_default = self.targets.target_modules.is_none();
        let layers = self
            .targets
            .select(layout, title, &everything, plan.is_new())?;
        let layers = layers
            .into_iter()
            .filter(|layer| !(by_default && layer.head) && self.is_outer(layer, &blocks));
        let params = layers.flat_map(|layer| {
            let params = layer.params.iter().map(|index| &layout.params[*index]);
            params.map(move |param| (layer, param))
        });
        let wanted = |(layer, param): &(&Layer, &LayoutParam)| {
            let parts = self.parts.as_ref();
            parts.is_none_or(|parts| parts.iter().any(|part| part.contains(layer, param)))
        };
        let chosen: Vec<_> = params.filter(wanted).collect();
        self.check(layout, &chosen)?;
        for (_, param) in chosen {
            if self.in_place {
                plan.train_in_place(param);
            } else {
                plan.train_param(layout, param);
            }
        }
        Ok(())
    }

    fn replaces(&self) -> bool {
        true
    }
}
