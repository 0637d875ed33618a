//! Output heads that are the embedding table.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param,
};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Tensor};
use peft_ops::LowRank;

use crate::adapter::any_tensor::AnyTensor;
use crate::adapter::erased::ErasedWeight;
use crate::adapter::forward_context::ForwardContext;
use crate::adapter::quantized_base::QuantizedBase;
use crate::adapter::role::Role;
use crate::attached::base_norms::BaseNorms;
use crate::attached::composition::{Composition, PerRow};
use crate::attached::stack::Stack;
use crate::attached::traversal::{OwnWeight, TableName};
use crate::nn::cross_entropy::{adapted_cross_entropy, cross_entropy};
use crate::nn::layers::AdaptedForward;
use crate::nn::linear::through;
use crate::nn::place::Place;
use crate::slot::{self, SEGMENT, TIED};

/// The output head of a language model that has no matrix of its own: it is the embedding table, transposed.
///
/// A field of the model, beside the [`Embedding`]. Without a matrix it has no parameters; to methods it is a linear
/// layer all the same, whose weight `[d, vocabulary]` is the table. As upstream has it,
///
/// - an adapter of the table changes the embeddings and not the head;
/// - an adapter of the head, or a saved copy of it, changes the head and not the embeddings;
/// - trained rows of the table, which are new tokens, change both, and so does what is attached with
///   `ensure_weight_tying` ([`WeightAdapter::affects_tied_head`](crate::method::WeightAdapter::affects_tied_head)).
///
/// Where the two differ once adapters are folded in, the head gets a matrix of its own: outputs stay what they
/// are. (Hugging Face PEFT 0.21 merges into both, and its merged model computes something else than the unmerged
/// one.)
#[derive(Clone, Debug)]
pub struct TiedHead {
    table: &'static str,
    own: Option<Linear>,
    /// Adapters of the head; none where it has a matrix of its own, which holds them itself.
    stack: Stack,
}

impl TiedHead {
    /// The head of the table at `table`: its path of fields, from the struct that holds the head, as in
    /// `model.embed_tokens`.
    pub fn new(table: &'static str) -> Self {
        Self {
            table,
            own: None,
            stack: Stack::default(),
        }
    }

    /// The head's own matrix `[vocabulary, d]`, if it has got one.
    pub fn own(&self) -> Option<Tensor<2>> {
        self.own.as_ref().map(|own| own.weight.val().transpose())
    }

    /// Logits `[batch, seq, vocabulary]` of hidden states `[batch, seq, d]`, adapters and all.
    pub fn logits(
        &self,
        table: &Embedding,
        hidden: Tensor<3>,
        context: &ForwardContext,
    ) -> Tensor<3> {
        if let Some(own) = &self.own {
            return own.adapted_in(hidden, context);
        }
        let on_table = table.weight.reparameterization::<Stack>();
        let Some((on_table, rows)) = on_table.and_then(|stack| Some((stack, rows_of(stack)?)))
        else {
            let place = Self::place(table, on_table, &self.stack);
            return through(&place, hidden, context);
        };
        // The table differs between rows, and the head with it.
        let named = Named::new(rows);
        named.rows.run(&hidden.device(), |name, rows, index| {
            let name = name.first().map(|name| named.names[*name]);
            let (on_table, stack) = (on_table.named(name), self.stack.named(name));
            let place = Self::place(table, Some(&on_table), &stack);
            let context = context.of_rows(rows, &index);
            through(&place, hidden.clone().select(0, index), &context)
        })
    }

    /// The sum of the negative log likelihoods of `targets` under the logits of `hidden` `[rows, d]`, adapters and
    /// all: as [`adapted_cross_entropy`](crate::nn::adapted_cross_entropy) of a head with a matrix.
    pub fn cross_entropy(
        &self,
        table: &Embedding,
        hidden: Tensor<2>,
        targets: &[i64],
        context: &ForwardContext,
    ) -> Tensor<1> {
        if let Some(own) = &self.own {
            return adapted_cross_entropy(own, hidden, targets, context);
        }
        let on_table = table.weight.reparameterization::<Stack>();
        let Some(rows) = on_table.and_then(rows_of) else {
            let place = Self::place(table, on_table, &self.stack);
            return cross_entropy(&place, hidden, targets, context);
        };
        let [count, d] = hidden.dims();
        let hidden = hidden.reshape([rows.len() as isize, -1, d as isize]);
        let logits = self.logits(table, hidden, context);
        let logits = logits.reshape([count as isize, -1]);
        peft_ops::reference::cross_entropy(logits, targets)
    }

    /// The head as a linear layer, with these adapters on the table and on the head.
    fn place<'a>(table: &Embedding, on_table: Option<&Stack>, stack: &'a Stack) -> Place<'a> {
        let mut base = table.weight.base().transpose();
        let mut quantized = on_table.and_then(|stack| stack.quantized.clone());
        let mut below = Vec::new();
        if let Some(on_table) = on_table {
            let low_rank = followers(on_table).map(ErasedWeight::tied_low_rank);
            if let (Some(merged), false) = (&on_table.merged, parts(on_table)) {
                // What the head follows is all there is, and is computed already.
                base = merged.get::<2>().transpose();
                quantized = None;
            } else if let Some(factors) = low_rank.collect::<Option<Vec<LowRank>>>() {
                below = factors;
            } else {
                base = followed_by_head(on_table, &table.weight.base()).transpose();
                quantized = None;
            }
        }
        Place {
            base,
            quantized: quantized.map(QuantizedBase::of_linear),
            bias: None,
            below,
            norms: BaseNorms::default(),
            // It is the table's, and may change without the head.
            own: false,
            stack,
        }
    }
}

/// The adapters of the batch's rows, where the head changes with the rows' adapters of the table.
fn rows_of(on_table: &Stack) -> Option<&[Option<String>]> {
    let mixture = on_table.mixed()?;
    let follows = on_table
        .used()
        .any(|entry| entry.adapter.weight_adapter().affects_tied_head());
    match mixture.composition.as_ref() {
        Composition::PerRow(rows) if follows => Some(rows),
        _ => None,
    }
}

/// Rows grouped by the name of their adapter, wherever that is.
struct Named<'a> {
    names: Vec<&'a str>,
    /// With indices of names for entries.
    rows: PerRow,
}

impl<'a> Named<'a> {
    fn new(rows: &'a [Option<String>]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let indices: Vec<Vec<usize>> = rows
            .iter()
            .map(|row| {
                let name = row.as_deref();
                let index = name.map(|name| {
                    let known = names.iter().position(|known| *known == name);
                    known.unwrap_or_else(|| {
                        names.push(name);
                        names.len() - 1
                    })
                });
                index.into_iter().collect()
            })
            .collect();
        Self {
            names,
            rows: PerRow::new(indices.into_iter()),
        }
    }
}

/// Active adapters of the table that the head follows.
fn followers(stack: &Stack) -> impl Iterator<Item = &dyn ErasedWeight> {
    stack
        .active_weights()
        .into_iter()
        .filter(|adapter| adapter.affects_tied_head())
}

/// The table as the head sees it; `base` is the parameter's own tensor.
fn followed(stack: &Stack, base: AnyTensor) -> AnyTensor {
    let mut followers = followers(stack).peekable();
    // A copy does not look at what it takes the place of.
    let base = match followers.peek() {
        Some(first) if first.role() == Role::SavedModule => base,
        _ => stack.dense(&base),
    };
    followers.fold(base, |table, adapter| adapter.compose(table))
}

/// [`followed`], kept between forward passes while nothing is trained.
fn followed_by_head(stack: &Stack, base: &Tensor<2>) -> Tensor<2> {
    if !parts(stack)
        && let Some(kept) = stack.kept(base)
    {
        return kept;
    }
    let compose = || followed(stack, AnyTensor::new(base.clone()));
    // Who has a quantized table wants no dense copy of it.
    let may_keep = stack.quantized.is_none() && !base.is_autodiff();
    let bytes = base.shape().num_elements() * base.dtype().size();
    let kept = may_keep.then(|| stack.kept_by_head.get(bytes, || true, compose));
    kept.flatten().unwrap_or_else(compose).get()
}

/// Whether an active adapter changes the table and not the head.
fn parts(stack: &Stack) -> bool {
    stack
        .used()
        .any(|entry| !entry.adapter.weight_adapter().affects_tied_head())
}

/// What a head multiplies by, `[d, vocabulary]`, with all that is active, where the table with all that is active
/// on it is something else. `table` is the parameter's own tensor; the stacks are the head's and the table's.
pub(crate) fn parted(
    head: Option<&Stack>,
    table: &AnyTensor,
    on_table: Option<&Stack>,
) -> Option<AnyTensor> {
    let own = head.filter(|stack| stack.used().next().is_some());
    let seen = match on_table {
        Some(stack) if own.is_none() && !parts(stack) => return None,
        Some(stack) => followed(stack, table.clone()),
        None if own.is_none() => return None,
        None => table.clone(),
    };
    let seen = AnyTensor::new(seen.get::<2>().transpose());
    let whole = match own {
        Some(own) => own.compose_on(seen),
        None => seen,
    };
    Some(whole.detach())
}

/// Whether the head goes on reading the table as it was, although what is active on that is merged.
pub(crate) fn reads_base(head: Option<&Stack>, on_table: Option<&Stack>) -> bool {
    let own = head.and_then(|stack| stack.used().next());
    let follows = on_table.is_some_and(|stack| followers(stack).next().is_some());
    own.is_none() && !follows
}

impl Module for TiedHead {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if let Some(own) = &self.own {
            return own.visit(visitor);
        }
        visitor.enter_module(SEGMENT, TIED);
        slot::report(|| TableName(self.table));
        self.stack.visit(visitor);
        visitor.exit_module(SEGMENT, TIED);
    }

    fn map<M: ModuleMapper>(mut self, mapper: &mut M) -> Self {
        if let Some(own) = self.own {
            self.own = Some(own.map(mapper));
            return self;
        }
        mapper.enter_module(SEGMENT, TIED);
        self.stack = self.stack.map(mapper);
        if let Some(OwnWeight(weight)) = slot::take() {
            self.stack = Stack::default();
            self.own = Some(Linear {
                weight: Param::from_tensor(weight).set_require_grad(false),
                bias: None,
            });
        }
        mapper.exit_module(SEGMENT, TIED);
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        let devices = self.stack.collect_devices(devices);
        match &self.own {
            Some(own) => own.collect_devices(devices),
            None => devices,
        }
    }

    fn to_device(mut self, device: &Device) -> Self {
        self.own = self.own.map(|own| own.to_device(device));
        self.stack = self.stack.to_device(device);
        self
    }

    fn fork(mut self, device: &Device) -> Self {
        self.own = self.own.map(|own| own.fork(device));
        self.stack = self.stack.fork(device);
        self
    }

    fn train(mut self) -> Self {
        self.own = self.own.map(Module::train);
        self.stack = self.stack.train();
        self
    }

    fn valid(&self) -> Self {
        Self {
            table: self.table,
            own: self.own.as_ref().map(Module::valid),
            stack: self.stack.valid(),
        }
    }

    fn materialize(mut self) -> Self {
        self.own = self.own.map(Module::materialize);
        self
    }
}

impl ModuleDisplayDefault for TiedHead {
    fn content(&self, content: Content) -> Option<Content> {
        let matrix = if self.own.is_some() {
            "its own matrix"
        } else {
            self.table
        };
        content
            .add_formatted(&format!("TiedHead {{{matrix}}}"))
            .optional()
    }
}

impl ModuleDisplay for TiedHead {}
