//! Read requests that wait for a quorum to confirm the leader.
//!
//! Requests are numbered by position. Every heartbeat carries the number of requests that were there when it was
//! sent, as its context; its answer confirms all of them. No identifier of a caller is ever used, so a request that is
//! repeated cannot be confirmed by an answer to its first attempt. Source: etcd/raft `read_only.go`.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::Bytes;

use crate::config::ReadOnlyOption;
use crate::quorum::JointConfig;

/// A confirmed read: once everything up to `index` is applied, the request with `context` may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadState {
    pub index: u64,
    /// What the caller gave to [`read_index`](crate::RawNode::read_index).
    pub context: Bytes,
}

/// Who asked for a read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReadRequest {
    /// The asking peer; [`NONE`](crate::NONE) or this peer's id for a local request.
    pub from: u64,
    pub context: Bytes,
}

/// The requests that wait.
#[derive(Debug)]
pub(crate) struct ReadOnly {
    pub option: ReadOnlyOption,
    /// `None` where nothing was asked in this term, as in most groups.
    asked: Option<Box<Asked>>,
}

#[derive(Debug, Default)]
struct Asked {
    /// The requests in order, with the commit index at their arrival.
    waiting: VecDeque<(ReadRequest, u64)>,
    /// The number of requests before `waiting`.
    confirmed: u64,
    /// By peer, the number of requests it has confirmed. Invariant: at most `confirmed + waiting.len()`.
    acks: Vec<(u64, u64)>,
    /// Requests that came before the leader had committed an entry of its own term.
    postponed: Vec<ReadRequest>,
}

impl Asked {
    fn position(&self) -> u64 {
        self.confirmed + self.waiting.len() as u64
    }
}

impl ReadOnly {
    pub fn new(option: ReadOnlyOption) -> ReadOnly {
        ReadOnly { option, asked: None }
    }

    /// Forgets all requests: this peer no longer leads in the term in which they came.
    pub fn reset(&mut self) {
        *self = ReadOnly::new(self.option);
    }

    pub fn add(&mut self, commit: u64, request: ReadRequest) {
        self.asked.get_or_insert_default().waiting.push_back((request, commit));
    }

    /// Keeps a request until the leader has committed an entry of its term.
    pub fn postpone(&mut self, request: ReadRequest) {
        self.asked.get_or_insert_default().postponed.push(request);
    }

    pub fn has_postponed(&self) -> bool {
        self.asked.as_ref().is_some_and(|asked| !asked.postponed.is_empty())
    }

    /// Takes out the requests that were postponed.
    pub fn take_postponed(&mut self) -> Vec<ReadRequest> {
        self.asked.as_mut().map_or(Vec::new(), |asked| core::mem::take(&mut asked.postponed))
    }

    /// The number of requests that wait for a quorum.
    fn waiting(&self) -> usize {
        self.asked.as_ref().map_or(0, |asked| asked.waiting.len())
    }

    /// The number of requests that wait for anything.
    pub fn len(&self) -> usize {
        self.asked.as_ref().map_or(0, |asked| asked.waiting.len() + asked.postponed.len())
    }

    /// The number of requests so far.
    pub fn position(&self) -> u64 {
        self.asked.as_ref().map_or(0, |asked| asked.position())
    }

    /// Counts further requests from here on.
    pub fn count_from(&mut self, position: u64) {
        assert_eq!(self.len(), 0, "requests that wait have their numbers");
        self.asked = (position > 0).then(|| Box::new(Asked { confirmed: position, ..Asked::default() }));
    }

    /// The context of a heartbeat that confirms all waiting requests; empty if there are none.
    pub fn heartbeat_context(&self) -> Bytes {
        if self.waiting() == 0 {
            return Bytes::new();
        }
        Bytes::copy_from_slice(&self.position().to_le_bytes())
    }

    /// Takes the context of a heartbeat's answer, if this leader can have sent that.
    pub fn decode(&self, context: &[u8]) -> Option<u64> {
        let position = u64::from_le_bytes(context.try_into().ok()?);
        (position <= self.position()).then_some(position)
    }

    /// Peer `from` has confirmed the first `position` requests.
    pub fn receive_ack(&mut self, from: u64, position: u64) {
        let Some(asked) = &mut self.asked else {
            return;
        };
        match asked.acks.binary_search_by_key(&from, |ack| ack.0) {
            Ok(at) => asked.acks[at].1 = asked.acks[at].1.max(position),
            Err(at) => asked.acks.insert(at, (from, position)),
        }
    }

    /// Takes out the requests that a quorum of `voters` has confirmed by now.
    pub fn advance(&mut self, voters: &JointConfig) -> Vec<(ReadRequest, u64)> {
        let Some(asked) = &mut self.asked else {
            return Vec::new();
        };
        let acked = |id| asked.acks.binary_search_by_key(&id, |ack| ack.0).ok().map(|at| asked.acks[at].1);
        let confirmed = voters.committed_index(acked).min(asked.position());
        if confirmed <= asked.confirmed {
            return Vec::new();
        }
        let count = (confirmed - asked.confirmed) as usize;
        asked.confirmed = confirmed;
        asked.waiting.drain(..count).collect()
    }
}
