//! Descriptions that newer ones displaced, kept to answer for holes.
//!
//! When a region shrinks in a split, its new part is unknown until that part has elected a leader and reported. Until then the
//! old description is the best answer for a key in the hole: the store it leads to refuses the old epoch and says what is there now.

use alloc::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};
use core::ops::Bound::{Included, Unbounded};

use flotilla_proto::store::Space;

use crate::{
    entry::{ByPlace, Packed, place},
    limits,
};

#[derive(Default)]
pub(crate) struct Ghosts {
    /// May overlap each other and live regions; asked only where no live region is.
    by_place: BTreeSet<ByPlace>,
    /// Oldest first. Invariant: has the places of `by_place`, each once.
    order: VecDeque<Arc<Packed>>,
}

impl Ghosts {
    /// Keeps a displaced description, instead of the oldest one when there are too many.
    pub fn keep(&mut self, ghost: Arc<Packed>) {
        if self.by_place.replace(ByPlace(ghost.clone())).is_none() {
            self.order.push_back(ghost);
        }
        if self.order.len() > limits::GHOSTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_place.remove(oldest.place());
        }
        assert!(self.order.len() == self.by_place.len(), "every ghost has its place in the order");
    }

    /// What was last known to hold a key.
    pub fn find(&self, space: Space, key: &[u8]) -> Option<&Packed> {
        let place = place(space, key);
        let ByPlace(ghost) = self.by_place.range::<[u8], _>((Unbounded, Included(&place[..]))).next_back()?;
        (ghost.is_in(space) && ghost.holds(key)).then_some(ghost)
    }
}
