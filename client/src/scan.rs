//! Scans across regions, page by page.

use bytes::Bytes;
use flotilla_proto::tikv::kvrpcpb::RawScanRequest;

use crate::{
    call::{Call, Kind},
    error::Result,
    limits,
    raw::{Pair, Raw, lower_end},
};

/// A scan on its way through a range. Each page is one consistent read of one region; pages are not consistent with each other.
pub struct Scan {
    raw: Raw,
    /// What is left: [start, end) in request keys; empty: no bound.
    start: Bytes,
    end: Bytes,
    /// Reverse: the end as a route bound. Several bounds mean the same end, and then the regions between them hold nothing.
    below: Vec<u8>,
    reverse: bool,
    key_only: bool,
    done: bool,
}

impl Scan {
    pub(crate) fn new(raw: Raw, start: &[u8], end: &[u8]) -> Scan {
        let (start, end) = (raw.keyspace.request_key(start), raw.keyspace.request_end(end));
        let below = raw.keyspace.route_key(&end);
        Scan { raw, start, end, below, reverse: false, key_only: false, done: false }
    }

    /// From the largest key down.
    pub fn reverse(self) -> Scan {
        Scan { reverse: true, ..self }
    }

    /// Without values.
    pub fn key_only(self) -> Scan {
        Scan { key_only: true, ..self }
    }

    /// The next pairs, at most `limit`, at least one; `None` at the end of the range.
    pub async fn next_page(&mut self, limit: usize) -> Result<Option<Vec<Pair>>> {
        let mut call = self.raw.call("raw scan", Kind::Read);
        self.page(limit, &mut call).await
    }

    /// The next pairs, at most `limit`, all under one deadline.
    pub async fn collect(mut self, limit: usize) -> Result<Vec<Pair>> {
        let mut call = self.raw.call("raw scan", Kind::Read);
        let mut pairs = Vec::new();
        while pairs.len() < limit {
            match self.page(limit - pairs.len(), &mut call).await? {
                Some(page) => pairs.extend(page),
                None => break,
            }
        }
        Ok(pairs)
    }

    async fn page(&mut self, limit: usize, call: &mut Call) -> Result<Option<Vec<Pair>>> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX).min(limits::SCAN_PAGE_PAIRS);
        while limit > 0 && !self.is_done() {
            let pairs = if self.reverse { self.down(limit, call).await? } else { self.up(limit, call).await? };
            if !pairs.is_empty() {
                return Ok(Some(pairs));
            }
        }
        Ok(None)
    }

    fn is_done(&self) -> bool {
        self.done || (!self.end.is_empty() && self.start >= self.end)
    }

    /// Reads from the region of the first key on.
    async fn up(&mut self, limit: u32, call: &mut Call) -> Result<Vec<Pair>> {
        let keyspace = self.raw.keyspace;
        let route = self.raw.inner.locate(&keyspace.route_key(&self.start), call).await?;
        let page_end = lower_end(&keyspace.request_bound(&route.end), &self.end);
        let request = RawScanRequest {
            start_key: self.start.clone(),
            end_key: page_end.clone(),
            limit,
            key_only: self.key_only,
            ..RawScanRequest::default()
        };
        let Some(answer) = self.raw.inner.send(&route, keyspace, &request, call).await? else {
            return Ok(Vec::new());
        };
        match answer.kvs.last() {
            Some(last) if answer.kvs.len() >= limit as usize => self.start = [&last.key[..], &[0]].concat().into(),
            _ if page_end.is_empty() => self.done = true,
            _ => self.start = page_end,
        }
        let mut pairs = Vec::with_capacity(answer.kvs.len());
        self.raw.user_pairs("raw scan", answer.kvs, &mut pairs)?;
        Ok(pairs)
    }

    /// Reads from the region of the last key down.
    async fn down(&mut self, limit: u32, call: &mut Call) -> Result<Vec<Pair>> {
        let keyspace = self.raw.keyspace;
        let route = self.raw.inner.locate_below(&self.below, call).await?;
        let page_start = keyspace.request_bound(&route.start).max(self.start.clone());
        if !self.end.is_empty() && page_start >= self.end {
            self.below = route.start.to_vec();
            self.done = self.below.is_empty();
            return Ok(Vec::new());
        }
        let request = RawScanRequest {
            start_key: self.end.clone(),
            end_key: page_start.clone(),
            limit,
            key_only: self.key_only,
            reverse: true,
            ..RawScanRequest::default()
        };
        let Some(answer) = self.raw.inner.send(&route, keyspace, &request, call).await? else {
            return Ok(Vec::new());
        };
        match answer.kvs.last() {
            Some(last) if answer.kvs.len() >= limit as usize => {
                self.end = last.key.clone();
                self.below = keyspace.route_key(&self.end);
            }
            _ if page_start <= self.start => self.done = true,
            _ => {
                self.end = page_start;
                self.below = route.start.to_vec();
            }
        }
        // The empty key is the smallest: nothing lies below it, while an empty end would mean no bound.
        self.done |= self.end.is_empty();
        let mut pairs = Vec::with_capacity(answer.kvs.len());
        self.raw.user_pairs("raw scan", answer.kvs, &mut pairs)?;
        Ok(pairs)
    }
}
