//! Effective weights that are kept from one forward pass to the next, and how much memory they may take.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::adapter::any_tensor::AnyTensor;

/// 512 MiB.
const DEFAULT_LIMIT: usize = 512 << 20;

static LIMIT: AtomicUsize = AtomicUsize::new(DEFAULT_LIMIT);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// The most bytes that all kept weights of this process may take together. Default: 512 MiB.
pub fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// Sets the most bytes that all kept weights of this process may take together. 0 keeps none. `usize::MAX` keeps all.
///
/// Weights that are kept already stay, also where they take more than the new limit. Call it before the first forward
/// pass, or change the model afterwards.
pub fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Relaxed);
}

/// How many bytes all kept weights of this process take now. Those of one model are in its
/// [`Summary`](crate::accounting::Summary).
pub fn bytes() -> usize {
    BYTES.load(Relaxed)
}

/// A part of the limit, given back when it is dropped.
#[derive(Debug)]
struct Reserved(usize);

impl Reserved {
    /// So many bytes, if the limit leaves room for them.
    fn new(bytes: usize) -> Option<Self> {
        let limit = limit();
        let added = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        let reserved = BYTES.fetch_update(Relaxed, Relaxed, added);
        reserved.ok().map(|_| Self(bytes))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        BYTES.fetch_sub(self.0, Relaxed);
    }
}

#[derive(Debug, Default)]
struct Cell {
    /// Whether the adapters at the place gain from it.
    wanted: OnceLock<bool>,
    weight: OnceLock<(AnyTensor, Reserved)>,
}

/// The effective weight at one place, once a forward pass without autodiff has composed it. Clones share it: it belongs
/// to one state of the place, and whatever changes the place makes a new one.
#[derive(Clone, Debug)]
pub(crate) struct KeptWeight(Option<Arc<Cell>>);

impl Default for KeptWeight {
    fn default() -> Self {
        Self(Some(Arc::default()))
    }
}

impl KeptWeight {
    /// Of a place that is made for one forward pass: nothing is kept.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// The weight, composed if it is `wanted` and the limit leaves room for its `bytes`.
    pub(crate) fn get(
        &self,
        bytes: usize,
        wanted: impl FnOnce() -> bool,
        compose: impl FnOnce() -> AnyTensor,
    ) -> Option<AnyTensor> {
        let cell = self.0.as_ref()?;
        if !*cell.wanted.get_or_init(wanted) {
            return None;
        }
        if let Some((weight, _)) = cell.weight.get() {
            return Some(weight.clone());
        }
        let reserved = Reserved::new(bytes)?;
        let weight = compose();
        if weight.is_autodiff() {
            // The adapters are trained, and the base is on no autodiff device.
            return None;
        }
        // Another thread may have been faster, with the same weight.
        let (weight, _) = cell.weight.get_or_init(|| (weight, reserved));
        Some(weight.clone())
    }

    /// How many bytes are kept here.
    pub(crate) fn bytes(&self) -> usize {
        let kept = self.0.as_ref().and_then(|cell| cell.weight.get());
        kept.map_or(0, |(_, reserved)| reserved.0)
    }
}
