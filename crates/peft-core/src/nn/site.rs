//! Places in a forward pass where adapters act on what flows by.

use std::marker::PhantomData;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Bool, Device, Tensor};

use crate::adapter::site_context::SiteContext;
use crate::adapter::site_type::{Hidden, HiddenState, KeyValue, Prompt, SiteKind, SiteType};
use crate::attached::composition::Parts;
use crate::attached::stack::{Entry, Stack};
use crate::layout::site_kind::SiteHead;
use crate::nn::mixture::mix;
use crate::slot::{self, SEGMENT, SITE};

/// A place in a model's forward pass where adapters can act. What flows by is its type: [`HiddenSite`],
/// [`PromptSite`] or [`KeyValueSite`].
///
/// A field of the model. Without adapters it has no parameters, appears in no record and costs
/// nothing; `attach` fills it, and a model without the sites that a method needs is refused.
///
/// ```
/// use burn::prelude::*;
/// use peft_core::HiddenSite;
/// use peft_core::nn::{ForwardContext, HiddenState, SiteContext};
///
/// #[derive(Module, Debug)]
/// struct Block {
///     feed_forward: burn::nn::Linear,
///     norm: burn::nn::LayerNorm,
///     output_site: HiddenSite,
/// }
///
/// impl Block {
///     fn new(d: usize, device: &Device) -> Self {
///         Self {
///             feed_forward: burn::nn::LinearConfig::new(d, d).init(device),
///             norm: burn::nn::LayerNormConfig::new(d).init(device),
///             output_site: HiddenSite::new(HiddenState::FeedForwardOutput, d),
///         }
///     }
///
///     fn forward(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
///         let norm = |h| self.norm.forward(h);
///         let h = self.feed_forward.forward(x.clone());
///         let around = SiteContext::post_norm(context, x.clone(), &norm);
///         let h = self.output_site.forward(h, &around);
///         norm(h + x)
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Site<T: SiteType> {
    head: SiteHead,
    stack: Stack,
    marker: PhantomData<T>,
}

/// A site of a hidden state, for [`HiddenAdapter`](crate::method::HiddenAdapter)s: bottlenecks, say.
pub type HiddenSite = Site<Hidden>;
/// A site of embeddings, for [`PromptAdapter`](crate::method::PromptAdapter)s.
pub type PromptSite = Site<Prompt>;
/// A site of an attention layer's keys and values, for [`KeyValueAdapter`](crate::method::KeyValueAdapter)s.
pub type KeyValueSite = Site<KeyValue>;

impl<T: SiteType> Site<T> {
    fn empty(kind: SiteKind, width: usize) -> Self {
        Self {
            head: SiteHead {
                kind,
                width,
                heads: 1,
                name: "",
                optional_end: false,
            },
            stack: Stack::default(),
            marker: PhantomData,
        }
    }

    /// The upstream name of the module whose output the site sees, relative to the struct that
    /// holds the site (as in `output`). Checkpoints of AdapterHub's layout need it; without one the
    /// struct's own name is used.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.head.name = name;
        self
    }

    /// Whether an adapter acts here.
    pub fn is_active(&self) -> bool {
        self.stack.used().next().is_some()
    }
}

impl Site<Hidden> {
    /// An empty site for a hidden state of `width` features.
    pub fn new(state: HiddenState, width: usize) -> Self {
        Self::empty(SiteKind::Hidden(state), width)
    }

    /// Says that the model asks [`is_end`](Self::is_end), and leaves out residual and norm where it is true. Adapters that
    /// take the place of both are refused elsewhere.
    #[must_use]
    pub fn with_optional_end(mut self) -> Self {
        self.head.optional_end = true;
        self
    }

    /// Whether the output of [`forward`](Self::forward) is that of the whole sublayer: the model then adds no residual,
    /// and does not normalise.
    pub fn is_end(&self) -> bool {
        let last = self.stack.used().last();
        last.is_some_and(|entry| entry.adapter.hidden_adapter().is_end())
    }

    /// The hidden state `[batch, seq, d]` after the active adapters.
    pub fn forward(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let run = |stack: &Stack, hidden: Tensor<3>, context: &SiteContext<'_>| {
            let sibling = |name: &str, hidden: Tensor<3>| {
                let adapter = self.stack.entry(name)?.adapter.hidden_adapter();
                Some(adapter.forward(hidden, context))
            };
            through(stack, hidden, &context.with_siblings(&sibling))
        };
        self.run(hidden, context, run)
    }

    /// The hidden state `[batch, seq, d]` before the active adapters, from that behind them: a language model does this
    /// in front of its head with the site behind its embeddings. What has no inverse changes nothing.
    pub fn inverse(&self, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
        let undo = |stack: &Stack, hidden: Tensor<3>, context: &SiteContext<'_>| {
            let active: Vec<&Entry> = stack.active().collect();
            active.into_iter().rev().fold(hidden, |hidden, entry| {
                entry.adapter.hidden_adapter().inverse(hidden, context)
            })
        };
        self.run(hidden, context, undo)
    }

    /// `run` with all adapters, or with those of each part of a mixture.
    fn run(
        &self,
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
        run: impl Fn(&Stack, Tensor<3>, &SiteContext<'_>) -> Tensor<3>,
    ) -> Tensor<3> {
        let Some(mixture) = self.stack.mixed() else {
            return run(&self.stack, hidden, context);
        };
        let forward = context.forward;
        mix(
            &self.stack,
            mixture,
            hidden,
            forward,
            |stack, part, forward| match forward.rows() {
                Some(rows) => run(stack, part, &context.of_rows(forward, &rows)),
                None => run(stack, part, context),
            },
        )
    }
}

/// One adapter after the other.
fn through(stack: &Stack, hidden: Tensor<3>, context: &SiteContext<'_>) -> Tensor<3> {
    stack.active().fold(hidden, |hidden, entry| {
        entry.adapter.hidden_adapter().forward(hidden, context)
    })
}

impl Site<Prompt> {
    /// An empty site for embeddings of `width` features.
    pub fn new(width: usize) -> Self {
        Self::empty(SiteKind::Embeddings, width)
    }

    /// How many virtual tokens the active adapters put before the embeddings.
    pub fn virtual_tokens(&self) -> usize {
        virtual_tokens(&self.stack)
    }

    /// Embeddings `[batch, seq, d]` and padding mask `[batch, seq]` (true where padded) with the
    /// active adapters' virtual tokens in front: both grow by [`virtual_tokens`](Self::virtual_tokens).
    pub fn add_prompt(
        &self,
        embeddings: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
    ) -> (Tensor<3>, Option<Tensor<2, Bool>>) {
        let batch = embeddings.dims()[0];
        let prompt = |entry: &Entry| entry.adapter.prompt_adapter().prompt();
        let mut parts = in_front(&self.stack, batch, prompt);
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
}

impl Site<KeyValue> {
    /// An empty site for keys of `width` features, those of all heads together, and as many for values.
    pub fn new(width: usize) -> Self {
        Self::empty(SiteKind::KeyValue, width)
    }

    /// How many heads share the features of keys and values: upstream's configurations say it. Default: 1.
    #[must_use]
    pub fn with_heads(mut self, heads: usize) -> Self {
        self.head.heads = heads;
        self
    }

    /// How many virtual tokens the active adapters put before the keys and values.
    pub fn virtual_tokens(&self) -> usize {
        virtual_tokens(&self.stack)
    }

    /// `key` and `value` `[batch, seq, width]`, and the `mask` `[batch, 1 or queries, seq]` that is added to the
    /// scores, with the active adapters' keys and values in front: all queries of all rows see them.
    ///
    /// Call it behind whatever positions do to keys, and once for a cache: when it is empty. Positions of
    /// the text's tokens begin with [`virtual_tokens`](Self::virtual_tokens), as upstream's do.
    pub fn add_prefix(
        &self,
        key: Tensor<3>,
        value: Tensor<3>,
        mask: Option<Tensor<3>>,
    ) -> (Tensor<3>, Tensor<3>, Option<Tensor<3>>) {
        if !self.is_active() {
            return (key, value, mask);
        }
        let [batch, _, width] = key.dims();
        // Keys and values side by side, so that each adapter computes them once.
        let prefix = |entry: &Entry| {
            let (key, value) = entry.adapter.key_value_adapter().key_value();
            Tensor::cat(vec![key, value], 1)
        };
        let parts = in_front(&self.stack, batch, prefix);
        let of = |from: usize, last: Tensor<3>| {
            let parts = parts.iter().map(|part| part.clone().narrow(2, from, width));
            Tensor::cat(parts.chain([last]).collect(), 1)
        };
        let tokens = parts.iter().map(|part| part.dims()[1]).sum();
        let mask = mask.map(|mask| {
            let [rows, queries, _] = mask.dims();
            let open = Tensor::zeros([rows, queries, tokens], (&mask.device(), mask.dtype()));
            Tensor::cat(vec![open, mask], 2)
        });
        (of(0, key), of(width, value), mask)
    }
}

/// Virtual tokens of the adapters that are used; under a mixture each row has those of one adapter.
fn virtual_tokens(stack: &Stack) -> usize {
    let mut tokens = stack.used().map(|entry| entry.adapter.virtual_tokens());
    match stack.mixed() {
        Some(_) => tokens.next().unwrap_or(0),
        None => tokens.sum(),
    }
}

/// What the adapters put in front of each row, `[batch, tokens, features]` each, of what each gives, `[tokens,
/// features]`.
fn in_front(stack: &Stack, batch: usize, of: impl Fn(&Entry) -> Tensor<2>) -> Vec<Tensor<3>> {
    let Some(mixture) = stack.mixed() else {
        let spread = |entry| {
            let rows = of(entry);
            let [tokens, width] = rows.dims();
            rows.unsqueeze::<3>().expand([batch, tokens, width])
        };
        return stack.active().map(spread).collect();
    };
    let Parts::PerRow(rows) = &mixture.parts else {
        unreachable!("`set_composition` refuses virtual tokens with weights")
    };
    let count = rows.count();
    assert_eq!(
        batch, count,
        "the model was told the adapters of {count} rows, and the batch has {batch}"
    );
    let entry = |at: Option<usize>| {
        let at = at.expect("`set_composition` refuses rows without virtual tokens among others");
        of(&stack.entries[at])
    };
    vec![rows.spread(entry)]
}

impl<T: SiteType> Module for Site<T> {
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
            marker: PhantomData,
        }
    }

    fn materialize(self) -> Self {
        self
    }
}

impl<T: SiteType> ModuleDisplayDefault for Site<T> {
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

impl<T: SiteType> ModuleDisplay for Site<T> {}
