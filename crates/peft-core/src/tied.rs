//! Output heads that are the embedding table.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param,
};
use burn::nn::Embedding;
use burn::tensor::{Device, Tensor};
use peft_ops::Weight;

use crate::erased::{AnyAdapter, AnyTensor};
use crate::mechanism::{self, SEGMENT};
use crate::packing;
use crate::stack::Stack;

/// Container that a tied head reports to visitors.
pub(crate) const TIED: &str = "TiedHead";

/// The output head of a language model that has no matrix of its own: it is the embedding table, transposed.
///
/// A field of the model, beside the [`Embedding`]. Without a matrix it has no parameters. As upstream has it,
/// an adapter of the table changes the embeddings and not the head; trained rows of the table, which are new
/// tokens, change both. Merging such an adapter would change the head with the table, so it gives the head a
/// matrix of its own, the table as it was: outputs stay what they are. (Hugging Face PEFT 0.21 merges into
/// both, and its merged model computes something else than the unmerged one.)
#[derive(Clone, Debug)]
pub struct TiedHead {
    table: &'static str,
    own: Option<Param<Tensor<2>>>,
}

impl TiedHead {
    /// The head of the table at `table`: its path of fields, from the struct that holds the head, as in
    /// `model.embed_tokens`.
    pub fn new(table: &'static str) -> Self {
        Self { table, own: None }
    }

    /// The head's own matrix `[vocabulary, d]`, if it has got one.
    pub fn own(&self) -> Option<Tensor<2>> {
        self.own.as_ref().map(Param::val)
    }

    /// The head's matrix, one row for each token, for [`linear_cross_entropy`](crate::ops::linear_cross_entropy).
    pub fn rows(&self, table: &Embedding) -> Weight {
        if let Some(own) = &self.own {
            return Weight::Dense(own.val());
        }
        let base = table.weight.base();
        let Some(stack) = table.weight.reparameterization::<Stack>() else {
            return Weight::Dense(base);
        };
        if followers(stack).next().is_some() {
            let base = packing::dense(Some(stack), &AnyTensor::new(base));
            return Weight::Dense(followed(stack, base).get());
        }
        match &stack.packed {
            Some(packed) => Weight::Packed(packed.rows.clone()),
            None => Weight::Dense(base),
        }
    }

    /// Logits `[batch, seq, vocabulary]` of hidden states `[batch, seq, d]`.
    pub fn logits(&self, table: &Embedding, hidden: Tensor<3>) -> Tensor<3> {
        let weight = match self.rows(table) {
            Weight::Dense(rows) => Weight::Dense(rows.transpose()),
            packed @ Weight::Packed(_) => packed,
        };
        peft_ops::linear(hidden, weight, None, None)
    }
}

/// Active adapters of the table that the head follows.
fn followers(stack: &Stack) -> impl Iterator<Item = &AnyAdapter> {
    let adapters = stack.active().map(|entry| &entry.adapter);
    adapters
        .filter(|adapter| matches!(adapter, AnyAdapter::Weight(adapter) if adapter.moves_tied()))
}

/// The table as the head sees it.
pub(crate) fn followed(stack: &Stack, base: AnyTensor) -> AnyTensor {
    followers(stack).fold(base, |table, adapter| match adapter {
        AnyAdapter::Weight(adapter) => adapter.compose(table),
        _ => table,
    })
}

/// Whether an active adapter changes the table and not the head.
pub(crate) fn parts(stack: &Stack) -> bool {
    stack.active().count() > followers(stack).count()
}

impl Module for TiedHead {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(SEGMENT, TIED);
        mechanism::report_tied(self.table, self.own.is_some());
        visitor.exit_module(SEGMENT, TIED);
        if let Some(own) = &self.own {
            visitor.enter_module("weight", TIED);
            visitor.visit_float(own);
            visitor.exit_module("weight", TIED);
        }
    }

    fn map<M: ModuleMapper>(mut self, mapper: &mut M) -> Self {
        mapper.enter_module(SEGMENT, TIED);
        if let Some(table) = mechanism::untied() {
            self.own = Some(Param::from_tensor(table).set_require_grad(false));
        }
        mapper.exit_module(SEGMENT, TIED);
        self.own = self.own.map(|own| {
            mapper.enter_module("weight", TIED);
            let own = mapper.map_float(own);
            mapper.exit_module("weight", TIED);
            own
        });
        self
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        match &self.own {
            Some(own) => own.collect_devices(devices),
            None => devices,
        }
    }

    fn to_device(mut self, device: &Device) -> Self {
        self.own = self.own.map(|own| own.to_device(device));
        self
    }

    fn fork(mut self, device: &Device) -> Self {
        self.own = self.own.map(|own| own.fork(device));
        self
    }

    fn train(mut self) -> Self {
        self.own = self.own.map(Module::train);
        self
    }

    fn valid(&self) -> Self {
        Self {
            table: self.table,
            own: self.own.as_ref().map(Module::valid),
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
