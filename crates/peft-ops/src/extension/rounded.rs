//! Frozen weights in bfloat16, in the order that products want: made once, shared by all who use the weight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use burn::backend::TensorMetadata;
use burn::tensor::Bytes;
use burn_flex::FlexTensor;

use super::tensors::matrix;
use crate::cpu::bf16::Packed;

/// Where a weight lies in memory: its buffer, its first element, its sizes and strides.
type Place = (usize, usize, [usize; 2], [isize; 2]);

/// A weight that was seen.
///
/// While a weak handle is there, a buffer can neither be changed in place nor be freed and used again: Burn changes a
/// buffer in place only if nobody else has a handle, and moves it away from weak ones. So if the handle still leads
/// somewhere, the numbers are those that were packed.
struct Seen {
    buffer: Weak<Bytes>,
    /// Made when it is seen for the second time: what is seen once was composed for one product.
    packed: Option<Arc<Packed>>,
}

impl Seen {
    fn is_of(&self, buffer: &Arc<Bytes>) -> bool {
        self.buffer.ptr_eq(&Arc::downgrade(buffer))
    }
}

static SEEN: Mutex<Option<HashMap<Place, Seen>>> = Mutex::new(None);

/// The weight, rounded once, if it was seen before.
pub(super) fn packed(weight: &FlexTensor) -> Option<Arc<Packed>> {
    let buffer = weight.data_arc();
    let layout = weight.layout();
    let (shape, strides) = (weight.shape(), layout.strides());
    let place = (
        Arc::as_ptr(&buffer).addr(),
        layout.start_offset(),
        [shape[0], shape[1]],
        [strides[0], strides[1]],
    );
    match look_up(place, &buffer) {
        Found::Nothing => return None,
        Found::Packed(packed) => return Some(packed),
        Found::Once => {}
    }
    // Not while others wait: packing runs on all threads, and one of them may come here meanwhile.
    let packed = Arc::new(Packed::new(matrix(weight)));
    let mut seen = lock();
    let entry = seen.get_or_insert_default().get_mut(&place);
    let entry = entry.filter(|entry| entry.is_of(&buffer));
    Some(match entry {
        Some(entry) => entry.packed.get_or_insert(packed).clone(),
        None => packed,
    })
}

/// What is known of a weight.
enum Found {
    /// It was not seen before.
    Nothing,
    /// It was seen, and not packed.
    Once,
    Packed(Arc<Packed>),
}

/// What is known of the weight, which is seen now.
fn look_up(place: Place, buffer: &Arc<Bytes>) -> Found {
    let mut seen = lock();
    let seen = seen.get_or_insert_default();
    if let Some(entry) = seen.get(&place).filter(|entry| entry.is_of(buffer)) {
        return entry.packed.clone().map_or(Found::Once, Found::Packed);
    }
    seen.retain(|_, entry| entry.buffer.strong_count() > 0);
    let entry = Seen {
        buffer: Arc::downgrade(buffer),
        packed: None,
    };
    seen.insert(place, entry);
    Found::Nothing
}

fn lock() -> MutexGuard<'static, Option<HashMap<Place, Seen>>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets all of them.
pub(crate) fn forget() {
    *lock() = None;
}
