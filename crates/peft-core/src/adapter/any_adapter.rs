//! An adapter of any method at any of the places: what a stack holds.

use crate::adapter::contract::{
    AttentionAdapter, HiddenAdapter, KeyValueAdapter, PromptAdapter, WeightAdapter,
};
use crate::adapter::erased::{
    ErasedAttention, ErasedHidden, ErasedKeyValue, ErasedModule, ErasedPrompt, ErasedWeight, Typed,
};
use crate::adapter::role::Role;

/// An adapter of any method at any of the places.
#[derive(Debug)]
pub(crate) enum AnyAdapter {
    Weight(Box<dyn ErasedWeight>),
    Hidden(Box<dyn ErasedHidden>),
    Prompt(Box<dyn ErasedPrompt>),
    KeyValue(Box<dyn ErasedKeyValue>),
    Attention(Box<dyn ErasedAttention>),
}

impl Clone for AnyAdapter {
    fn clone(&self) -> Self {
        match self {
            Self::Weight(adapter) => Self::Weight(adapter.boxed()),
            Self::Hidden(adapter) => Self::Hidden(adapter.boxed()),
            Self::Prompt(adapter) => Self::Prompt(adapter.boxed()),
            Self::KeyValue(adapter) => Self::KeyValue(adapter.boxed()),
            Self::Attention(adapter) => Self::Attention(adapter.boxed()),
        }
    }
}

impl AnyAdapter {
    pub(crate) fn weight(adapter: impl WeightAdapter, role: Role) -> Self {
        Self::Weight(Box::new(Typed::new(adapter, role)))
    }
    pub(crate) fn hidden(adapter: impl HiddenAdapter) -> Self {
        Self::Hidden(Box::new(Typed::new(adapter, Role::Method)))
    }
    pub(crate) fn prompt(adapter: impl PromptAdapter) -> Self {
        Self::Prompt(Box::new(Typed::new(adapter, Role::Method)))
    }
    pub(crate) fn key_value(adapter: impl KeyValueAdapter) -> Self {
        Self::KeyValue(Box::new(Typed::new(adapter, Role::Method)))
    }
    pub(crate) fn attention(adapter: impl AttentionAdapter) -> Self {
        Self::Attention(Box::new(Typed::new(adapter, Role::Method)))
    }

    /// The part that does not depend on the place.
    pub(crate) fn module(&self) -> &dyn ErasedModule {
        match self {
            Self::Weight(adapter) => adapter.as_ref(),
            Self::Hidden(adapter) => adapter.as_ref(),
            Self::Prompt(adapter) => adapter.as_ref(),
            Self::KeyValue(adapter) => adapter.as_ref(),
            Self::Attention(adapter) => adapter.as_ref(),
        }
    }

    pub(crate) fn module_mut(&mut self) -> &mut dyn ErasedModule {
        match self {
            Self::Weight(adapter) => adapter.as_mut(),
            Self::Hidden(adapter) => adapter.as_mut(),
            Self::Prompt(adapter) => adapter.as_mut(),
            Self::KeyValue(adapter) => adapter.as_mut(),
            Self::Attention(adapter) => adapter.as_mut(),
        }
    }

    /// The adapter, which is on a weight.
    pub(crate) fn weight_adapter(&self) -> &dyn ErasedWeight {
        match self {
            Self::Weight(adapter) => adapter.as_ref(),
            other => unreachable!("{} is on a weight", other.place()),
        }
    }

    /// The adapter, which is at a site of hidden states.
    pub(crate) fn hidden_adapter(&self) -> &dyn ErasedHidden {
        match self {
            Self::Hidden(adapter) => adapter.as_ref(),
            other => unreachable!("{} is at a site of hidden states", other.place()),
        }
    }

    /// The adapter, which is at a site of embeddings.
    pub(crate) fn prompt_adapter(&self) -> &dyn ErasedPrompt {
        match self {
            Self::Prompt(adapter) => adapter.as_ref(),
            other => unreachable!("{} is at a site of embeddings", other.place()),
        }
    }

    /// The adapter, which is at a site of keys and values.
    pub(crate) fn key_value_adapter(&self) -> &dyn ErasedKeyValue {
        match self {
            Self::KeyValue(adapter) => adapter.as_ref(),
            other => unreachable!("{} is at a site of keys and values", other.place()),
        }
    }

    /// The adapter, which is at a site of attention's heads.
    pub(crate) fn attention_adapter(&self) -> &dyn ErasedAttention {
        match self {
            Self::Attention(adapter) => adapter.as_ref(),
            other => unreachable!("{} is at a site of attention's heads", other.place()),
        }
    }

    /// Whether it is of a hidden state.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self, Self::Hidden(_))
    }

    /// How many virtual tokens it puts in front.
    pub(crate) fn virtual_tokens(&self) -> usize {
        match self {
            Self::Prompt(adapter) => adapter.virtual_tokens(),
            Self::KeyValue(adapter) => adapter.virtual_tokens(),
            Self::Weight(_) | Self::Hidden(_) | Self::Attention(_) => 0,
        }
    }

    /// How many of the model's positions those take.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Self::KeyValue(adapter) => adapter.positions(),
            other => other.virtual_tokens(),
        }
    }

    /// How many tasks it has parameters of, if rows differ by task.
    pub(crate) fn num_tasks(&self) -> Option<usize> {
        match self {
            Self::Weight(adapter) => adapter.num_tasks(),
            Self::Prompt(adapter) => adapter.num_tasks(),
            Self::Hidden(_) | Self::KeyValue(_) | Self::Attention(_) => None,
        }
    }

    /// What it was made for. A plan takes adapters for places of their type only.
    fn place(&self) -> &'static str {
        match self {
            Self::Weight(_) => "an adapter of a weight",
            Self::Hidden(_) => "an adapter of a hidden state",
            Self::Prompt(_) => "a prompt",
            Self::KeyValue(_) => "a prefix",
            Self::Attention(_) => "an adapter of attention's heads",
        }
    }
}
