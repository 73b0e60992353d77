//! Leaders of a region that are left alone with one follower, one after the other: each leaves entries behind that the next one does not
//! know, and that follower, whose disk hangs perhaps, has to change its mind again and again. As in figure 8 of the Raft paper.

use flotilla_raftstore::recover::worker_of;

use crate::{
    rng::Rng,
    world::{Action, World},
};

/// What is under way.
pub(crate) struct Duet {
    /// The fault's number.
    number: u32,
    region_id: u64,
    /// The store of the follower.
    with: usize,
    /// So many leaders are still to come.
    left: u32,
    /// The store of the last leader.
    former: Option<usize>,
    /// What is cut for the sake of the last leader.
    cuts: Vec<(u64, u64)>,
    rng: Rng,
}

impl World {
    /// Chooses a region and a follower.
    pub(crate) fn begin_duet(&mut self, mut rng: Rng, number: u32) {
        let leaders: Vec<_> = self.leaders().into_values().filter(|(region, ..)| region.peers.len() > 1).collect();
        if leaders.is_empty() || self.faults.duet.is_some() {
            return;
        }
        let (region, leader, _) = rng.pick(&leaders);
        let followers: Vec<usize> = region.peers.iter().map(|peer| self.place(peer.store_id)).collect();
        let followers: Vec<usize> = followers.into_iter().filter(|store| *store != leader).collect();
        if followers.is_empty() {
            return;
        }
        let with = rng.pick(&followers);
        let left = rng.within((2, 6)) as u32;
        let until = self.now_us + rng.within((2_000, 8_000)) * 1000;
        if rng.chance(700) {
            self.stores[with].stalled_until_us = self.now_us + rng.within((500, 5_500)) * 1000;
        }
        self.trace.note(&[17, region.id, with as u64, until]);
        self.say(|| format!("duet: the leaders of region {} with store {}, until {until}", region.id, with + 1));
        let region_id = region.id;
        self.faults.duet = Some(Duet { number, region_id, with, left, former: None, cuts: Vec::new(), rng });
        self.schedule_at(until, Action::DuetEnds { number });
        self.next_duet(leader, region_id);
    }

    /// The next leader is there: it may get so far as to say so, or not.
    pub(crate) fn elected_in_duet(&mut self, store: usize, region_id: u64) {
        if let Some(duet) = self.faults.duet.as_mut().filter(|duet| duet.region_id == region_id) {
            let after = duet.rng.pick(&[0, 0, 5_000, 100_000]);
            let after = duet.rng.below(after + 1);
            self.schedule(after, Action::Duet { store, region_id });
        }
    }

    /// A leader is cut off from all but the follower; its forerunner is back.
    pub(crate) fn next_duet(&mut self, store: usize, region_id: u64) {
        let leaders = self.leaders();
        let Some((region, _, term)) = leaders.get(&region_id).filter(|(_, leader, _)| *leader == store) else { return };
        let Some(duet) = self.faults.duet.as_mut().filter(|duet| duet.region_id == region_id && duet.with != store)
        else {
            return;
        };
        if duet.left == 0 {
            let number = duet.number;
            return self.end_duet(number);
        }
        duet.left -= 1;
        let former = duet.former.replace(store);
        let mended = std::mem::take(&mut duet.cuts);
        let one = self.stores[store].id;
        let with = self.stores[duet.with].id;
        let alone = duet.rng.chance(200);
        let others = self.stores.iter().map(|other| other.id).filter(|id| *id != one && (alone || *id != with));
        duet.cuts = others.flat_map(|other| [(one, other), (other, one)]).collect();
        let cuts = duet.cuts.clone();
        // Somebody hears of the leader by a snapshot first: all that is sent before is lost.
        let late = duet.rng.pick(&[Some(duet.with), former, None, None]).filter(|late| *late != store);
        let muted_us = duet.rng.within((5, 500)) * 1000;
        self.say(|| format!("duet: store {one} leads region {region_id}; it reaches {with}, alone: {alone}"));
        for (from, to) in mended {
            self.network.mend(from, to);
        }
        if let Some(late) = late {
            let to = self.stores[late].id;
            let lane = worker_of(region_id, self.knobs.workers);
            self.trace.note(&[14, one, to, lane as u64, self.now_us + muted_us]);
            self.say(|| format!("duet: store {to} hears nothing from {one} for {muted_us} us but a snapshot"));
            self.network.sever_lane(one, to, lane);
            self.schedule(muted_us, Action::MendLane { from: one, to, lane });
            if let Some(peer) = region.peers.iter().find(|peer| peer.store_id == to) {
                self.send_unasked(store, region, *term, *peer);
            }
            // It would not get there otherwise.
            if former == Some(late) {
                return;
            }
        }
        for (from, to) in cuts {
            self.trace.note(&[3, from, to]);
            self.network.sever(from, to, self.knobs.workers);
        }
    }

    /// All hear each other again.
    pub(crate) fn end_duet(&mut self, number: u32) {
        let Some(duet) = self.faults.duet.take_if(|duet| duet.number == number) else { return };
        self.say(|| "duet: is over".to_owned());
        for (from, to) in duet.cuts {
            self.network.mend(from, to);
        }
    }
}
