//! Tells the placement driver what it needs to know, at once when something changes and now and then otherwise, and carries out what it
//! says.

use std::{sync::Arc, time::Duration};

use flotilla_placement::Reporter;
use flotilla_proto::{
    disk::{ADDRESS_BOOK_KEY, Cf, WriteBatch},
    placement::{HeartbeatResponse, Instruction, StoreStats, placement_request::Request, placement_response::Response},
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

/// Between heartbeats when nothing changes, at most.
const INTERVAL_MAX: Duration = Duration::from_millis(2_500);
/// Heartbeats in the time after which a silent store counts as down.
const HEARTBEATS: u32 = 4;
/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(2);
/// After a heartbeat that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Runs until the store stops.
pub async fn run(node: Node, mut news: mpsc::UnboundedReceiver<News>) {
    let mut reporter = Reporter::new();
    let mut lead = node.store().system_lead.subscribe();
    let down_after = Duration::from_millis(node.store().config.placement.down_after_ms);
    let interval = INTERVAL_MAX.min(down_after / HEARTBEATS);
    let mut nearly_full = false;
    loop {
        let due = Instant::now() + if reporter.is_urgent() { Duration::ZERO } else { interval };
        tokio::select! {
            first = news.recv() => {
                let Some(first) = first else { return };
                note(first, &mut reporter);
                sleep(GATHER).await;
                while let Ok(more) = news.try_recv() {
                    note(more, &mut reporter);
                }
            }
            () = sleep_until(due) => {}
            _ = lead.changed() => {}
        }
        let stats = node.stats();
        if std::mem::replace(&mut nearly_full, stats.is_nearly_full()) != nearly_full {
            let StoreStats { available_bytes, capacity_bytes, .. } = stats;
            match nearly_full {
                true => tracing::warn!(
                    available_bytes,
                    capacity_bytes,
                    "the disk is nearly full: no new replicas are placed here"
                ),
                false => tracing::info!(available_bytes, capacity_bytes, "the disk has room again"),
            }
        }
        let request = reporter.heartbeat(node.store_id(), node.address().to_owned(), stats);
        match node.placement(Request::Heartbeat(request)).await.response {
            Some(Response::Heartbeat(answer)) => {
                reporter.answered(&answer);
                take(&node, answer);
            }
            Some(Response::Error(error)) => {
                tracing::debug!("heartbeat failed: {}", error.message);
                reporter.unanswered();
                sleep(PAUSE).await;
            }
            _ => {
                reporter.unanswered();
                sleep(PAUSE).await;
            }
        }
    }
}

fn note(news: News, reporter: &mut Reporter) {
    match news {
        News::Led { region, term, ailing } => reporter.led(region, term, ailing),
        News::Lost(id) => reporter.lost(id),
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
