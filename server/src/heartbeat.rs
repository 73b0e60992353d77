//! Tells the placement driver what it needs to know, at once when something changes and every second otherwise, and carries out what it
//! says.

use std::{collections::HashMap, sync::Arc, time::Duration};

use flotilla_proto::{
    disk::{ADDRESS_BOOK_KEY, Cf, WriteBatch},
    placement::{
        HeartbeatRequest, HeartbeatResponse, Instruction, RegionReport, placement_request::Request,
        placement_response::Response,
    },
    store::{AddressBook, StoreAddress},
};
use flotilla_raftstore::{Command, Target};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    fatal,
    node::Node,
    store::{News, Store},
};

/// Between heartbeats when nothing changes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(2);
/// After a heartbeat that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Regions in one heartbeat; more go into the next one at once.
const REGIONS_MAX: usize = 2000;

/// Runs until the store stops.
pub async fn run(node: Node, mut news: mpsc::UnboundedReceiver<News>) {
    let mut led: HashMap<u64, RegionReport> = HashMap::new();
    let mut changed: Vec<u64> = Vec::new();
    let mut system_term = 0;
    let mut full = true;
    let mut lead = node.store().system_lead.subscribe();
    loop {
        let due = Instant::now() + if changed.is_empty() && !full { INTERVAL } else { Duration::ZERO };
        tokio::select! {
            first = news.recv() => {
                let Some(first) = first else { return };
                note(first, &mut led, &mut changed);
                sleep(GATHER).await;
                while let Ok(more) = news.try_recv() {
                    note(more, &mut led, &mut changed);
                }
            }
            () = sleep_until(due) => {}
            _ = lead.changed() => {}
        }
        changed.sort_unstable();
        changed.dedup();
        let told: Vec<u64> =
            if full { led.keys().copied().collect() } else { changed.iter().copied().take(REGIONS_MAX).collect() };
        let request = HeartbeatRequest {
            store_id: node.store_id(),
            address: node.address().to_owned(),
            stats: Some(node.stats()),
            regions: told.iter().filter_map(|id| led.get(id)).cloned().collect(),
            full,
        };
        match node.placement(Request::Heartbeat(request)).await.response {
            Some(Response::Heartbeat(answer)) => {
                changed.retain(|id| told.binary_search(id).is_err() && !full);
                full = answer.want_full || (answer.system_term != system_term && !full);
                system_term = answer.system_term;
                take(&node, answer);
            }
            Some(Response::Error(error)) => {
                tracing::debug!("heartbeat failed: {}", error.message);
                sleep(PAUSE).await;
            }
            _ => sleep(PAUSE).await,
        }
    }
}

fn note(news: News, led: &mut HashMap<u64, RegionReport>, changed: &mut Vec<u64>) {
    match news {
        News::Led(report) => {
            let id = report.region.as_ref().map_or(0, |region| region.id);
            changed.push(id);
            led.insert(id, *report);
        }
        News::Lost(id) => {
            led.remove(&id);
        }
    }
}

fn take(node: &Node, answer: HeartbeatResponse) {
    let addresses =
        answer.stores.iter().map(|store| StoreAddress { store_id: store.id, address: store.address.clone() });
    learn_addresses(node.store(), addresses.collect());
    for instruction in answer.instructions {
        let node = node.clone();
        tokio::spawn(async move { carry_out(&node, instruction).await });
    }
}

async fn carry_out(node: &Node, instruction: Instruction) {
    let Instruction { region_id, epoch, change_peer, transfer_leader_to } = instruction;
    let target = Target { region_id, epoch, ..Target::default() };
    let command = match change_peer {
        Some(change) => Command::ChangePeer(change),
        None => Command::TransferLeader { to_peer: transfer_leader_to },
    };
    if let Err(error) = node.submit_command(target, command).await {
        tracing::debug!("an instruction for region {region_id} was refused: {}", error.message);
    }
}

/// Keeps the addresses of all stores, also across restarts.
pub fn learn_addresses(store: &Arc<Store>, stores: Vec<StoreAddress>) {
    let ids: Vec<u64> = stores.iter().map(|other| other.store_id).filter(|id| *id != store.store_id).collect();
    for other in stores.iter().filter(|other| other.store_id != store.store_id) {
        store.transport.set_address(other.store_id, &other.address);
    }
    let book = AddressBook { stores };
    let mut known = store.address_book.lock();
    if *known != book {
        let mut batch = WriteBatch::new();
        batch.put_message(Cf::Raft, ADDRESS_BOOK_KEY.to_vec(), &book);
        store.disk.engine.write(&batch).unwrap_or_else(|error| fatal::stop("keep the addresses of the stores", &error));
        *store.other_stores.lock() = ids;
        *known = book;
    }
}
