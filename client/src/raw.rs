//! Raw keys: one value per key, no versions, each request atomic within one region.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_proto::tikv::kvrpcpb::{
    KvPair, RawBatchDeleteRequest, RawBatchGetRequest, RawBatchPutRequest, RawCasRequest, RawDeleteRangeRequest,
    RawDeleteRequest, RawGetKeyTtlRequest, RawGetRequest, RawPutRequest,
};
use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    Inner,
    call::{Call, Kind},
    error::{Error, Result},
    keyspace::Keyspace,
    limits,
    region::Route,
    scan::Scan,
    send::RegionRequest,
};

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key as its user knows it.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// What a compare-and-swap found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareAndSwap {
    /// Whether the new value was stored.
    pub swapped: bool,
    /// The value before; `None`: the key did not exist.
    pub previous: Option<Bytes>,
}

/// The raw keys of one key space. Clones are cheap.
#[derive(Clone)]
pub struct Raw {
    pub(crate) inner: Arc<Inner>,
    pub(crate) keyspace: Keyspace,
}

impl Raw {
    pub(crate) fn new(inner: Arc<Inner>, keyspace: Keyspace) -> Raw {
        Raw { inner, keyspace }
    }

    /// Which keys these are.
    pub fn keyspace(&self) -> Keyspace {
        self.keyspace
    }

    /// The value of a key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let key = self.keyspace.request_key(key.as_ref());
        let mut call = self.call("raw get", Kind::Read);
        let request = RawGetRequest { key: key.clone(), ..RawGetRequest::default() };
        let answer = self.send_to_key(&key, &request, &mut call).await?;
        Ok((!answer.not_found).then_some(answer.value))
    }

    /// How long a key will live yet; `Some(None)`: for ever; `None`: it does not exist.
    pub async fn ttl(&self, key: impl AsRef<[u8]>) -> Result<Option<Option<Duration>>> {
        let key = self.keyspace.request_key(key.as_ref());
        let mut call = self.call("raw get ttl", Kind::Read);
        let request = RawGetKeyTtlRequest { key: key.clone(), ..RawGetKeyTtlRequest::default() };
        let answer = self.send_to_key(&key, &request, &mut call).await?;
        Ok((!answer.not_found).then(|| (answer.ttl > 0).then(|| Duration::from_secs(answer.ttl))))
    }

    /// Stores a value. It is gone after `ttl` (whole seconds, at least one), if given.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>, ttl: Option<Duration>) -> Result<()> {
        let key = self.keyspace.request_key(key.as_ref());
        let mut call = self.call("raw put", Kind::Write);
        let ttl = ttl_secs("raw put", ttl)?;
        let request = RawPutRequest { key: key.clone(), value: value.into(), ttl, ..RawPutRequest::default() };
        self.send_to_key(&key, &request, &mut call).await?;
        Ok(())
    }

    /// Removes a key, present or not.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        let key = self.keyspace.request_key(key.as_ref());
        let mut call = self.call("raw delete", Kind::Write);
        let request = RawDeleteRequest { key: key.clone(), ..RawDeleteRequest::default() };
        self.send_to_key(&key, &request, &mut call).await?;
        Ok(())
    }

    /// Stores `value` if the key's value is `previous` (`None`: if the key does not exist). Never sent again once its outcome is
    /// unknown.
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        previous: Option<Bytes>,
        value: impl Into<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<CompareAndSwap> {
        let key = self.keyspace.request_key(key.as_ref());
        let mut call = self.call("raw compare-and-swap", Kind::Conditional);
        let request = RawCasRequest {
            key: key.clone(),
            value: value.into(),
            previous_not_exist: previous.is_none(),
            previous_value: previous.unwrap_or_default(),
            ttl: ttl_secs("raw compare-and-swap", ttl)?,
            ..RawCasRequest::default()
        };
        let answer = self.send_to_key(&key, &request, &mut call).await?;
        let previous = (!answer.previous_not_exist).then_some(answer.previous_value);
        Ok(CompareAndSwap { swapped: answer.succeed, previous })
    }

    /// The pairs of those keys that exist, in no order.
    pub async fn batch_get<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Pair>> {
        let call = self.call("raw batch get", Kind::Read);
        let keys = self.request_keys(keys);
        let answers = self
            .batch(
                call,
                keys,
                Bytes::len,
                |key| key,
                |keys| RawBatchGetRequest { keys, ..RawBatchGetRequest::default() },
            )
            .await?;
        let mut pairs = Vec::new();
        for answer in answers {
            self.user_pairs("raw batch get", answer.pairs, &mut pairs)?;
        }
        Ok(pairs)
    }

    /// Stores values; those in one region by the same request together or not at all, others each for themselves. They are gone after
    /// `ttl`, if given.
    pub async fn batch_put(&self, pairs: impl IntoIterator<Item = Pair>, ttl: Option<Duration>) -> Result<()> {
        let call = self.call("raw batch put", Kind::Write);
        let ttl = ttl_secs("raw batch put", ttl)?;
        let pairs: Vec<KvPair> = pairs
            .into_iter()
            .map(|pair| KvPair { key: self.keyspace.request_key(&pair.key), value: pair.value, ..KvPair::default() })
            .collect();
        self.batch(
            call,
            pairs,
            |pair| pair.key.len() + pair.value.len(),
            |pair| &pair.key,
            |pairs| RawBatchPutRequest { pairs, ttls: vec![ttl], ..RawBatchPutRequest::default() },
        )
        .await?;
        Ok(())
    }

    /// Removes keys, present or not.
    pub async fn batch_delete<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<()> {
        let call = self.call("raw batch delete", Kind::Write);
        let keys = self.request_keys(keys);
        self.batch(
            call,
            keys,
            Bytes::len,
            |key| key,
            |keys| RawBatchDeleteRequest { keys, ..RawBatchDeleteRequest::default() },
        )
        .await?;
        Ok(())
    }

    /// Removes all keys in [start, end), region by region; an empty `end` is no bound.
    pub async fn delete_range(&self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Result<()> {
        let mut start = self.keyspace.request_key(start.as_ref());
        let end = self.keyspace.request_end(end.as_ref());
        let mut call = self.call("raw delete range", Kind::Write);
        let mut done_any = false;
        while end.is_empty() || start < end {
            match self.delete_in_region(&start, &end, &mut call).await {
                Ok(Some(next)) if next.is_empty() => break,
                Ok(Some(next)) => {
                    start = next;
                    done_any = true;
                }
                Ok(None) => {}
                Err(error) if done_any => return Err(error.after_partial_effect()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The pairs in [start, end) in key order, at most `limit`; an empty `end` is no bound.
    pub async fn scan(&self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>, limit: usize) -> Result<Vec<Pair>> {
        self.scan_pages(start, end).collect(limit).await
    }

    /// The pairs in [start, end) from the largest key down, at most `limit`; an empty `end` is no bound.
    pub async fn scan_reverse(
        &self,
        start: impl AsRef<[u8]>,
        end: impl AsRef<[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>> {
        self.scan_pages(start, end).reverse().collect(limit).await
    }

    /// A scan of [start, end) that is taken page by page, each under its own deadline; an empty `end` is no bound.
    pub fn scan_pages(&self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Scan {
        Scan::new(self.clone(), start.as_ref(), end.as_ref())
    }

    pub(crate) fn call(&self, operation: &'static str, kind: Kind) -> Call {
        Call::new(operation, kind, &self.inner.options)
    }

    /// Appends what an answer holds, with the keys as the user knows them.
    pub(crate) fn user_pairs(&self, operation: &'static str, pairs: Vec<KvPair>, out: &mut Vec<Pair>) -> Result<()> {
        for pair in pairs {
            if let Some(error) = pair.error {
                return Err(Error::failed(operation, error.abort));
            }
            let key = self.keyspace.user_key(&pair.key);
            let key = key.ok_or_else(|| Error::failed(operation, "a store answered a key of another keyspace"))?;
            out.push(Pair { key, value: pair.value });
        }
        Ok(())
    }

    fn request_keys<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Vec<Bytes> {
        keys.into_iter().map(|key| self.keyspace.request_key(key.as_ref())).collect()
    }

    async fn send_to_key<R: RegionRequest>(&self, key: &[u8], request: &R, call: &mut Call) -> Result<R::Answer> {
        let route_key = self.keyspace.route_key(key);
        loop {
            let route = self.inner.locate(&route_key, call).await?;
            if let Some(answer) = self.inner.send(&route, self.keyspace, request, call).await? {
                return Ok(answer);
            }
        }
    }

    /// Deletes what lies in the region of `start`. Gives where to go on (empty: nowhere), or `None` if the region moved.
    async fn delete_in_region(&self, start: &Bytes, end: &Bytes, call: &mut Call) -> Result<Option<Bytes>> {
        let route = self.inner.locate(&self.keyspace.route_key(start), call).await?;
        let end_key = lower_end(&self.keyspace.request_bound(&route.end), end);
        let request = RawDeleteRangeRequest {
            start_key: start.clone(),
            end_key: end_key.clone(),
            ..RawDeleteRangeRequest::default()
        };
        let answer = self.inner.send(&route, self.keyspace, &request, call).await?;
        Ok(answer.map(|_| end_key))
    }

    /// Sends items to their regions in requests of bounded size, a bounded number at a time, until each has been answered.
    async fn batch<T, R>(
        &self,
        mut call: Call,
        mut items: Vec<T>,
        bytes_of: impl Fn(&T) -> usize,
        key_of: impl Fn(&T) -> &Bytes,
        request_of: impl Fn(Vec<T>) -> R,
    ) -> Result<Vec<R::Answer>>
    where
        T: Clone,
        R: RegionRequest,
    {
        let mut answers = Vec::new();
        // What a part did, this call can not undo: its failure alone does not tell that nothing happened.
        let whole = |error: Error, answers: &Vec<R::Answer>| match answers.is_empty() {
            true => error,
            false => error.after_partial_effect(),
        };
        let parts_of_reads_may_fail = call.kind() == Kind::Read;
        let whole = |error, answers: &Vec<_>| if parts_of_reads_may_fail { error } else { whole(error, answers) };
        while !items.is_empty() {
            let grouped = self.group(std::mem::take(&mut items), &bytes_of, &key_of, &mut call).await;
            let groups = grouped.map_err(|error| whole(error, &answers))?;
            let mut waiting = groups.into_iter();
            let mut running = FuturesUnordered::new();
            let mut first_error: Option<Error> = None;
            loop {
                while running.len() < self.inner.options.batch_concurrency.max(1) && first_error.is_none() {
                    let Some((route, part)) = waiting.next() else { break };
                    let request = request_of(part.clone());
                    let mut call = call.part();
                    running
                        .push(async move { (self.inner.send(&route, self.keyspace, &request, &mut call).await, part) });
                }
                match running.next().await {
                    None => break,
                    Some((Ok(Some(answer)), _)) => answers.push(answer),
                    Some((Ok(None), part)) => items.extend(part),
                    Some((Err(error), _)) => first_error = Some(worse(first_error, error)),
                }
            }
            if let Some(error) = first_error {
                return Err(whole(error, &answers));
            }
        }
        Ok(answers)
    }

    /// Cuts items into parts that lie in one region each and respect the limits of a request.
    async fn group<T>(
        &self,
        mut items: Vec<T>,
        bytes_of: impl Fn(&T) -> usize,
        key_of: impl Fn(&T) -> &Bytes,
        call: &mut Call,
    ) -> Result<Vec<(Arc<Route>, Vec<T>)>> {
        // Stable: of two values for one key the later one stays the later one.
        items.sort_by(|a, b| key_of(a).cmp(key_of(b)));
        let mut groups: Vec<(Arc<Route>, Vec<T>)> = Vec::new();
        let mut bytes = 0;
        for item in items {
            let route_key = self.keyspace.route_key(key_of(&item));
            let size = bytes_of(&item);
            if let Some((route, part)) = groups.last_mut()
                && route.contains(&route_key)
                && part.len() < limits::BATCH_KEYS_MAX
                && bytes + size <= limits::BATCH_BYTES_MAX
            {
                bytes += size;
                part.push(item);
                continue;
            }
            let route = self.inner.locate(&route_key, call).await?;
            bytes = size;
            groups.push((route, vec![item]));
        }
        Ok(groups)
    }
}

/// Of two exclusive upper bounds, where empty means none, the lower one.
pub(crate) fn lower_end(a: &Bytes, b: &Bytes) -> Bytes {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (false, true) => a.clone(),
        (false, false) => a.min(b).clone(),
    }
}

/// Of the errors of two parts of a batch, the one that says less about the outcome.
fn worse(first: Option<Error>, second: Error) -> Error {
    match first {
        Some(first) if first.is_unknown() || !second.is_unknown() => first,
        _ => second,
    }
}

fn ttl_secs(operation: &'static str, ttl: Option<Duration>) -> Result<u64> {
    match ttl {
        None => Ok(0),
        Some(ttl) if ttl.as_secs() == 0 => Err(Error::invalid(operation, "the time to live is less than a second")),
        Some(ttl) => Ok(ttl.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_of_two_ends() {
        let (a, b, none) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::new());
        assert_eq!(lower_end(&a, &b), a);
        assert_eq!(lower_end(&none, &b), b);
        assert_eq!(lower_end(&a, &none), a);
        assert_eq!(lower_end(&none, &none), none);
    }

    #[test]
    fn a_batch_with_an_unknown_part_is_unknown() {
        let failed = || Error::failed("test", "no leader");
        let unknown = || failed().after_partial_effect();
        assert!(worse(Some(failed()), unknown()).is_unknown());
        assert!(worse(Some(unknown()), failed()).is_unknown());
        assert!(!worse(None, failed()).is_unknown());
    }

    #[test]
    fn a_time_to_live_below_a_second_is_refused() {
        assert!(matches!(ttl_secs("put", Some(Duration::from_millis(999))), Err(Error::Invalid(_))));
        assert_eq!(ttl_secs("put", Some(Duration::from_millis(2500))).unwrap(), 2);
        assert_eq!(ttl_secs("put", None).unwrap(), 0);
    }
}
