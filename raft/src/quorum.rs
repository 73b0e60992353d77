//! Majorities, and pairs of majorities.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// A set of peer ids, kept sorted: groups are small and change rarely, and a sorted slice is the smallest map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdSet(Box<[u64]>);

impl IdSet {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, id: u64) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    pub fn insert(&mut self, id: u64) {
        if let Err(at) = self.0.binary_search(&id) {
            let (before, after) = self.0.split_at(at);
            self.0 = [before, &[id], after].concat().into();
        }
    }

    pub fn remove(&mut self, id: u64) {
        if self.contains(id) {
            self.0 = self.iter().filter(|&other| other != id).collect();
        }
    }

    pub fn clear(&mut self) {
        self.0 = Box::default();
    }

    /// The ids in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }

    /// The ids in ascending order.
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }

    /// The largest index that a majority of this set has acknowledged, where `acked` knows what each member has
    /// (`None`: nothing heard). `u64::MAX` for the empty set, so that it restricts nothing as a half of a joint set.
    pub fn committed_index(&self, acked: impl Fn(u64) -> Option<u64>) -> u64 {
        /// Sets up to this size are sorted on the stack. Larger ones are rare, and pay with an allocation.
        const ON_STACK: usize = 9;
        let n = self.0.len();
        if n == 0 {
            return u64::MAX;
        }
        // The median towards the low end: that index and everything above it is a majority.
        let position = n - (n / 2 + 1);
        let pick = |indexes: &mut [u64]| {
            for (slot, &id) in indexes.iter_mut().zip(&self.0[..]) {
                *slot = acked(id).unwrap_or(0);
            }
            indexes.sort_unstable();
            indexes[position]
        };
        if n <= ON_STACK { pick(&mut [0; ON_STACK][..n]) } else { pick(&mut alloc::vec![0; n]) }
    }

    /// How an election among this set stands, where `vote` knows each member's vote (`None`: not voted yet). The
    /// empty set has always won.
    pub fn vote_result(&self, vote: impl Fn(u64) -> Option<bool>) -> VoteResult {
        let (mut granted, mut missing) = (0, 0);
        for id in self.iter() {
            match vote(id) {
                Some(true) => granted += 1,
                Some(false) => {}
                None => missing += 1,
            }
        }
        if self.0.is_empty() {
            return VoteResult::Won;
        }
        let quorum = self.0.len() / 2 + 1;
        if granted >= quorum {
            VoteResult::Won
        } else if granted + missing >= quorum {
            VoteResult::Pending
        } else {
            VoteResult::Lost
        }
    }
}

impl FromIterator<u64> for IdSet {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> IdSet {
        let mut ids: Vec<u64> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        IdSet(ids.into())
    }
}

/// `(1 2 a)`: ids in hexadecimal.
impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (n, id) in self.iter().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{id:x}")?;
        }
        f.write_str(")")
    }
}

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// Either outcome is still possible.
    Pending,
    /// A quorum can no longer be reached.
    Lost,
    /// A quorum has voted yes.
    Won,
}

impl fmt::Display for VoteResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VoteResult::Pending => "VotePending",
            VoteResult::Lost => "VoteLost",
            VoteResult::Won => "VoteWon",
        })
    }
}

/// The voters during a change of membership: a decision needs a majority of both halves. Outside of changes the
/// outgoing half is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JointConfig {
    pub incoming: IdSet,
    pub outgoing: IdSet,
}

impl JointConfig {
    /// Whether both halves are in force.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes in either half.
    pub fn contains(&self, id: u64) -> bool {
        self.incoming.contains(id) || self.outgoing.contains(id)
    }

    /// Whether exactly one peer decides everything.
    pub fn is_singleton(&self) -> bool {
        self.incoming.len() == 1 && self.outgoing.is_empty()
    }

    /// The voters of both halves.
    pub fn ids(&self) -> IdSet {
        self.incoming.iter().chain(self.outgoing.iter()).collect()
    }

    /// See [`IdSet::committed_index`].
    pub fn committed_index(&self, acked: impl Fn(u64) -> Option<u64>) -> u64 {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(6) {
            return self.incoming.committed_index(&acked);
        }
        self.incoming.committed_index(&acked).min(self.outgoing.committed_index(&acked))
    }

    /// See [`IdSet::vote_result`]: won when both halves are won, lost when either is lost.
    pub fn vote_result(&self, vote: impl Fn(u64) -> Option<bool>) -> VoteResult {
        #[cfg(feature = "seeded-bugs")]
        if crate::seeded::is(6) {
            return self.incoming.vote_result(&vote);
        }
        match (self.incoming.vote_result(&vote), self.outgoing.vote_result(&vote)) {
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Pending, _) | (_, VoteResult::Pending) => VoteResult::Pending,
        }
    }
}

/// `(1 2 3)`, or `(1 2 3)&&(1 2 4)` while joint.
impl fmt::Display for JointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.incoming.fmt(f)?;
        if self.is_joint() {
            write!(f, "&&{}", self.outgoing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the largest index that at least a quorum has reached.
    fn committed_naive(ids: &IdSet, acked: &[Option<u64>; 12]) -> u64 {
        if ids.is_empty() {
            return u64::MAX;
        }
        let reached = |index: u64| ids.iter().filter(|&id| acked[id as usize].unwrap_or(0) >= index).count();
        acked.iter().flatten().copied().filter(|&index| reached(index) > ids.len() / 2).max().unwrap_or(0)
    }

    /// The definition: try all completions of the missing votes.
    fn vote_naive(ids: &IdSet, votes: &[Option<bool>; 12]) -> VoteResult {
        if ids.is_empty() {
            return VoteResult::Won;
        }
        let count = |missing: bool| ids.iter().filter(|&id| votes[id as usize].unwrap_or(missing)).count();
        match (count(false) > ids.len() / 2, count(true) > ids.len() / 2) {
            (true, _) => VoteResult::Won,
            (false, true) => VoteResult::Pending,
            (false, false) => VoteResult::Lost,
        }
    }

    fn ids() -> impl Strategy<Value = IdSet> {
        proptest::collection::vec(0u64..12, 0..12).prop_map(|ids| ids.into_iter().collect())
    }

    proptest! {
        /// TestQuick.
        #[test]
        fn committed_index_is_the_largest_with_a_quorum(
            a in ids(), b in ids(), acked in any::<[Option<u8>; 12]>(),
        ) {
            let acked = acked.map(|index| index.map(u64::from));
            let of = |id: u64| acked[id as usize];
            let want = committed_naive(&a, &acked);
            prop_assert_eq!(a.committed_index(of), want);
            let joint = JointConfig { incoming: a.clone(), outgoing: b.clone() };
            prop_assert_eq!(joint.committed_index(of), want.min(committed_naive(&b, &acked)));
            let with_itself = JointConfig { incoming: a.clone(), outgoing: a };
            prop_assert_eq!(with_itself.committed_index(of), want);
        }

        #[test]
        fn vote_result_is_what_all_completions_agree_on(
            a in ids(), b in ids(), votes in any::<[Option<bool>; 12]>(),
        ) {
            let of = |id: u64| votes[id as usize];
            prop_assert_eq!(a.vote_result(of), vote_naive(&a, &votes));
            let joint = JointConfig { incoming: a.clone(), outgoing: b.clone() };
            let mirrored = JointConfig { incoming: b.clone(), outgoing: a.clone() };
            prop_assert_eq!(joint.vote_result(of), mirrored.vote_result(of));
            let (ra, rb) = (vote_naive(&a, &votes), vote_naive(&b, &votes));
            let want = if ra == VoteResult::Lost || rb == VoteResult::Lost {
                VoteResult::Lost
            } else if ra == VoteResult::Won && rb == VoteResult::Won {
                VoteResult::Won
            } else {
                VoteResult::Pending
            };
            prop_assert_eq!(joint.vote_result(of), want);
        }

        #[test]
        fn id_set_is_a_sorted_set(ops in proptest::collection::vec((any::<bool>(), 0u64..20), 0..60)) {
            let (mut set, mut model) = (IdSet::default(), std::collections::BTreeSet::new());
            for (add, id) in ops {
                if add {
                    set.insert(id);
                    model.insert(id);
                } else {
                    set.remove(id);
                    model.remove(&id);
                }
                prop_assert_eq!(set.contains(id), add);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
        }
    }
}
