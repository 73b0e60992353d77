//! The order of things: changes on their way to the system group, and the answers that wait for them.
//!
//! Every change of durable state gets a [`Seq`]. Changes leave in that order, whole, in batches of which one is out at a time:
//! while it is being replicated the next ones gather, so many requests share one entry, and no batch can become durable without
//! all before it.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use bytes::Bytes;
use flotilla_proto::placement::PlacementResponse;

use crate::{Output, RequestId, limits};

/// A key of the system space and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Vec<u8>,
    /// `None`: delete.
    pub value: Option<Bytes>,
}

impl Write {
    pub(crate) fn put(key: Vec<u8>, value: impl Into<Bytes>) -> Write {
        Write { key, value: Some(value.into()) }
    }

    pub(crate) fn delete(key: Vec<u8>) -> Write {
        Write { key, value: None }
    }

    fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Names a batch of writes within one `Placement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// The position of a change in the order in which changes become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(u64);

impl Seq {
    /// Before all changes: what was loaded.
    pub const LOADED: Seq = Seq(0);
}

struct Change {
    seq: Seq,
    writes: Vec<Write>,
}

struct InFlight {
    batch: BatchId,
    /// The last change in it.
    through: Seq,
}

pub(crate) struct Journal {
    /// The newest change.
    last: Seq,
    /// Invariant: all changes up to this one are in the system group; the ones after it are in `in_flight`, then `queued`,
    /// in order and without a gap.
    durable: Seq,
    in_flight: Option<InFlight>,
    queued: VecDeque<Change>,
    batches: u64,
    /// Answers by the change they wait for, then by age. Invariant: all keys are after `durable`.
    withheld: BTreeMap<(Seq, u64), (RequestId, PlacementResponse)>,
    answers: u64,
    ready: VecDeque<(RequestId, PlacementResponse)>,
}

impl Journal {
    pub fn new() -> Journal {
        Journal {
            last: Seq::LOADED,
            durable: Seq::LOADED,
            in_flight: None,
            queued: VecDeque::new(),
            batches: 0,
            withheld: BTreeMap::new(),
            answers: 0,
            ready: VecDeque::new(),
        }
    }

    /// Takes a change that becomes durable as a whole.
    pub fn write(&mut self, writes: Vec<Write>) -> Seq {
        assert!(!writes.is_empty(), "a change writes something");
        self.last = Seq(self.last.0 + 1);
        self.queued.push_back(Change { seq: self.last, writes });
        self.last
    }

    pub fn is_durable(&self, seq: Seq) -> bool {
        seq <= self.durable
    }

    /// Whether so many answers wait that no request should be taken.
    pub fn is_full(&self) -> bool {
        self.withheld.len() >= limits::WITHHELD_MAX
    }

    /// Gives an answer out once everything up to `after` is durable. Answers with the same `after` keep their order.
    pub fn answer(&mut self, id: RequestId, response: PlacementResponse, after: Seq) {
        assert!(after <= self.last, "an answer waits for a change that exists");
        if self.is_durable(after) {
            self.ready.push_back((id, response));
        } else {
            self.answers += 1;
            self.withheld.insert((after, self.answers), (id, response));
        }
    }

    pub fn written(&mut self, batch: BatchId) {
        let in_flight = self.in_flight.take().expect("a batch is written while it is out");
        assert!(in_flight.batch == batch, "the batch that is written is the one that is out");
        assert!(in_flight.through > self.durable, "a batch moves the durable end ahead");
        self.durable = in_flight.through;
        let waiting = self.withheld.split_off(&(Seq(self.durable.0 + 1), 0));
        let released = core::mem::replace(&mut self.withheld, waiting);
        self.ready.extend(released.into_values());
    }

    pub fn poll(&mut self) -> Option<Output> {
        if self.in_flight.is_none()
            && let Some(output) = self.next_batch()
        {
            return Some(output);
        }
        self.ready.pop_front().map(|(id, response)| Output::Answer { id, response })
    }

    fn next_batch(&mut self) -> Option<Output> {
        let first = self.queued.pop_front()?;
        let mut through = first.seq;
        let mut writes = first.writes;
        let mut bytes: usize = writes.iter().map(Write::size).sum();
        while let Some(next) = self.queued.front() {
            bytes += next.writes.iter().map(Write::size).sum::<usize>();
            if bytes > limits::BATCH_BYTES_MAX {
                break;
            }
            let next = self.queued.pop_front().expect("the front was just seen");
            assert!(next.seq.0 == through.0 + 1, "changes leave in order and without a gap");
            through = next.seq;
            writes.extend(next.writes);
        }
        self.batches += 1;
        let batch = BatchId(self.batches);
        self.in_flight = Some(InFlight { batch, through });
        Some(Output::Replicate { batch, writes })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn write(n: u8, bytes: usize) -> Vec<Write> {
        vec![Write::put(vec![n], vec![0; bytes])]
    }

    fn answer(journal: &mut Journal, id: u64, after: Seq) {
        journal.answer(RequestId(id), PlacementResponse::default(), after);
    }

    fn answers(journal: &mut Journal) -> Vec<u64> {
        core::iter::from_fn(|| journal.poll())
            .map(|output| match output {
                Output::Answer { id, .. } => id.0,
                Output::Replicate { .. } => panic!("no batch expected"),
            })
            .collect()
    }

    fn batch(journal: &mut Journal) -> (BatchId, usize) {
        match journal.poll() {
            Some(Output::Replicate { batch, writes }) => (batch, writes.len()),
            other => panic!("a batch expected, not {other:?}"),
        }
    }

    #[test]
    fn an_answer_waits_for_its_change_and_no_other() {
        let mut journal = Journal::new();
        let first = journal.write(write(1, 1));
        answer(&mut journal, 1, first);
        let (one, _) = batch(&mut journal);
        let second = journal.write(write(2, 1));
        answer(&mut journal, 2, second);
        answer(&mut journal, 3, first);
        answer(&mut journal, 4, Seq::LOADED);
        assert_eq!(answers(&mut journal), [4]);
        journal.written(one);
        let (two, _) = batch(&mut journal);
        assert_eq!(answers(&mut journal), [1, 3]);
        journal.written(two);
        assert_eq!(answers(&mut journal), [2]);
    }

    #[test]
    fn changes_gather_while_a_batch_is_out() {
        let mut journal = Journal::new();
        journal.write(write(1, 1));
        let (one, writes) = batch(&mut journal);
        assert_eq!(writes, 1);
        for n in 0..10 {
            journal.write(write(n, 1));
        }
        assert_eq!(journal.poll(), None);
        journal.written(one);
        assert_eq!(batch(&mut journal).1, 10);
    }

    #[test]
    fn batches_are_bounded_and_a_large_change_goes_alone() {
        let mut journal = Journal::new();
        journal.write(write(1, limits::BATCH_BYTES_MAX * 2));
        journal.write(write(2, limits::BATCH_BYTES_MAX / 2));
        journal.write(write(3, limits::BATCH_BYTES_MAX / 4));
        let (one, writes) = batch(&mut journal);
        assert_eq!(writes, 1);
        journal.written(one);
        assert_eq!(batch(&mut journal).1, 2);
    }

    #[test]
    #[should_panic(expected = "while it is out")]
    fn a_batch_cannot_be_written_twice() {
        let mut journal = Journal::new();
        journal.write(write(1, 1));
        let (one, _) = batch(&mut journal);
        journal.written(one);
        journal.written(one);
    }
}
