//! Finding the region of a key and sending it a request until it answers.

use std::{future::Future, sync::Arc};

use flotilla_proto::tikv::{errorpb, kvrpcpb, kvrpcpb::Context, tikvpb::tikv_client::TikvClient};
use tokio::time::timeout;
use tonic::{Response, Status, transport::Channel};

use crate::{
    Inner,
    call::Call,
    channels::never_sent,
    error::Result,
    keyspace::Keyspace,
    limits,
    region::Route,
    verdict::{self, Verdict},
};

/// A request to one region.
pub(crate) trait RegionRequest: Clone + Send {
    type Answer: RegionAnswer;
    /// Puts in which region and peer the request is for.
    fn set_context(&mut self, context: Context);
    /// Sends it.
    fn send(
        self,
        client: TikvClient<Channel>,
    ) -> impl Future<Output = std::result::Result<Response<Self::Answer>, Status>> + Send;
}

/// An answer from one region.
pub(crate) trait RegionAnswer {
    /// Why the region refused the request as a whole.
    fn region_error(&mut self) -> Option<errorpb::Error>;
    /// Why the store refused the request for its content; empty: it did not.
    fn error(&self) -> &str;
}

macro_rules! region_requests {
    ($($request:ident => $answer:ident by $method:ident $(, error $error:ident)?;)*) => {$(
        impl RegionRequest for kvrpcpb::$request {
            type Answer = kvrpcpb::$answer;
            fn set_context(&mut self, context: Context) {
                self.context = Some(context);
            }
            async fn send(
                self,
                mut client: TikvClient<Channel>,
            ) -> std::result::Result<Response<Self::Answer>, Status> {
                client.$method(self).await
            }
        }
        impl RegionAnswer for kvrpcpb::$answer {
            fn region_error(&mut self) -> Option<errorpb::Error> {
                self.region_error.take()
            }
            fn error(&self) -> &str {
                $(return &self.$error;)?
                #[allow(unreachable_code)]
                ""
            }
        }
    )*};
}

region_requests! {
    RawGetRequest => RawGetResponse by raw_get, error error;
    RawBatchGetRequest => RawBatchGetResponse by raw_batch_get;
    RawPutRequest => RawPutResponse by raw_put, error error;
    RawBatchPutRequest => RawBatchPutResponse by raw_batch_put, error error;
    RawDeleteRequest => RawDeleteResponse by raw_delete, error error;
    RawBatchDeleteRequest => RawBatchDeleteResponse by raw_batch_delete, error error;
    RawScanRequest => RawScanResponse by raw_scan;
    RawDeleteRangeRequest => RawDeleteRangeResponse by raw_delete_range, error error;
    RawCasRequest => RawCasResponse by raw_compare_and_swap, error error;
    RawGetKeyTtlRequest => RawGetKeyTtlResponse by raw_get_key_ttl, error error;
}

impl Inner {
    /// The region that holds a route key.
    pub(crate) async fn locate(&self, route_key: &[u8], call: &mut Call) -> Result<Arc<Route>> {
        if let Some(route) = self.regions.find(route_key) {
            return Ok(route);
        }
        loop {
            let mut lookup = call.lookup("locate region");
            match self.directory.region(&self.channels, route_key, &mut lookup).await {
                Ok(Some(route)) if route.contains(route_key) => return Ok(self.regions.insert(route)),
                Ok(_) => call.back_off("the region of the key is not known at the moment").await?,
                // The lookup had this call's deadline; what became of the call itself is the call's to say.
                Err(error) => call.back_off(error.to_string()).await?,
            }
        }
    }

    /// The region that holds the keys just below a route bound (empty: the largest keys of all).
    pub(crate) async fn locate_below(&self, bound: &[u8], call: &mut Call) -> Result<Arc<Route>> {
        if let Some(route) = self.regions.find_below(bound) {
            return Ok(route);
        }
        // The directory finds regions by a key that they hold: begin close below the bound and walk up to it.
        let mut key = close_below(bound);
        loop {
            let route = self.locate(&key, call).await?;
            if route.reaches(bound) || route.end.is_empty() {
                return Ok(route);
            }
            key = route.end.to_vec();
        }
    }

    /// Sends a request to a region. `None`: the region is not what the route says any more; nothing happened, locate again.
    pub(crate) async fn send<R: RegionRequest>(
        &self,
        route: &Arc<Route>,
        keyspace: Keyspace,
        request: &R,
        call: &mut Call,
    ) -> Result<Option<R::Answer>> {
        let mut hints = 0;
        // The store that could not be reached last: hints that point to it are old.
        let mut unreachable = None;
        loop {
            let (choice, peer) = route.target();
            let store_id = peer.store_id;
            let address = self.directory.store(&self.channels, store_id, &mut call.lookup("locate store")).await;
            let address = match address {
                Ok(address) => address,
                Err(error) => {
                    route.turn_from(choice);
                    call.back_off(error.to_string()).await?;
                    continue;
                }
            };
            let Some(client) = self.channels.tikv(&address)? else {
                unreachable = Some(store_id);
                self.next_peer(route, choice, format!("store {store_id} at {address} cannot be reached"), call).await?;
                if self.is_stale(route) {
                    return Ok(None);
                }
                continue;
            };
            let mut request = request.clone();
            request.set_context(Context {
                region_id: route.id,
                region_epoch: Some(route.epoch),
                peer: Some(*peer),
                api_version: keyspace.api_version(),
                ..Context::default()
            });
            let (verdict, reason) = match call.attempt(request.send(client)).await {
                Ok(mut answer) => match answer.region_error() {
                    Some(error) => verdict::of_region_error(&error),
                    None if answer.error().is_empty() => return Ok(Some(answer)),
                    None => verdict::of_error_text(answer.error()),
                },
                Err(status) => {
                    if never_sent(&status) {
                        unreachable = Some(store_id);
                        self.channels.avoid(&address);
                        self.directory.doubt_store(store_id);
                    }
                    verdict::of_status(&status)
                }
            };
            let reason = format!("region {} on store {store_id}: {reason}", route.id);
            tracing::debug!(?verdict, reason, "request refused");
            match verdict {
                Verdict::Leader(leader) if Some(leader) == unreachable => {
                    self.next_peer(route, choice, reason, call).await?;
                }
                Verdict::Leader(leader) if route.turn_to(leader) => {
                    // The first hints are followed at once; then two stores may be pointing at each other.
                    hints += 1;
                    if hints > 2 {
                        call.back_off(reason).await?;
                    }
                }
                Verdict::Leader(_) => {
                    self.regions.remove(route);
                    call.back_off(reason).await?;
                    return Ok(None);
                }
                Verdict::NextPeer => self.next_peer(route, choice, reason, call).await?,
                Verdict::Busy(pause) => call.wait(pause, reason).await?,
                Verdict::Moved(regions) => {
                    self.learn(route, regions, store_id);
                    call.back_off(reason).await?;
                    return Ok(None);
                }
                Verdict::Refused => return Err(call.refuse(reason)),
                Verdict::Uncertain => {
                    route.turn_from(choice);
                    call.uncertain(reason.clone())?;
                    call.back_off(reason).await?;
                }
            }
            if self.is_stale(route) {
                return Ok(None);
            }
        }
    }

    /// Turns to the next peer; after all had their turn, the directory is asked for news. The peers know sooner who leads, and the
    /// directory may be on the move itself, so it is not waited for.
    async fn next_peer(&self, route: &Arc<Route>, choice: usize, reason: String, call: &mut Call) -> Result<()> {
        if route.turn_from(choice) {
            let mut lookup = call.lookup("locate region");
            let news = self.directory.region(&self.channels, &route.start, &mut lookup);
            if let Ok(Ok(Some(news))) = timeout(limits::REFRESH, news).await
                && news.epoch != route.epoch
            {
                self.regions.insert(news);
            }
        }
        call.back_off(reason).await
    }

    /// Whether this route is not in the cache any more: a newer one took its place, or the directory must be asked.
    fn is_stale(&self, route: &Arc<Route>) -> bool {
        !self.regions.find(&route.start).is_some_and(|cached| Arc::ptr_eq(&cached, route))
    }

    /// Takes a store's word on what a region is now. `store_id` probably leads those regions.
    fn learn(&self, route: &Arc<Route>, regions: Vec<flotilla_proto::tikv::metapb::Region>, store_id: u64) {
        self.regions.remove(route);
        for region in regions {
            if let Some(route) = Route::new(region, Some(store_id)) {
                self.regions.insert(route);
            }
        }
    }
}

/// A key below `bound`, with few or no keys between them.
fn close_below(bound: &[u8]) -> Vec<u8> {
    const FILL: [u8; 16] = [0xff; 16];
    match bound.split_last() {
        None => FILL.to_vec(),
        Some((0, rest)) => rest.to_vec(),
        Some((&last, rest)) => [rest, &[last - 1], &FILL].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_close_below_a_bound() {
        assert_eq!(close_below(b"a\0"), b"a");
        assert!(close_below(b"ab") < b"ab".to_vec());
        assert!(close_below(b"ab") > b"aazzz".to_vec());
        assert!(close_below(b"") > b"\xff\xff\xff".to_vec());
    }
}
