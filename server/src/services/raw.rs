//! The raw calls of the store service `tikvpb.Tikv`. Calls that are not listed in `tikvpb.proto` answer UNIMPLEMENTED.
//!
//! A call maps its keys ([`keys`](super::keys)), checks its limits ([`limits`]), reads under one grant or proposes one
//! write, and maps the refusal, if any ([`errors`](super::errors)). The flag `for_cas` of writes is not needed: all writes of a
//! region, compare-and-swaps included, go through its log one after the other.

use bytes::Bytes;
use flotilla_engine::{Direction, Snapshot};
use flotilla_proto::{
    disk::{Cf, data_end_key, data_key},
    raw_value::{self, RawValue},
    store::{CompareAndSwap, DeleteRange, KeyNotInRegion, Mutation, RegionError, Space, Write},
    tikv::{
        kvrpcpb::{
            Context, KeyRange, KvPair, RawBatchDeleteRequest, RawBatchDeleteResponse, RawBatchGetRequest,
            RawBatchGetResponse, RawBatchPutRequest, RawBatchPutResponse, RawBatchScanRequest, RawBatchScanResponse,
            RawCasRequest, RawCasResponse, RawDeleteRangeRequest, RawDeleteRangeResponse, RawDeleteRequest,
            RawDeleteResponse, RawGetKeyTtlRequest, RawGetKeyTtlResponse, RawGetRequest, RawGetResponse, RawPutRequest,
            RawPutResponse, RawScanRequest, RawScanResponse, ScanLockRequest, ScanLockResponse,
            UnsafeDestroyRangeRequest, UnsafeDestroyRangeResponse,
        },
        tikvpb::tikv_server::Tikv,
    },
};
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use super::{
    cleanup,
    errors::{Asked, Failure, target},
    keys::{KeyFormat, StoredRange},
    limits::{self, AnswerBytes},
    scan::{Wanted, clamp, gather, serves_reverse},
};
use crate::{
    metrics::{RequestTimer, metrics},
    node::{Keys, Node, ReadView, Target, WriteOutcome},
};

/// Serves raw calls from a store.
#[derive(Clone)]
pub struct RawService {
    node: Node,
}

impl RawService {
    /// Serves from `node`.
    pub fn new(node: Node) -> RawService {
        RawService { node }
    }
}

/// A call's result as an answer with an error text.
macro_rules! answer {
    ($timer:expr, $result:expr, $response:ident, $value:pat => $fill:expr) => {{
        match $result {
            Ok($value) => $fill,
            Err(failure) => {
                $timer.failed(failure.kind());
                failure.fill(&mut $response.region_error, &mut $response.error);
            }
        }
        Ok(Response::new($response))
    }};
}

/// A call's result as an answer of pairs.
fn pairs_or_status(
    timer: &RequestTimer,
    result: Result<Vec<KvPair>, Failure>,
    region_error: &mut Option<flotilla_proto::tikv::errorpb::Error>,
) -> Result<Vec<KvPair>, Status> {
    result.or_else(|failure| {
        timer.failed(failure.kind());
        failure.fill_or_status(region_error).map(|()| vec![])
    })
}

#[tonic::async_trait]
impl Tikv for RawService {
    async fn raw_get(&self, request: Request<RawGetRequest>) -> Result<Response<RawGetResponse>, Status> {
        let timer = metrics().request("raw_get");
        let RawGetRequest { context, key, cf } = request.into_inner();
        let mut response = RawGetResponse::default();
        answer!(timer, self.get(context, &key, &cf).await, response, found => match found {
            Some(raw) => response.value = raw.value,
            None => response.not_found = true,
        })
    }

    async fn raw_get_key_ttl(
        &self,
        request: Request<RawGetKeyTtlRequest>,
    ) -> Result<Response<RawGetKeyTtlResponse>, Status> {
        let timer = metrics().request("raw_get_key_ttl");
        let RawGetKeyTtlRequest { context, key, cf } = request.into_inner();
        let mut response = RawGetKeyTtlResponse::default();
        answer!(timer, self.get(context, &key, &cf).await, response, found => match found {
            Some(raw) => response.ttl = remaining_secs(&raw, now_secs()),
            None => response.not_found = true,
        })
    }

    async fn raw_batch_get(
        &self,
        request: Request<RawBatchGetRequest>,
    ) -> Result<Response<RawBatchGetResponse>, Status> {
        let timer = metrics().request("raw_batch_get");
        let mut response = RawBatchGetResponse::default();
        let result = self.batch_get(request.into_inner()).await;
        response.pairs = pairs_or_status(&timer, result, &mut response.region_error)?;
        Ok(Response::new(response))
    }

    async fn raw_scan(&self, request: Request<RawScanRequest>) -> Result<Response<RawScanResponse>, Status> {
        let timer = metrics().request("raw_scan");
        let RawScanRequest { context, start_key, limit, key_only, cf, reverse, end_key } = request.into_inner();
        let mut response = RawScanResponse::default();
        let wanted = ScanWanted { ranges: vec![KeyRange { start_key, end_key }], limit, key_only, reverse };
        response.kvs = pairs_or_status(&timer, self.scan(context, &cf, wanted).await, &mut response.region_error)?;
        Ok(Response::new(response))
    }

    async fn raw_batch_scan(
        &self,
        request: Request<RawBatchScanRequest>,
    ) -> Result<Response<RawBatchScanResponse>, Status> {
        let timer = metrics().request("raw_batch_scan");
        let RawBatchScanRequest { context, ranges, each_limit, key_only, cf, reverse } = request.into_inner();
        let mut response = RawBatchScanResponse::default();
        let wanted = ScanWanted { ranges, limit: each_limit, key_only, reverse };
        response.kvs = pairs_or_status(&timer, self.scan(context, &cf, wanted).await, &mut response.region_error)?;
        Ok(Response::new(response))
    }

    async fn raw_put(&self, request: Request<RawPutRequest>) -> Result<Response<RawPutResponse>, Status> {
        let timer = metrics().request("raw_put");
        let RawPutRequest { context, key, value, cf, ttl, for_cas: _ } = request.into_inner();
        let mut response = RawPutResponse::default();
        let pairs = vec![KvPair { error: None, key, value }];
        answer!(timer, self.put(context, &cf, pairs, &[ttl]).await, response, () => {})
    }

    async fn raw_batch_put(
        &self,
        request: Request<RawBatchPutRequest>,
    ) -> Result<Response<RawBatchPutResponse>, Status> {
        let timer = metrics().request("raw_batch_put");
        #[allow(deprecated, reason = "older clients send one ttl for all pairs")]
        let RawBatchPutRequest { context, pairs, cf, ttl, for_cas: _, ttls } = request.into_inner();
        let mut response = RawBatchPutResponse::default();
        let ttls = if ttls.is_empty() { vec![ttl] } else { ttls };
        answer!(timer, self.put(context, &cf, pairs, &ttls).await, response, () => {})
    }

    async fn raw_delete(&self, request: Request<RawDeleteRequest>) -> Result<Response<RawDeleteResponse>, Status> {
        let timer = metrics().request("raw_delete");
        let RawDeleteRequest { context, key, cf, for_cas: _ } = request.into_inner();
        let mut response = RawDeleteResponse::default();
        answer!(timer, self.delete(context, &cf, vec![key]).await, response, () => {})
    }

    async fn raw_batch_delete(
        &self,
        request: Request<RawBatchDeleteRequest>,
    ) -> Result<Response<RawBatchDeleteResponse>, Status> {
        let timer = metrics().request("raw_batch_delete");
        let RawBatchDeleteRequest { context, keys, cf, for_cas: _ } = request.into_inner();
        let mut response = RawBatchDeleteResponse::default();
        answer!(timer, self.delete(context, &cf, keys).await, response, () => {})
    }

    async fn raw_delete_range(
        &self,
        request: Request<RawDeleteRangeRequest>,
    ) -> Result<Response<RawDeleteRangeResponse>, Status> {
        let timer = metrics().request("raw_delete_range");
        let mut response = RawDeleteRangeResponse::default();
        answer!(timer, self.delete_range(request.into_inner()).await, response, () => {})
    }

    async fn raw_compare_and_swap(&self, request: Request<RawCasRequest>) -> Result<Response<RawCasResponse>, Status> {
        let timer = metrics().request("raw_compare_and_swap");
        let mut response = RawCasResponse::default();
        answer!(timer, self.compare_and_swap(request.into_inner()).await, response, (succeeded, previous) => {
            response.succeed = succeeded;
            response.previous_not_exist = previous.is_none();
            response.previous_value = previous.unwrap_or_default();
        })
    }

    async fn kv_scan_lock(&self, request: Request<ScanLockRequest>) -> Result<Response<ScanLockResponse>, Status> {
        let timer = metrics().request("kv_scan_lock");
        let mut response = ScanLockResponse::default();
        if let Err(failure) = cleanup::scan_lock(&self.node, request.into_inner()).await {
            timer.failed(failure.kind());
            failure.fill_or_status(&mut response.region_error)?;
        }
        Ok(Response::new(response))
    }

    async fn unsafe_destroy_range(
        &self,
        request: Request<UnsafeDestroyRangeRequest>,
    ) -> Result<Response<UnsafeDestroyRangeResponse>, Status> {
        let timer = metrics().request("unsafe_destroy_range");
        let mut response = UnsafeDestroyRangeResponse::default();
        if let Err(error) = cleanup::destroy_range(&self.node, request.into_inner()).await {
            timer.failed("refused");
            response.error = error;
        }
        Ok(Response::new(response))
    }
}

/// Where a request goes.
struct Route {
    target: Target,
    format: KeyFormat,
    cf: Cf,
}

impl Route {
    fn of(context: Option<Context>, cf: &str) -> Result<Route, Failure> {
        let context = context.unwrap_or_default();
        let cf = Cf::data_from_name(cf).ok_or_else(|| {
            Failure::Refused(format!(
                "column family {cf:?} does not exist: there are default (also \"\"), lock and write"
            ))
        })?;
        Ok(Route { target: target(&context)?, format: KeyFormat::of(&context)?, cf })
    }

    fn failure(&self, error: RegionError) -> Failure {
        Asked { region_id: self.target.region_id, format: &self.format }.failure(error)
    }

    async fn read(&self, node: &Node, keys: Keys<'_>) -> Result<ReadView, Failure> {
        node.read(self.target.clone(), keys).await.map_err(|error| self.failure(error))
    }

    async fn write(&self, node: &Node, write: Write) -> Result<WriteOutcome, Failure> {
        node.write(self.target.clone(), write).await.map_err(|error| self.failure(error))
    }
}

struct ScanWanted {
    ranges: Vec<KeyRange>,
    limit: u32,
    key_only: bool,
    reverse: bool,
}

impl RawService {
    async fn get(&self, context: Option<Context>, key: &[u8], cf: &str) -> Result<Option<RawValue>, Failure> {
        let route = Route::of(context, cf)?;
        let key = route.format.stored(key)?;
        let view = route.read(&self.node, Keys::One(&key)).await?;
        live(&view.snapshot, route.cf, &key, now_secs())
    }

    async fn batch_get(&self, request: RawBatchGetRequest) -> Result<Vec<KvPair>, Failure> {
        let RawBatchGetRequest { context, keys, cf } = request;
        let route = Route::of(context, &cf)?;
        limits::check_parts(keys.len())?;
        let stored = keys.iter().map(|key| route.format.stored(key)).collect::<Result<Vec<_>, _>>()?;
        let view = route.read(&self.node, Keys::Many(&stored)).await?;
        blocking(move || {
            let (mut pairs, mut answer, now_secs) = (vec![], AnswerBytes::default(), now_secs());
            for (key, stored) in keys.into_iter().zip(&stored) {
                if let Some(raw) = live(&view.snapshot, route.cf, stored, now_secs)? {
                    answer.add(key.len() + raw.value.len())?;
                    pairs.push(KvPair { error: None, key, value: raw.value });
                }
            }
            Ok(pairs)
        })
        .await
    }

    async fn scan(&self, context: Option<Context>, cf: &str, wanted: ScanWanted) -> Result<Vec<KvPair>, Failure> {
        let route = Route::of(context, cf)?;
        let limit = limits::check_scan(wanted.limit)?;
        limits::check_parts(wanted.ranges.len())?;
        let stored = |range: &KeyRange| match wanted.reverse {
            false => route.format.range(&range.start_key, &range.end_key),
            true => route.format.range(&range.end_key, &range.start_key),
        };
        let mut ranges = wanted.ranges.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        let view = if wanted.reverse {
            let view = route.read(&self.node, Keys::Many(&[])).await?;
            if let Some(range) = ranges.iter().find(|range| !serves_reverse(range, &view.region)) {
                return Err(route.failure(outside(range, &view)));
            }
            view
        } else if let [range] = &ranges[..] {
            route.read(&self.node, Keys::From(&range.start)).await?
        } else {
            let starts: Vec<_> = ranges.iter_mut().map(|range| std::mem::take(&mut range.start)).collect();
            route.read(&self.node, Keys::Many(&starts)).await?
        };
        let direction = if wanted.reverse { Direction::Reverse } else { Direction::Forward };
        let pair = Wanted { format: route.format, key_only: wanted.key_only, now_secs: now_secs() };
        blocking(move || {
            let (mut pairs, mut answer) = (vec![], AnswerBytes::default());
            for range in ranges {
                let limit = pairs.len() + limit;
                let mut parts = clamp(&range, &view.region);
                if direction == Direction::Reverse {
                    parts.reverse();
                }
                for (start, end) in parts {
                    if pairs.len() == limit {
                        break;
                    }
                    let (start, end) = (data_key(Space::User, &start), data_end_key(Space::User, &end));
                    let mut cursor = view.snapshot.scan(route.cf, &start, &end, direction);
                    gather(&mut cursor, pair, limit, &mut answer, &mut pairs)?;
                }
            }
            Ok(pairs)
        })
        .await
    }

    async fn put(&self, context: Option<Context>, cf: &str, pairs: Vec<KvPair>, ttls: &[u64]) -> Result<(), Failure> {
        let route = Route::of(context, cf)?;
        limits::check_parts(pairs.len())?;
        if ttls.len() != 1 && ttls.len() != pairs.len() {
            return Err(Failure::Refused(format!(
                "{} ttls for {} pairs: there must be one for each or one for all",
                ttls.len(),
                pairs.len()
            )));
        }
        let (now_secs, mut bytes, mut mutations) = (now_secs(), 0, Vec::with_capacity(pairs.len()));
        for (at, KvPair { key, value, .. }) in pairs.into_iter().enumerate() {
            limits::check_value(&value)?;
            bytes += key.len() + value.len();
            let ttl = ttls[if ttls.len() == 1 { 0 } else { at }];
            let value = raw_value::encode(&value, expiry_secs(now_secs, ttl));
            mutations.push(Mutation {
                cf: route.cf as u32,
                key: route.format.stored(&key)?.into(),
                value: Some(value),
            });
        }
        limits::check_batch(bytes)?;
        self.mutate(&route, mutations).await
    }

    async fn delete(&self, context: Option<Context>, cf: &str, keys: Vec<Bytes>) -> Result<(), Failure> {
        let route = Route::of(context, cf)?;
        limits::check_parts(keys.len())?;
        limits::check_batch(keys.iter().map(Bytes::len).sum())?;
        let mutation =
            |key: Bytes| Ok(Mutation { cf: route.cf as u32, key: route.format.stored(&key)?.into(), value: None });
        let mutations = keys.into_iter().map(mutation).collect::<Result<Vec<_>, Failure>>()?;
        self.mutate(&route, mutations).await
    }

    async fn mutate(&self, route: &Route, mutations: Vec<Mutation>) -> Result<(), Failure> {
        if mutations.is_empty() {
            return Ok(());
        }
        route.write(&self.node, Write { mutations, ..Write::default() }).await.map(|_| ())
    }

    async fn delete_range(&self, request: RawDeleteRangeRequest) -> Result<(), Failure> {
        let route = Route::of(request.context, &request.cf)?;
        // One write, unless a V1 range goes over the keys of keyspaces. Deleting again is harmless, so that a failure between two
        // writes can be repeated.
        for (start, end) in route.format.range(&request.start_key, &request.end_key)?.parts {
            let delete_range = DeleteRange { cf: route.cf as u32, start_key: start.into(), end_key: end.into() };
            route.write(&self.node, Write { delete_range: Some(delete_range), ..Write::default() }).await?;
        }
        Ok(())
    }

    async fn compare_and_swap(&self, request: RawCasRequest) -> Result<(bool, Option<Bytes>), Failure> {
        let RawCasRequest { context, key, value, previous_not_exist, previous_value, cf, ttl } = request;
        let route = Route::of(context, &cf)?;
        limits::check_value(&value)?;
        limits::check_value(&previous_value)?;
        limits::check_batch(key.len() + value.len() + previous_value.len())?;
        let now_secs = now_secs();
        let compare_and_swap = CompareAndSwap {
            cf: route.cf as u32,
            key: route.format.stored(&key)?.into(),
            previous: (!previous_not_exist).then_some(previous_value),
            value: raw_value::encode(&value, expiry_secs(now_secs, ttl)),
            now_secs,
        };
        match route.write(&self.node, Write { compare_and_swap: Some(compare_and_swap), ..Write::default() }).await? {
            WriteOutcome::Swapped { succeeded, previous } => Ok((succeeded, previous)),
            WriteOutcome::Done => {
                Err(Failure::OutcomeUnknown("the region did not say whether the values were swapped".into()))
            }
        }
    }
}

fn live(snapshot: &Snapshot, cf: Cf, stored_key: &[u8], now_secs: u64) -> Result<Option<RawValue>, Failure> {
    let found =
        snapshot.get(cf, &data_key(Space::User, stored_key)).map_err(|error| Failure::Internal(error.to_string()))?;
    let raw = found
        .map(|stored| raw_value::decode(&stored))
        .transpose()
        .map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(raw.filter(|raw| !raw.is_expired(now_secs)))
}

fn outside(range: &StoredRange, view: &ReadView) -> RegionError {
    let region = &view.region;
    RegionError {
        key_not_in_region: Some(KeyNotInRegion {
            key: range.start.clone().into(),
            region_id: region.id,
            start_key: region.start_key.clone(),
            end_key: region.end_key.clone(),
        }),
        ..RegionError::default()
    }
}

/// Runs what may read much from the disk where it holds up nobody else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::Internal(format!("read failed: {error}"))))
}

fn now_secs() -> u64 {
    crate::clock::wall_ms() / 1000
}

/// 0 means never, in both.
fn expiry_secs(now_secs: u64, ttl_secs: u64) -> u64 {
    if ttl_secs == 0 { 0 } else { now_secs.saturating_add(ttl_secs) }
}

fn remaining_secs(raw: &RawValue, now_secs: u64) -> u64 {
    if raw.expires_at_secs == 0 { 0 } else { raw.expires_at_secs.saturating_sub(now_secs).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_of_zero_is_for_ever_and_a_huge_one_does_not_overflow() {
        assert_eq!(expiry_secs(100, 0), 0);
        assert_eq!(expiry_secs(100, 5), 105);
        assert_eq!(expiry_secs(100, u64::MAX), u64::MAX);
        let raw = |expires_at_secs| RawValue { value: Bytes::new(), expires_at_secs };
        assert_eq!(remaining_secs(&raw(0), 100), 0);
        assert_eq!(remaining_secs(&raw(105), 100), 5);
        // It was there when it was read: an answer of 0 would say that it stays for ever.
        assert_eq!(remaining_secs(&raw(100), 100), 1);
    }

    #[test]
    fn a_route_needs_a_region_and_a_known_column_family() {
        let context = || Some(Context { region_id: 7, ..Context::default() });
        assert_eq!(Route::of(context(), "").unwrap().cf, Cf::Default);
        assert_eq!(Route::of(context(), "write").unwrap().cf, Cf::Write);
        for (context, cf, text) in [(context(), "raft", "\"raft\""), (None, "", "no region")] {
            match Route::of(context, cf) {
                Err(Failure::Refused(error)) => assert!(error.contains(text), "{error}"),
                _ => panic!("not refused: {text}"),
            }
        }
    }
}
