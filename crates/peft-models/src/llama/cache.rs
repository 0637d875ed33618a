//! Keys and values of what was read before.

use burn::tensor::Tensor;

/// Keys and values of every layer, for going on with a text: [`Llama::cache`](super::Llama::cache).
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) length: usize,
}

/// Those of one layer, `[batch, seq, num_key_value_heads · head_dim]`.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerCache(Option<(Tensor<3>, Tensor<3>)>);

impl KvCache {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); layers],
            length: 0,
        }
    }

    /// Positions in the cache, virtual tokens included.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl LayerCache {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds keys and values; returns all.
    pub(super) fn extend(&mut self, key: Tensor<3>, value: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let all = match self.0.take() {
            None => (key, value),
            Some((keys, values)) => (
                Tensor::cat(vec![keys, key], 1),
                Tensor::cat(vec![values, value], 1),
            ),
        };
        self.0 = Some(all.clone());
        all
    }
}
