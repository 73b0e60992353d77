//! Reading: consistent views and scans that own what they read from.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::disk::Cf;
use rocksdb::{DB, DBRawIterator, ReadOptions};

use crate::EngineError;
use crate::engine::Inner;

/// In which order a scan goes through its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the start up.
    Forward,
    /// From the end down.
    Reverse,
}

/// A consistent view over all column families, as of its making. Cheap to clone; may outlive the [`Engine`](crate::Engine).
///
/// It holds back the removal of overwritten and deleted data for as long as it lives, so keep it no longer than needed. One operation does
/// not respect it: [`clear_range`](crate::Engine::clear_range) takes whole files away under it.
#[derive(Clone)]
pub struct Snapshot {
    view: Arc<View>,
}

// Invariant: the order of the fields. `rocks` refers to the database that `inner` keeps alive and is dropped before it.
struct View {
    rocks: rocksdb::Snapshot<'static>,
    inner: Arc<Inner>,
}

/// The database with a lifetime that the borrow checker does not know.
///
/// # Safety
///
/// What is made from the result must be dropped before `inner`, and must not be handed out. An `Arc` keeps what it holds in place, so
/// that moving the `Arc` is harmless.
unsafe fn detached(inner: &Arc<Inner>) -> &'static DB {
    // SAFETY: the database lives in the heap as long as the `Arc`; see above for the rest.
    unsafe { &*std::ptr::from_ref(inner.db()) }
}

impl Snapshot {
    pub(crate) fn new(inner: Arc<Inner>) -> Snapshot {
        // SAFETY: `rocks` lies beside `inner` in `View` and is dropped first.
        let rocks = unsafe { detached(&inner) }.snapshot();
        Snapshot { view: Arc::new(View { rocks, inner }) }
    }

    /// The value of a key.
    pub fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.view.rocks.get_pinned_cf_opt(self.view.inner.handle(cf), key, ReadOptions::default());
        value
            .map(|value| value.map(|value| Bytes::copy_from_slice(&value)))
            .map_err(|error| read_error("read a key of", cf, &error))
    }

    /// The pairs of [start, end), positioned on the first one in the given direction. An empty `end` is no bound.
    pub fn scan(&self, cf: Cf, start: &[u8], end: &[u8], direction: Direction) -> Scan {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.view.rocks);
        Scan::new(self.view.inner.clone(), Some(self.clone()), options, cf, (start, end), direction)
    }
}

/// Goes through the pairs of a range, as an iterator that allocates for each pair or as a cursor that does not:
///
/// ```no_run
/// # fn example(mut scan: flotilla_engine::Scan) -> Result<(), flotilla_engine::EngineError> {
/// while let (Some(key), Some(value)) = (scan.key(), scan.value()) {
///     println!("{key:?} {value:?}");
///     scan.advance();
/// }
/// scan.status() // why it ended
/// # }
/// ```
pub struct Scan {
    // Invariant: the order of the fields, as in `View`.
    rocks: DBRawIterator<'static>,
    _snapshot: Option<Snapshot>,
    _inner: Arc<Inner>,
    cf: Cf,
    direction: Direction,
    error_said: bool,
}

impl Scan {
    pub(crate) fn new(
        inner: Arc<Inner>,
        snapshot: Option<Snapshot>,
        mut options: ReadOptions,
        cf: Cf,
        (start, end): (&[u8], &[u8]),
        direction: Direction,
    ) -> Scan {
        options.set_iterate_lower_bound(start);
        if !end.is_empty() {
            // RocksDB does not define what bounds that cross mean.
            options.set_iterate_upper_bound(end.max(start));
        }
        // SAFETY: `rocks` lies beside `_inner` in `Scan` and is dropped first; `key` and `value` borrow from the scan.
        let mut rocks = unsafe { detached(&inner) }.raw_iterator_cf_opt(inner.handle(cf), options);
        match direction {
            Direction::Forward => rocks.seek_to_first(),
            Direction::Reverse => rocks.seek_to_last(),
        }
        Scan { rocks, _snapshot: snapshot, _inner: inner, cf, direction, error_said: false }
    }

    /// The key that the cursor stands on; `None` at the end or after an error.
    pub fn key(&self) -> Option<&[u8]> {
        self.rocks.key()
    }

    /// The value that the cursor stands on; `None` at the end or after an error.
    pub fn value(&self) -> Option<&[u8]> {
        self.rocks.value()
    }

    /// Goes one pair on; stays at the end.
    pub fn advance(&mut self) {
        match self.direction {
            Direction::Forward => self.rocks.next(),
            Direction::Reverse => self.rocks.prev(),
        }
    }

    /// Goes to the first pair at `key` or beyond it in the scan's direction, never leaving its range.
    pub fn seek(&mut self, key: &[u8]) {
        match self.direction {
            Direction::Forward => self.rocks.seek(key),
            Direction::Reverse => self.rocks.seek_for_prev(key),
        }
    }

    /// Why the cursor stands on nothing: `Ok` at the end of the range, or the error that ended the scan.
    pub fn status(&self) -> Result<(), EngineError> {
        self.rocks.status().map_err(|error| read_error("scan", self.cf, &error))
    }
}

impl Iterator for Scan {
    type Item = Result<(Bytes, Bytes), EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some((key, value)) = self.rocks.item() else {
            let error = self.status().err()?;
            // Said once: an iterator that repeats its error never ends.
            let said = std::mem::replace(&mut self.error_said, true);
            return (!said).then_some(Err(error));
        };
        let pair = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.advance();
        Some(Ok(pair))
    }
}

pub(crate) fn read_error(attempted: &str, cf: Cf, error: &rocksdb::Error) -> EngineError {
    EngineError::rocks(format!("{attempted} column family {}", cf.name()), error)
}
