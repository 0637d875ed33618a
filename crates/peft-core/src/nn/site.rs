//! Places in a forward pass where adapters act on what flows by.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Bool, Device, Tensor};

use crate::adapter::contract::SiteContext;
use crate::adapter::erased::{AnyAdapter, ErasedKeyValue};
use crate::attached::stack::Stack;
use crate::layout::site_kind::{SiteHead, SiteKind};
use crate::slot::{self, SEGMENT, SITE};

/// A place in a model's forward pass where adapters can act.
///
/// A field of the model. Without adapters it has no parameters, appears in no record and costs
/// nothing; `attach` fills it, and a model without the sites that a method needs is refused.
///
/// ```
/// use burn::prelude::*;
/// use peft_core::{Site, SiteKind};
/// use peft_core::method::SiteContext;
///
/// #[derive(Module, Debug)]
/// struct Block {
///     feed_forward: burn::nn::Linear,
///     norm: burn::nn::LayerNorm,
///     output_site: Site,
/// }
///
/// impl Block {
///     fn new(d: usize, device: &Device) -> Self {
///         Self {
///             feed_forward: burn::nn::LinearConfig::new(d, d).init(device),
///             norm: burn::nn::LayerNormConfig::new(d).init(device),
///             output_site: Site::new(SiteKind::FeedForwardOutput, d),
///         }
///     }
///
///     fn forward(&self, x: Tensor<3>) -> Tensor<3> {
///         let norm = |h| self.norm.forward(h);
///         let h = self.feed_forward.forward(x.clone());
///         let h = self.output_site.hidden(h, &SiteContext::post_norm(x.clone(), &norm));
///         norm(h + x)
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Site {
    head: SiteHead,
    stack: Stack,
}

impl Site {
    /// An empty site for states of `width` features; those of all heads together for keys, and as many for
    /// values.
    pub fn new(kind: SiteKind, width: usize) -> Self {
        Self {
            head: SiteHead {
                kind,
                width,
                heads: 1,
                name: "",
            },
            stack: Stack::default(),
        }
    }

    /// How many heads share the features of keys and values: upstream's configurations say it. Default: 1.
    #[must_use]
    pub fn with_heads(mut self, heads: usize) -> Self {
        self.head.heads = heads;
        self
    }

    /// The upstream name of the module whose output the site sees, relative to the struct that
    /// holds the site (as in `output`). Checkpoints of AdapterHub's layout need it; without one the
    /// struct's own name is used.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.head.name = name;
        self
    }

    /// What flows by here.
    pub fn kind(&self) -> SiteKind {
        self.head.kind
    }

    /// Whether an adapter acts on the hidden state here.
    pub fn is_active(&self) -> bool {
        self.stack.active().next().is_some()
    }

    /// The hidden state `[batch, seq, d]` after the active adapters.
    pub fn hidden(&self, hidden: Tensor<3>, around: &SiteContext<'_>) -> Tensor<3> {
        self.stack
            .active()
            .fold(hidden, |hidden, entry| match &entry.adapter {
                AnyAdapter::Hidden(adapter) => adapter.forward(hidden, around),
                _ => hidden,
            })
    }

    /// How many virtual tokens the active adapters put before the embeddings, or before the keys and values.
    pub fn virtual_tokens(&self) -> usize {
        let prompts = self.prompts().map(|prompt| prompt.dims()[0]);
        let prefixes = self.prefixes().map(ErasedKeyValue::virtual_tokens);
        prompts.chain(prefixes).sum()
    }

    /// `key` and `value` `[batch, seq, width]`, and the `mask` `[batch, 1 or queries, seq]` that is added to the
    /// scores, with the active adapters' keys and values in front: all queries of all rows see them.
    ///
    /// Call it behind whatever positions do to keys, and once for a cache: when it is empty. Positions of
    /// the text's tokens begin with [`virtual_tokens`](Self::virtual_tokens), as upstream's do.
    pub fn key_value(
        &self,
        key: Tensor<3>,
        value: Tensor<3>,
        mask: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>, Option<Tensor<3>>) {
        let [batch, _, width] = key.dims();
        let spread = |rows: Tensor<2>| {
            let tokens = rows.dims()[0];
            rows.unsqueeze::<3>().expand([batch, tokens, width])
        };
        let (mut keys, mut values): (Vec<Tensor<3>>, Vec<Tensor<3>>) = self
            .prefixes()
            .map(ErasedKeyValue::key_value)
            .map(|(key, value)| (spread(key), spread(value)))
            .unzip();
        if keys.is_empty() {
            return (key, value, mask);
        }
        let tokens = keys.iter().map(|part| part.dims()[1]).sum();
        keys.push(key);
        values.push(value);
        let mask = mask.map(|mask| {
            let [rows, queries, _] = mask.dims();
            let open = Tensor::zeros([rows, queries, tokens], (&mask.device(), mask.dtype()));
            Tensor::cat(vec![open, mask], 2)
        });
        (Tensor::cat(keys, 1), Tensor::cat(values, 1), mask)
    }

    /// Embeddings `[batch, seq, d]` and padding mask `[batch, seq]` (true where padded) with the
    /// active adapters' virtual tokens in front: both grow by [`virtual_tokens`](Self::virtual_tokens).
    pub fn add_prompt(
        &self,
        embeddings: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
    ) -> (Tensor<3>, Option<Tensor<2, Bool>>) {
        let [batch, _, width] = embeddings.dims();
        let mut parts: Vec<Tensor<3>> = self
            .prompts()
            .map(|prompt| {
                let tokens = prompt.dims()[0];
                prompt.unsqueeze::<3>().expand([batch, tokens, width])
            })
            .collect();
        if parts.is_empty() {
            return (embeddings, padding);
        }
        let tokens: usize = parts.iter().map(|part| part.dims()[1]).sum();
        parts.push(embeddings);
        let padding = padding.map(|padding| {
            let kept = Tensor::<2, Bool>::full([batch, tokens], false, &padding.device());
            Tensor::cat(vec![kept, padding], 1)
        });
        (Tensor::cat(parts, 1), padding)
    }

    fn prompts(&self) -> impl Iterator<Item = Tensor<2>> {
        self.stack
            .active()
            .filter_map(|entry| match &entry.adapter {
                AnyAdapter::Prompt(adapter) => Some(adapter.prompt()),
                _ => None,
            })
    }

    fn prefixes(&self) -> impl Iterator<Item = &dyn ErasedKeyValue> {
        self.stack
            .active()
            .filter_map(|entry| match &entry.adapter {
                AnyAdapter::KeyValue(adapter) => Some(adapter.as_ref()),
                _ => None,
            })
    }
}

impl Module for Site {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(SEGMENT, SITE);
        slot::report(|| self.head.clone());
        self.stack.visit(visitor);
        visitor.exit_module(SEGMENT, SITE);
    }

    fn map<M: ModuleMapper>(mut self, mapper: &mut M) -> Self {
        mapper.enter_module(SEGMENT, SITE);
        self.stack = self.stack.map(mapper);
        mapper.exit_module(SEGMENT, SITE);
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.stack.collect_devices(devices)
    }

    fn to_device(mut self, device: &Device) -> Self {
        self.stack = self.stack.to_device(device);
        self
    }

    fn fork(mut self, device: &Device) -> Self {
        self.stack = self.stack.fork(device);
        self
    }

    fn train(mut self) -> Self {
        self.stack = self.stack.train();
        self
    }

    fn valid(&self) -> Self {
        Self {
            head: self.head.clone(),
            stack: self.stack.valid(),
        }
    }

    fn materialize(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for Site {
    fn content(&self, content: Content) -> Option<Content> {
        let names: Vec<_> = self
            .stack
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .collect();
        content
            .add_formatted(&format!("Site {{{}, adapters: {names:?}}}", self.head.kind))
            .optional()
    }
}

impl ModuleDisplay for Site {}
