//! Places in a forward pass where adapters act on what flows by.

use std::marker::PhantomData;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Device, Tensor};

use crate::adapter::any_adapter::AnyAdapter;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::site_context::SiteContext;
use crate::adapter::site_type::{
    Attention, Hidden, HiddenState, KeyValue, Prompt, SiteKind, SiteType,
};
use crate::attached::composition::{Composition, Mixture, Parts, PerRow};
use crate::attached::stack::{Entry, Stack};
use crate::layout::site_kind::SiteHead;
use crate::nn::mixture::mix;
use crate::nn::tree::TreeSite;
use crate::slot::{self, SEGMENT, SITE};

/// A place in a model's forward pass where adapters can act. What flows by is its type: [`HiddenSite`],
/// [`PromptSite`], [`KeyValueSite`] or [`AttentionSite`].
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
    pub(super) head: SiteHead,
    pub(super) stack: Stack,
    marker: PhantomData<T>,
}

/// A site of a hidden state, for [`HiddenAdapter`](crate::method::HiddenAdapter)s: bottlenecks, say.
pub type HiddenSite = Site<Hidden>;
/// A site of embeddings, for [`PromptAdapter`](crate::method::PromptAdapter)s.
pub type PromptSite = Site<Prompt>;
/// A site of an attention layer's keys and values, for [`KeyValueAdapter`](crate::method::KeyValueAdapter)s.
pub type KeyValueSite = Site<KeyValue>;
/// A site of what attention's heads give, for [`AttentionAdapter`](crate::method::AttentionAdapter)s.
pub type AttentionSite = Site<Attention>;

impl<T: SiteType> Site<T> {
    pub(super) fn empty(kind: SiteKind, width: usize) -> Self {
        Self {
            head: SiteHead {
                kind,
                width,
                input_width: width,
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
                Some(adapter.frozen().parts(hidden, context))
            };
            through(stack, hidden, &context.with_siblings(&sibling))
        };
        self.run(hidden, context, false, run)
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
        self.run(hidden, context, true, undo)
    }

    /// `run` with all adapters, or with those of each part of a mixture. `backward`: the last one first.
    fn run(
        &self,
        hidden: Tensor<3>,
        context: &SiteContext<'_>,
        backward: bool,
        run: impl Fn(&Stack, Tensor<3>, &SiteContext<'_>) -> Tensor<3>,
    ) -> Tensor<3> {
        let Some(mixture) = self.stack.mixed() else {
            return run(&self.stack, hidden, context);
        };
        if let (Parts::Tree(_), Composition::Nested(tree)) =
            (&mixture.parts, mixture.composition.as_ref())
        {
            let site = TreeSite {
                stack: &self.stack,
                backward,
                run: &run,
            };
            return site.of(tree, hidden, context);
        }
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

    /// An empty site for the stream of `width` features in front of a block. Call
    /// [`add_prompt`](Self::add_prompt) with it, once for a cache: when it is empty. The virtual tokens there have no
    /// position: the text's are what they were.
    pub fn of_stream(width: usize) -> Self {
        Self::empty(SiteKind::Stream, width)
    }

    /// How many virtual tokens the active adapters put in front.
    pub fn virtual_tokens(&self) -> usize {
        virtual_tokens(&self.stack)
    }

    /// Embeddings `[batch, seq, d]` with the active adapters' virtual tokens in front: they grow by
    /// [`virtual_tokens`](Self::virtual_tokens). Returns them, and the context with their padding, and with that many
    /// virtual tokens more.
    pub fn add_prompt(
        &self,
        embeddings: Tensor<3>,
        context: ForwardContext,
    ) -> (Tensor<3>, ForwardContext) {
        let batch = embeddings.dims()[0];
        let mut parts = self.prompts(&embeddings, &context);
        if parts.is_empty() {
            return (embeddings, context);
        }
        let tokens = parts.iter().map(|part| part.dims()[1]).sum();
        parts.push(embeddings);
        let mut context = context.with_tokens_in_front(batch, tokens);
        let behind = |entry: &Entry| entry.adapter.prompt_adapter().is_behind_first_token();
        if self.stack.used().all(behind) {
            context = context.with_text_first();
        }
        (Tensor::cat(parts, 1), context)
    }

    /// What each active adapter puts in front, `[batch, tokens, d]`.
    fn prompts(&self, hidden: &Tensor<3>, context: &ForwardContext) -> Vec<Tensor<3>> {
        let [batch, ..] = hidden.dims();
        let of = |entry: &Entry, hidden: &Tensor<3>, context: &ForwardContext| {
            let [rows, ..] = hidden.dims();
            let adapter = entry.adapter.prompt_adapter();
            let prompts = adapter.prompts_before(hidden, context);
            let [given, tokens, width] = prompts.dims();
            assert!(
                given == 1 || given == rows,
                "the adapter `{}` gave prompts for {given} rows of {rows}",
                entry.name
            );
            prompts.expand([rows, tokens, width])
        };
        let Some(mixture) = self.stack.mixed() else {
            let active = self.stack.active();
            return active.map(|entry| of(entry, hidden, context)).collect();
        };
        if let Some(plain) = plain(mixture) {
            let entries = plain.iter().map(|at| &self.stack.entries[*at]);
            return entries.map(|entry| of(entry, hidden, context)).collect();
        }
        let device = hidden.device();
        let rows = rows_of(mixture, batch);
        vec![rows.run(&device, |entries, rows, index| {
            let context = context.of_rows(rows, &index);
            let entry = entry_of_rows(&self.stack, entries);
            of(entry, &hidden.clone().select(0, index), &context)
        })]
    }
}

/// Virtual tokens of the adapters that are used; under a mixture each row has those of one adapter.
pub(super) fn virtual_tokens(stack: &Stack) -> usize {
    count(stack, AnyAdapter::virtual_tokens)
}

/// What the adapters that are used take together; under a mixture each row has one adapter.
pub(super) fn count(stack: &Stack, of: impl Fn(&AnyAdapter) -> usize) -> usize {
    let mut tokens = stack.used().map(|entry| of(&entry.adapter));
    match stack.mixed() {
        Some(mixture) if plain(mixture).is_none() => tokens.next().unwrap_or(0),
        _ => tokens.sum(),
    }
}

/// Entries of the stack that a nested composition is at a place for all rows, if it is one.
pub(super) fn plain(mixture: &Mixture) -> Option<&[usize]> {
    match &mixture.parts {
        Parts::Blend(blend) => blend.plain(),
        _ => None,
    }
}

/// The adapters of a batch's rows, where adapters put virtual tokens in front.
pub(super) fn rows_of(mixture: &Mixture, batch: usize) -> &PerRow {
    let Parts::PerRow(rows) = &mixture.parts else {
        unreachable!("`set_composition` refuses virtual tokens with weights")
    };
    let count = rows.count();
    assert_eq!(
        batch, count,
        "the model was told the adapters of {count} rows, and the batch has {batch}"
    );
    rows
}

/// The adapter of some rows, where adapters put virtual tokens in front.
pub(super) fn entry_of_rows<'a>(stack: &'a Stack, at: &[usize]) -> &'a Entry {
    let [at] = at else {
        unreachable!("`set_composition` refuses rows of none or several with virtual tokens")
    };
    &stack.entries[*at]
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
