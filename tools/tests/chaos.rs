//! Stores are killed and restarted at random while clients write through an unmodified `tikv-client`: nothing that was acknowledged is lost,
//! and nothing appears that was never sent.

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::Cluster;
use flotilla_proto::admin::{SplitRegion, region_command_request::Command};
use tikv_client::RawClient;
use tokio::time::sleep;

const WRITERS: usize = 8;
const KEYS_PER_WRITER: u64 = 100;
const DURATION: Duration = Duration::from_secs(60);

/// What one key may hold.
#[derive(Clone, Debug, Default)]
struct Allowed {
    /// The last value that was acknowledged.
    acknowledged: Option<u64>,
    /// Values sent after it whose fate is unknown.
    unknown: Vec<u64>,
}

fn key(writer: usize, number: u64) -> String {
    format!("chaos/{writer}/{number:04}")
}

fn value(writer: usize, number: u64, sequence: u64) -> String {
    format!("{writer}:{number}:{sequence}")
}

/// Writes its own keys, one after the other, until told to stop.
async fn write(
    writer: usize,
    endpoints: Vec<String>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> BTreeMap<u64, Allowed> {
    let mut allowed: BTreeMap<u64, Allowed> = BTreeMap::new();
    let mut client = None;
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        let connected = match client.take() {
            Some(client) => client,
            None => match RawClient::new(endpoints.clone()).await {
                Ok(client) => client,
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        sequence += 1;
        let number = sequence % KEYS_PER_WRITER;
        let state = allowed.entry(number).or_default();
        match connected.put(key(writer, number), value(writer, number, sequence)).await {
            Ok(()) => {
                *state = Allowed { acknowledged: Some(sequence), unknown: Vec::new() };
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => state.unknown.push(sequence),
        }
        client = Some(connected);
    }
    allowed
}

/// A small generator: the test prints its seed.
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_random_kills() {
    let mut cluster = Cluster::start(3).await;
    split(&cluster).await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(writer, cluster.endpoints(), stop.clone(), acknowledged.clone())))
        .collect();

    let mut seed = std::process::id().into();
    println!("seed {seed}");
    let started = Instant::now();
    let mut kills = 0;
    while started.elapsed() < DURATION {
        sleep(Duration::from_millis(500 + random(&mut seed, 3000))).await;
        // Mostly one store, now and then two, rarely all of them.
        let count = [1, 1, 1, 1, 1, 1, 2, 2, 2, 3][random(&mut seed, 10) as usize];
        let first = random(&mut seed, 3) as usize;
        for n in 0..count {
            cluster.stores[(first + n) % 3].kill();
            kills += 1;
        }
        sleep(Duration::from_millis(random(&mut seed, 2500))).await;
        for n in 0..count {
            cluster.stores[(first + n) % 3].start();
        }
        for store in &mut cluster.stores {
            store.check();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut allowed = Vec::new();
    for writer in writers {
        allowed.push(writer.await.expect("a writer does not fail"));
    }
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    println!("{acknowledged} writes acknowledged, {kills} kills");
    assert!(kills >= 10, "the test kills");
    assert!(acknowledged >= 1000, "the cluster serves between the kills: {acknowledged} writes were acknowledged");

    cluster
        .wait_for("every region to be led", async |cluster| {
            cluster.all_regions().await.is_ok_and(|regions| regions.iter().all(|info| info.leader.is_some()))
        })
        .await;
    verify(&cluster, &allowed).await;
    let regions = cluster.wait_until_equal().await;
    println!("{regions} regions are equal on all stores");
    assert!(regions >= 10);
}

async fn split(cluster: &Cluster) {
    let admin = cluster.admin();
    let region = admin.locate(b"chaos/").await.expect("the region is known").region.expect("and described");
    let keys = (1..WRITERS).map(|writer| key(writer, 0).into_bytes().into()).collect();
    let regions =
        admin.region_command(region.id, None, Command::Split(SplitRegion { keys })).await.expect("the region is split");
    assert_eq!(regions.len(), WRITERS);
}

async fn verify(cluster: &Cluster, allowed: &[BTreeMap<u64, Allowed>]) {
    let client = flotilla_client::Client::connect(cluster.endpoints()).await.expect("the cluster serves");
    let stored: BTreeMap<String, String> = client
        .raw()
        .scan("chaos/", "chaos0", usize::MAX)
        .await
        .expect("the keys can be read")
        .into_iter()
        .map(|pair| {
            (String::from_utf8_lossy(&pair.key).into_owned(), String::from_utf8_lossy(&pair.value).into_owned())
        })
        .collect();
    let mut known = 0;
    for (writer, keys) in allowed.iter().enumerate() {
        for (&number, state) in keys {
            let found = stored.get(&key(writer, number));
            known += usize::from(found.is_some());
            let mut fits = state.unknown.clone();
            fits.extend(state.acknowledged);
            let fits: Vec<String> = fits.into_iter().map(|sequence| value(writer, number, sequence)).collect();
            match found {
                Some(found) => {
                    assert!(fits.contains(found), "{} holds {found}, not one of {fits:?}", key(writer, number))
                }
                None => assert!(state.acknowledged.is_none(), "{} is lost: {state:?}", key(writer, number)),
            }
        }
    }
    assert_eq!(stored.len(), known, "there are keys that nobody wrote");
}
