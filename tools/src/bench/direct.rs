//! Requests to one store and to nobody else, as an old client sends them that does not know where a region has gone.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flotilla_proto::{
    placement::RegionInfo,
    tikv::{
        errorpb, kvrpcpb,
        metapb::{Peer, RegionEpoch},
        tikvpb::tikv_client::TikvClient,
    },
};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

/// A few connections to a store.
pub struct Direct {
    clients: Vec<TikvClient<Channel>>,
    turn: AtomicUsize,
}

/// Where a region was led when somebody asked.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The leader's store.
    pub store_id: u64,
    context: kvrpcpb::Context,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Served; the value, or, for a swap, the value before.
    Served(Option<Bytes>),
    /// The store refused it: definitely not done.
    Refused(String),
    /// No answer, or none that says what became of it.
    Unanswered(String),
}

impl Route {
    /// `None` while nobody leads.
    pub fn of(info: &RegionInfo) -> Option<Route> {
        let (region, leader) = (info.region.as_ref()?, info.leader?);
        let epoch = region.epoch.unwrap_or_default();
        let context = kvrpcpb::Context {
            region_id: region.id,
            region_epoch: Some(RegionEpoch { conf_ver: epoch.conf_ver, version: epoch.version }),
            peer: Some(Peer { id: leader.id, store_id: leader.store_id, ..Peer::default() }),
            ..kvrpcpb::Context::default()
        };
        Some(Route { store_id: leader.store_id, context })
    }
}

impl Direct {
    /// Connects.
    pub async fn to(address: &str, connections: usize) -> Result<Direct> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let client = TikvClient::connect(format!("http://{address}")).await;
            clients.push(client.with_context(|| format!("cannot connect to {address}"))?);
        }
        Ok(Direct { clients, turn: AtomicUsize::new(0) })
    }

    fn client(&self) -> TikvClient<Channel> {
        self.clients[self.turn.fetch_add(1, Ordering::Relaxed) % self.clients.len()].clone()
    }

    /// Reads a key of the region.
    pub async fn get(&self, route: &Route, key: &[u8], patience: Duration) -> Answer {
        let request = kvrpcpb::RawGetRequest {
            context: Some(route.context),
            key: Bytes::copy_from_slice(key),
            ..kvrpcpb::RawGetRequest::default()
        };
        let answer = timeout(patience, async { self.client().raw_get(request).await }).await;
        answered(answer.map(|answer| {
            answer.map(|answer| {
                let answer = answer.into_inner();
                (answer.region_error, answer.error, (!answer.not_found).then_some(answer.value))
            })
        }))
    }

    /// Puts `value` in the place of `previous`; if that is not what is there, answers what is.
    pub async fn swap(
        &self,
        route: &Route,
        key: &[u8],
        previous: Option<Bytes>,
        value: Bytes,
        patience: Duration,
    ) -> Answer {
        let request = kvrpcpb::RawCasRequest {
            context: Some(route.context),
            key: Bytes::copy_from_slice(key),
            value,
            previous_not_exist: previous.is_none(),
            previous_value: previous.unwrap_or_default(),
            ..kvrpcpb::RawCasRequest::default()
        };
        let answer = timeout(patience, async { self.client().raw_compare_and_swap(request).await }).await;
        answered(answer.map(|answer| {
            answer.map(|answer| {
                let answer = answer.into_inner();
                (answer.region_error, answer.error, (!answer.previous_not_exist).then_some(answer.previous_value))
            })
        }))
    }
}

type Parts = (Option<errorpb::Error>, String, Option<Bytes>);

fn answered(answer: Result<Result<Parts, Status>, tokio::time::error::Elapsed>) -> Answer {
    match answer {
        Err(_) => Answer::Unanswered("no answer in time".to_owned()),
        Ok(Err(status)) => Answer::Unanswered(status.to_string()),
        // What has an unknown outcome is told in `error`, and not as the region's refusal.
        Ok(Ok((Some(error), _, _))) => Answer::Refused(error.message),
        Ok(Ok((None, error, _))) if !error.is_empty() => Answer::Unanswered(error),
        Ok(Ok((None, _, value))) => Answer::Served(value),
    }
}
