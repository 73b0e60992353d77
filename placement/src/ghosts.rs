//! Descriptions that newer ones displaced, kept to answer for holes.
//!
//! When a region shrinks in a split, its new part is unknown until that part has elected a leader and reported. Until then the
//! old description is the best answer for a key in the hole: the store it leads to refuses the old epoch and says what is there now.

use alloc::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_proto::{
    placement::RegionInfo,
    store::{Region, Space},
};

use crate::{limits, report};

#[derive(Default)]
pub(crate) struct Ghosts {
    /// May overlap each other and live regions; asked only where no live region is.
    by_start: BTreeMap<(Space, Bytes), RegionInfo>,
    /// Oldest first. Invariant: holds the keys of `by_start`, each once.
    order: VecDeque<(Space, Bytes)>,
}

impl Ghosts {
    /// Keeps a displaced description, instead of the oldest one when there are too many.
    pub fn keep(&mut self, info: RegionInfo) {
        let Some(region) = &info.region else { return };
        let key = (region.space(), region.start_key.clone());
        if self.by_start.insert(key.clone(), info).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > limits::GHOSTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_start.remove(&oldest);
        }
        assert!(self.order.len() == self.by_start.len(), "every ghost has its place in the order");
    }

    /// What was last known to hold a key.
    pub fn find(&self, space: Space, key: &Bytes) -> Option<&RegionInfo> {
        let (_, info) = self.by_start.range(..=(space, key.clone())).next_back()?;
        let holds = |region: &Region| region.space() == space && report::holds(region, key);
        info.region.as_ref().is_some_and(holds).then_some(info)
    }
}
