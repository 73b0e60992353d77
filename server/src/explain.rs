//! Why a peer of this store does what it does, for people to read: what the raft worker that owns it says, with how long the supports still last.

use std::time::Duration;

use flotilla_proto::{
    admin::{Binding, ExplainRegionResponse, LeaseState, LeaseView, OtherPeer, Support},
    store::RegionError,
};
use flotilla_raftstore::{
    Event, Response,
    explain::{Bound, Explained},
    refusal,
};
use tokio::time::timeout;

use crate::{clock, leases::Published, store::Store, waiting::Answer};

/// A worker that does not answer within this time is stuck.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the worker that owns the region, which wakes nobody.
pub async fn explain(store: &Store, region_id: u64) -> Result<ExplainRegionResponse, RegionError> {
    let ticket = store.waiting.ticket();
    let event = Event::Explain { id: ticket.id, region_id };
    store.inbox(region_id).offer(event, 64).map_err(|full| refusal::busy(full.to_string()))?;
    let explained = match timeout(EXPLAIN_TIMEOUT, ticket.answer()).await {
        Ok(Some(Answer::Done(Ok(Response::Explained(explained))))) => *explained,
        Ok(Some(Answer::Done(Err(error)))) => return Err(error),
        Ok(Some(Answer::Done(Ok(Response::Written(_) | Response::Commanded(_))) | Answer::Granted(..))) => {
            unreachable!("a question for an explanation is answered by one")
        }
        Ok(None) => return Err(refusal::busy("the store is stopping")),
        Err(_) => {
            let seconds = EXPLAIN_TIMEOUT.as_secs();
            return Err(refusal::busy(format!("its raft worker did not answer within {seconds} s")));
        }
    };
    let now_ms = clock::now_ms();
    let published = store.leases.find(region_id);
    let bound = explained.bound.map(|bound| binding(store, bound, now_ms));
    let lease = lease(store, &explained, published.as_deref(), now_ms);
    Ok(answer(store.store_id, explained, lease, bound))
}

/// The lease as readers find it at this moment; it may have changed since the worker spoke.
fn lease(store: &Store, explained: &Explained, published: Option<&Published>, now_ms: u64) -> LeaseView {
    let Some(published) = published.filter(|published| published.lease.term == explained.term) else {
        let (state, why) = match explained.no_lease {
            Some(no) if no.is_suspect() => (LeaseState::Suspect, no.why()),
            Some(no) => (LeaseState::None, no.why()),
            None => (LeaseState::None, "it changes at this moment"),
        };
        return LeaseView { state: state.into(), why: why.to_owned(), ..LeaseView::default() };
    };
    let supports = published.lease.bound.iter().zip(published.ends()).map(|((store_id, id), until_ms)| Support {
        store_id: *store_id,
        id: id.0,
        left_ms: until_ms.saturating_sub(now_ms),
        incarnation: store.incarnation,
    });
    let until_ms = published.until_ms();
    let state = if published.is_good(now_ms) { LeaseState::Valid } else { LeaseState::Expired };
    let why = match state {
        LeaseState::Expired => "too few of the stores of its voters support this store",
        _ => "",
    };
    LeaseView {
        state: state.into(),
        why: why.to_owned(),
        left_ms: (state == LeaseState::Valid && until_ms != u64::MAX).then(|| until_ms.saturating_sub(now_ms)),
        needed: published.lease.needed as u32,
        supports: supports.collect(),
    }
}

fn binding(store: &Store, bound: Bound, now_ms: u64) -> Binding {
    let view = store.support.lock().clone();
    let given = view.given.iter().find(|(other, given)| *other == bound.store_id && given.id == Some(bound.id));
    Binding {
        term: bound.term,
        store_id: bound.store_id,
        support_id: bound.id.0,
        holds: bound.holds,
        left_ms: given.map_or(0, |(_, given)| given.until_ms.saturating_sub(now_ms)),
    }
}

fn answer(store_id: u64, explained: Explained, lease: LeaseView, bound: Option<Binding>) -> ExplainRegionResponse {
    let others = explained.others.iter().map(|other| OtherPeer {
        peer: Some(other.peer),
        heard_ms_ago: other.heard_ms_ago,
        support_id: other.bound.map_or(0, |id| id.0),
        lag: other.lag,
        gone: other.gone,
    });
    ExplainRegionResponse {
        store_id,
        region: Some((*explained.region).clone()),
        peer: Some(explained.me),
        term: explained.term,
        leader: explained.leader,
        commit_index: explained.commit,
        applied_index: explained.applied,
        last_index: explained.last,
        dormant: explained.dormant,
        why: explained.why,
        hindrance: explained.hindrance.unwrap_or_default().to_owned(),
        wakes: explained.wakes,
        idle_ms: explained.idle_ms,
        lease: Some(lease),
        bound,
        others: others.collect(),
    }
}
