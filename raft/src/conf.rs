//! Who is in the group: its recorded form, and the changes that can be made to it.

use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

/// The members of a group, as recorded in snapshots. Lists need no order; the core returns them sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// The voters; in a joint configuration, those of the incoming half.
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// The voters of the outgoing half. Invariant: empty unless the configuration is joint.
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<u64>,
    /// Whether the leader proposes to leave the joint configuration by itself.
    pub auto_leave: bool,
}

impl ConfState {
    /// Whether both name the same members, in whatever order.
    pub fn equivalent(&self, other: &ConfState) -> bool {
        fn sorted(ids: &[u64]) -> Vec<u64> {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        }
        sorted(&self.voters) == sorted(&other.voters)
            && sorted(&self.learners) == sorted(&other.learners)
            && sorted(&self.voters_outgoing) == sorted(&other.voters_outgoing)
            && sorted(&self.learners_next) == sorted(&other.learners_next)
            && self.auto_leave == other.auto_leave
    }
}

/// What happens to one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConfChangeType {
    /// Becomes a voter.
    #[default]
    AddNode,
    /// Leaves the group.
    RemoveNode,
    /// Nothing: a way to carry a context through the log.
    UpdateNode,
    /// Becomes a learner: receives the log, does not vote.
    AddLearnerNode,
}

/// One member, one change. A `node_id` of 0 makes it a change of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeSingle {
    pub kind: ConfChangeType,
    pub node_id: u64,
}

/// A change of one member: the first form of configuration changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChange {
    pub kind: ConfChangeType,
    pub node_id: u64,
    /// For the application; the core never looks at it.
    pub context: Bytes,
}

impl ConfChange {
    /// The same change in the general form.
    pub fn to_v2(&self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: vec![ConfChangeSingle { kind: self.kind, node_id: self.node_id }],
            context: self.context.clone(),
        }
    }
}

/// How a [`ConfChangeV2`] gets from the old configuration to the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConfChangeTransition {
    /// In one step where there is at most one change, else like [`ConfChangeTransition::JointImplicit`].
    #[default]
    Auto,
    /// Through a joint configuration, left automatically once it is applied.
    JointImplicit,
    /// Through a joint configuration that stays until a default [`ConfChangeV2`] is proposed.
    JointExplicit,
}

/// A change of any number of members. The default value leaves a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeV2 {
    pub transition: ConfChangeTransition,
    pub changes: Vec<ConfChangeSingle>,
    /// For the application; the core never looks at it.
    pub context: Bytes,
}

impl ConfChangeV2 {
    /// Whether this enters a joint configuration, and if so, whether that is left automatically.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition {
            ConfChangeTransition::Auto if self.changes.len() > 1 => Some(true),
            ConfChangeTransition::Auto => None,
            ConfChangeTransition::JointImplicit => Some(true),
            ConfChangeTransition::JointExplicit => Some(false),
        }
    }

    /// Whether this leaves a joint configuration.
    pub fn leave_joint(&self) -> bool {
        self.transition == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}
