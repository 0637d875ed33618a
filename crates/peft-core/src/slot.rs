//! Where a field of ours and a traversal of ours meet.
//!
//! Burn's traversals are type-erased: a field cannot tell which visitor visits it, and a visitor cannot see which field
//! it visits. The two therefore exchange values in one place of the thread. It is open only while a traversal of ours
//! runs; an ordinary visitor finds it closed.
//!
//! | direction | the field calls | the traversal calls |
//! |---|---|---|
//! | a traversal that reads | [`report`] | [`reported`] |
//! | a traversal that writes | [`is_writing`], [`take`] | [`offer`], [`clear`] |

use std::any::Any;
use std::cell::RefCell;

/// Path segment between a parameter or site and its adapters.
pub(crate) const SEGMENT: &str = "peft";

/// Container that Burn reports for a reparameterization; its name is the segment.
pub(crate) const REPARAMETERIZATION: &str = "Reparameterization";

/// Container that a site reports.
pub(crate) const SITE: &str = "Site";

/// Container that a tied head reports.
pub(crate) const TIED: &str = "TiedHead";

/// Whether this segment of a path leads to the adapters of one place.
pub(crate) fn leads_to_adapters(segment: &str, container: &str) -> bool {
    segment == SEGMENT && [REPARAMETERIZATION, SITE, TIED].contains(&container)
}

/// What the traversal that runs does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// None of ours runs.
    #[default]
    Closed,
    /// It takes copies of what fields hold.
    Reading,
    /// It puts other values into fields, and leaves parameters alone.
    Writing,
}

#[derive(Default)]
struct Slot {
    mode: Mode,
    values: Vec<Box<dyn Any>>,
}

thread_local! {
    static SLOT: RefCell<Slot> = RefCell::default();
}

/// The slot is open as long as this lives, and closed and empty afterwards, also after a panic.
#[derive(Debug)]
pub(crate) struct Open;

impl Open {
    pub(crate) fn to(mode: Mode) -> Self {
        set(mode);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        set(Mode::Closed);
    }
}

fn set(mode: Mode) {
    let values = Vec::new();
    drop(SLOT.replace(Slot { mode, values }));
}

fn put(value: impl Any) {
    SLOT.with_borrow_mut(|slot| slot.values.push(Box::new(value)));
}

/// Removes the first value of this type.
fn remove<T: Any>() -> Option<T> {
    let value = SLOT.with_borrow_mut(|slot| {
        let at = slot.values.iter().position(|value| value.is::<T>())?;
        Some(slot.values.remove(at))
    })?;
    value.downcast().ok().map(|value| *value)
}

/// Called by a field that is visited: gives `value` to a traversal that reads. Returns whether one does; the field is
/// then done.
pub(crate) fn report<T: Any>(value: impl FnOnce() -> T) -> bool {
    let reads = SLOT.with_borrow(|slot| slot.mode == Mode::Reading);
    if reads {
        put(value());
    }
    reads
}

/// Called by a traversal that reads: what a field has reported since.
pub(crate) fn reported<T: Any>() -> Option<T> {
    remove()
}

/// Called by a field that is mapped: whether the traversal writes. Parameters are then none of its business.
pub(crate) fn is_writing() -> bool {
    SLOT.with_borrow(|slot| slot.mode == Mode::Writing)
}

/// Called by a traversal that writes: a value for the field that comes next.
pub(crate) fn offer(value: impl Any) {
    put(value);
}

/// Called by a field that is mapped: the value that it shall have from now on, if there is another.
pub(crate) fn take<T: Any>() -> Option<T> {
    if is_writing() { remove() } else { None }
}

/// Called by a traversal that writes, behind a field: what that did not take is for no other field.
pub(crate) fn clear() {
    let values = SLOT.with_borrow_mut(|slot| std::mem::take(&mut slot.values));
    drop(values);
}

/// Whether no traversal runs, and none left a value behind.
#[cfg(test)]
pub(crate) fn is_closed() -> bool {
    SLOT.with_borrow(|slot| slot.mode == Mode::Closed && slot.values.is_empty())
}
