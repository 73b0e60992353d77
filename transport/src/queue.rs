//! Frames that wait for their store's connection.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{LIVENESS_LANE, options::Limits};

/// The queues of all lanes to one store, bounded together; the liveness lane has a bound of its own.
pub(crate) struct FrameQueue {
    bytes_max: usize,
    liveness_bytes_max: usize,
    lanes: Mutex<Lanes>,
}

#[derive(Default)]
struct Lanes {
    lanes: BTreeMap<u8, Lane>,
    /// Invariant: the sum over all lanes but the liveness lane; that one's is `liveness_bytes`.
    bytes: usize,
    liveness_bytes: usize,
}

#[derive(Default)]
struct Lane {
    frames: VecDeque<Bytes>,
    ready: Arc<Notify>,
    has_writer: bool,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Full,
    Taken,
    /// The lane was empty and nobody writes it: the link has to know.
    NeedsWriter,
}

/// Each frame costs its queue entry and its allocation besides its bytes, or empty ones would be free.
const FRAME_OVERHEAD_BYTES: usize = 64;

impl FrameQueue {
    pub fn new(limits: &Limits) -> FrameQueue {
        let (bytes_max, liveness_bytes_max) = (limits.queue_bytes_max, limits.liveness_queue_bytes_max);
        FrameQueue { bytes_max, liveness_bytes_max, lanes: Mutex::default() }
    }

    pub fn push(&self, lane: u8, frame: Bytes) -> Pushed {
        let bytes = frame.len() + FRAME_OVERHEAD_BYTES;
        let mut guard = self.lanes.lock();
        let lanes = &mut *guard;
        let limit = if lane == LIVENESS_LANE { self.liveness_bytes_max } else { self.bytes_max };
        let used = lanes.used(lane);
        if *used + bytes > limit {
            return Pushed::Full;
        }
        *used += bytes;
        let lane = lanes.lanes.entry(lane).or_default();
        let was_empty = lane.frames.is_empty();
        lane.frames.push_back(frame);
        if was_empty && !lane.has_writer {
            return Pushed::NeedsWriter;
        }
        if was_empty {
            lane.ready.notify_one();
        }
        Pushed::Taken
    }

    pub fn is_empty(&self) -> bool {
        let lanes = self.lanes.lock();
        lanes.bytes == 0 && lanes.liveness_bytes == 0
    }

    /// The lanes that have frames but no writer, which they are then said to have; the liveness lane first.
    pub fn unwritten(&self) -> Vec<(u8, Arc<Notify>)> {
        let mut lanes = self.lanes.lock();
        let unwritten = lanes.lanes.iter_mut().rev().filter(|(_, lane)| !lane.has_writer && !lane.frames.is_empty());
        unwritten
            .map(|(number, lane)| {
                lane.has_writer = true;
                (*number, lane.ready.clone())
            })
            .collect()
    }

    /// All writers are gone.
    pub fn without_writers(&self) {
        self.lanes.lock().lanes.values_mut().for_each(|lane| lane.has_writer = false);
    }

    /// Takes frames from a lane's front up to about `batch_bytes`, but at least one if there is any.
    pub fn take(&self, lane: u8, batch_bytes: usize, batch: &mut Vec<Bytes>) {
        let mut lanes = self.lanes.lock();
        let Some(queue) = lanes.lanes.get_mut(&lane) else {
            return;
        };
        let mut taken = 0;
        while taken < batch_bytes
            && let Some(frame) = queue.frames.pop_front()
        {
            taken += frame.len() + FRAME_OVERHEAD_BYTES;
            batch.push(frame);
        }
        *lanes.used(lane) -= taken;
    }

    /// Throws everything away and tells how many frames that was.
    pub fn clear(&self) -> u64 {
        let mut lanes = self.lanes.lock();
        let mut cleared = 0;
        for lane in lanes.lanes.values_mut() {
            cleared += lane.frames.len() as u64;
            lane.frames = VecDeque::new();
        }
        lanes.bytes = 0;
        lanes.liveness_bytes = 0;
        cleared
    }
}

impl Lanes {
    fn used(&mut self, lane: u8) -> &mut usize {
        if lane == LIVENESS_LANE { &mut self.liveness_bytes } else { &mut self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> FrameQueue {
        FrameQueue::new(&Limits { queue_bytes_max: 1000, liveness_queue_bytes_max: 200, ..Limits::default() })
    }

    fn frame(length: usize) -> Bytes {
        Bytes::from(vec![0; length])
    }

    #[test]
    fn lanes_share_one_bound_and_liveness_has_its_own() {
        let queue = queue();
        assert_eq!(queue.push(0, frame(436)), Pushed::NeedsWriter);
        assert_eq!(queue.push(1, frame(436)), Pushed::NeedsWriter);
        assert_eq!(queue.push(0, frame(0)), Pushed::Full);
        assert_eq!(queue.push(2, frame(1)), Pushed::Full);
        assert_eq!(queue.push(LIVENESS_LANE, frame(136)), Pushed::NeedsWriter);
        assert_eq!(queue.push(LIVENESS_LANE, frame(0)), Pushed::Full);
        let lanes: Vec<u8> = queue.unwritten().into_iter().map(|(lane, _)| lane).collect();
        assert_eq!(lanes, [LIVENESS_LANE, 1, 0]);
        assert!(queue.unwritten().is_empty());

        let mut batch = Vec::new();
        queue.take(0, 1, &mut batch);
        assert_eq!(batch.len(), 1);
        assert_eq!(queue.push(2, frame(1)), Pushed::NeedsWriter);
        assert_eq!(queue.push(0, frame(0)), Pushed::Taken);
        assert_eq!(queue.clear(), 4);
        assert!(queue.is_empty());
        assert_eq!(queue.push(0, frame(900)), Pushed::Taken);
    }

    #[test]
    fn batches_keep_order_and_stop_at_their_size() {
        let queue = queue();
        for length in 0..5 {
            queue.push(0, frame(length));
        }
        let mut batch = Vec::new();
        queue.take(0, 130, &mut batch);
        assert_eq!(batch.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1, 2]);
        queue.take(0, usize::MAX, &mut batch);
        assert_eq!(batch.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
    }
}
