//! The network: per directed pair of stores, delays, losses, duplicates, cuts; and a memory of old messages.

use std::collections::BTreeSet;

use flotilla_proto::store::{Frame, RaftMessage};
use flotilla_raftstore::frame;
use prost::Message as _;

use crate::{knobs::Knobs, rng::Rng};

const HOARD_MAX: usize = 64;

/// Each worker of a store speaks on a lane of its own, by its number, and the liveness thread on this one.
pub const LIVENESS_LANE: usize = 255;

/// See the module.
#[derive(Default)]
pub struct Network {
    /// Directed pairs of store ids between which nothing passes.
    cuts: BTreeSet<(u64, u64)>,
    /// The same for one lane alone.
    lane_cuts: BTreeSet<(u64, u64, usize)>,
    /// The same for the messages of one region: frames are split, and parts of them dropped.
    region_cuts: BTreeSet<(u64, u64, u64)>,
    /// Lanes of one direction on which what is under way does not arrive either.
    severed: BTreeSet<(u64, u64, usize)>,
    /// No loss, no delay beyond the usual: the end of a run.
    pub healed: bool,
    hoard: Vec<(u64, u64, RaftMessage)>,
    seen: u64,
}

impl Network {
    /// Cuts one direction.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    /// Mends one direction.
    pub fn mend(&mut self, from: u64, to: u64) {
        self.cuts.remove(&(from, to));
        self.severed.retain(|(one, other, _)| (*one, *other) != (from, to));
    }

    /// Cuts one lane of one direction.
    pub fn cut_lane(&mut self, from: u64, to: u64, lane: usize) {
        self.lane_cuts.insert((from, to, lane));
    }

    /// Mends one lane of one direction.
    pub fn mend_lane(&mut self, from: u64, to: u64, lane: usize) {
        self.lane_cuts.remove(&(from, to, lane));
        self.severed.remove(&(from, to, lane));
    }

    /// Cuts one lane of one direction, and what is under way there is lost unless it is mended before that arrives.
    pub fn sever_lane(&mut self, from: u64, to: u64, lane: usize) {
        self.cut_lane(from, to, lane);
        self.severed.insert((from, to, lane));
    }

    /// The same for a whole direction.
    pub fn sever(&mut self, from: u64, to: u64, lanes: usize) {
        self.cut(from, to);
        self.severed.extend((0..lanes).map(|lane| (from, to, lane)));
    }

    /// Whether a frame that has been under way on this lane is lost.
    pub fn is_severed(&self, from: u64, to: u64, lane: usize) -> bool {
        self.severed.contains(&(from, to, lane))
    }

    /// Lets the messages of one region not pass in one direction.
    pub fn cut_region(&mut self, from: u64, to: u64, region_id: u64) {
        self.region_cuts.insert((from, to, region_id));
    }

    /// Lets them pass again.
    pub fn mend_region(&mut self, from: u64, to: u64, region_id: u64) {
        self.region_cuts.remove(&(from, to, region_id));
    }

    /// Loses the messages that do not pass for their regions' sake.
    pub fn thin_out(&self, from: u64, to: u64, messages: &mut Vec<RaftMessage>) {
        if !self.region_cuts.is_empty() {
            messages.retain(|message| !self.region_cuts.contains(&(from, to, message.region_id)));
        }
    }

    /// Mends everything.
    pub fn mend_all(&mut self) {
        self.cuts.clear();
        self.region_cuts.clear();
        self.lane_cuts.clear();
        self.severed.clear();
    }

    /// Whether nothing passes from one store to the other.
    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// After which times a frame arrives: never, once or twice.
    pub fn arrivals_us(&self, from: u64, to: u64, lane: usize, knobs: &Knobs, rng: &mut Rng) -> Vec<u64> {
        let cut = self.is_cut(from, to) || self.lane_cuts.contains(&(from, to, lane));
        if cut || (!self.healed && rng.chance(knobs.loss)) {
            return Vec::new();
        }
        let delay = |rng: &mut Rng| {
            let usual = rng.within(knobs.delay_us);
            if !self.healed && rng.chance(knobs.stragglers) { usual * rng.within((5, 100)) } else { usual }
        };
        let mut arrivals = vec![delay(rng)];
        if !self.healed && rng.chance(knobs.duplicates) {
            arrivals.push(delay(rng));
        }
        arrivals
    }

    /// What comes out at the other end when messages share a frame: the bytes that a store sends are made and read.
    pub fn carried(&self, from: u64, to: u64, messages: Vec<RaftMessage>) -> Vec<RaftMessage> {
        let bytes = bytes::Bytes::from(frame::pack(from, to, messages).encode_to_vec());
        let frame = Frame::decode(bytes).expect("what was encoded can be decoded");
        frame::unpack(from, to, frame).expect("what was packed can be unpacked")
    }

    /// Remembers a message, perhaps.
    pub fn hoard(&mut self, from: u64, to: u64, message: &RaftMessage, rng: &mut Rng) {
        self.seen += 1;
        if self.hoard.len() < HOARD_MAX {
            self.hoard.push((from, to, message.clone()));
        } else if rng.below(self.seen.min(2_000)) < 8 {
            let place = rng.below(HOARD_MAX as u64) as usize;
            self.hoard[place] = (from, to, message.clone());
        }
    }

    /// An old message: from, to, what.
    pub fn replay(&self, rng: &mut Rng) -> Option<(u64, u64, RaftMessage)> {
        (!self.hoard.is_empty()).then(|| rng.pick(&self.hoard))
    }
}
