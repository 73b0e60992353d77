//! Bad input and strangers: each gets a clear, typed error, and nothing is lost or changed.

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use common::{Cluster, FLOTILLA, flotilla};
use flotilla_client::Client;
use flotilla_proto::{
    admin::{StoreRequest, StoreResponse, store_request},
    placement::{PlacementRequest, placement_request},
    store::{Frame, SnapshotHeader},
    tikv::{kvrpcpb, metapb, tikvpb::tikv_client::TikvClient},
};
use flotilla_transport::{
    BoxFuture, CallerId, Handler, LocalIdentity, Options, SnapshotChunks, Transport, identity::Authority,
};
use prost::Message as _;

async fn get(cluster: &Cluster, context: kvrpcpb::Context, key: &[u8]) -> kvrpcpb::RawGetResponse {
    let mut client =
        TikvClient::connect(format!("http://{}", cluster.stores[0].address)).await.expect("the store listens");
    let request =
        kvrpcpb::RawGetRequest { context: Some(context), key: Bytes::copy_from_slice(key), ..Default::default() };
    client.raw_get(request).await.expect("an answer").into_inner()
}

/// One cluster for all of it: starting one costs more than the checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(1).await;
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let raw = client.raw();
    raw.put("kept", "value", None).await.unwrap();

    unknown_keyspace(&cluster).await;
    oversized(&cluster).await;
    wrong_region_or_store(&cluster).await;
    garbage(&cluster);
    second_process(&cluster);
    strangers(&cluster).await;

    cluster.stores[0].check();
    assert_eq!(raw.get("kept").await.unwrap().as_deref(), Some(&b"value"[..]));
    let pairs = raw.scan("", "", 10).await.unwrap();
    assert_eq!(pairs.len(), 1, "nothing else was stored: {pairs:?}");
}

async fn unknown_keyspace(cluster: &Cluster) {
    let config = tikv_client::Config::default().with_keyspace("nowhere");
    let error = match tokio::time::timeout(
        Duration::from_secs(20),
        tikv_client::RawClient::new_with_config(cluster.endpoints(), config),
    )
    .await
    {
        Ok(result) => result.err().expect("there is no such keyspace").to_string(),
        Err(_) => panic!("an unknown keyspace is not refused"),
    };
    assert!(error.contains("nowhere"), "{error}");
}

async fn oversized(cluster: &Cluster) {
    let client = tikv_client::RawClient::new(cluster.endpoints()).await.unwrap();
    let error = client.put(vec![b'k'; 64 << 10], "v").await.expect_err("the key is too long").to_string();
    assert!(error.contains("limit") || error.contains("large"), "{error}");
    let error =
        client.put("big".to_owned(), vec![b'v'; 16 << 20]).await.expect_err("the value is too large").to_string();
    assert!(error.contains("limit") || error.contains("large"), "{error}");
}

async fn wrong_region_or_store(cluster: &Cluster) {
    let info = cluster.admin().locate(b"kept").await.unwrap();
    let region = info.region.unwrap();
    let epoch = region.epoch.unwrap();
    let good = kvrpcpb::Context {
        region_id: region.id,
        region_epoch: Some(metapb::RegionEpoch { conf_ver: epoch.conf_ver, version: epoch.version }),
        peer: Some(metapb::Peer { id: region.peers[0].id, store_id: 1, ..Default::default() }),
        ..Default::default()
    };
    assert!(get(cluster, good, b"kept").await.region_error.is_none());

    let mut wrong_epoch = good;
    wrong_epoch.region_epoch = Some(metapb::RegionEpoch { conf_ver: epoch.conf_ver, version: epoch.version + 1 });
    let error = get(cluster, wrong_epoch, b"kept").await.region_error.expect("the epoch is wrong");
    let current = error.epoch_not_match.expect("and that is what it says").current_regions;
    assert_eq!(current[0].id, region.id, "the error tells how the region stands");

    let mut wrong_store = good;
    wrong_store.peer = Some(metapb::Peer { id: region.peers[0].id, store_id: 7, ..Default::default() });
    let error = get(cluster, wrong_store, b"kept").await.region_error.expect("the store is wrong");
    let mismatch = error.store_not_match.expect("and that is what it says");
    assert_eq!((mismatch.request_store_id, mismatch.actual_store_id), (7, 1));

    let mut wrong_region = good;
    wrong_region.region_id = 999_999;
    let error = get(cluster, wrong_region, b"kept").await.region_error.expect("there is no such region");
    assert_eq!(error.region_not_found.expect("and that is what it says").region_id, 999_999);

    let error = get(cluster, good, b"\xff\xff").await.region_error.expect("the key lies elsewhere");
    assert_eq!(error.key_not_in_region.expect("and that is what it says").region_id, region.id);
}

fn garbage(cluster: &Cluster) {
    let address = &cluster.stores[0].address;
    let mut seed = 1u64;
    let mut bytes = vec![0; 4096];
    for round in 0..20 {
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8;
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = udp.send_to(&bytes[..1200.min(60 * (round + 1))], address);
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        if round % 2 == 0 {
            let _ = tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        let _ = tcp.write_all(&bytes);
        let _ = tcp.read(&mut [0; 256]);
    }
}

fn second_process(cluster: &Cluster) {
    let dir = cluster.stores[0].dir.to_str().unwrap().to_owned();
    let port = common::free_port();
    let listen = format!("127.0.0.1:{port}");
    let (_, error, ok) = flotilla(&["serve", "--data-dir", &dir, "--listen", &listen], cluster.folder.path());
    assert!(!ok && error.contains("in use"), "{error}");
}

struct Deaf;

impl Handler for Deaf {
    fn frame(&self, _: u64, _: u8, _: Bytes) {}
    fn call(&self, _: CallerId, _: StoreRequest) -> BoxFuture<StoreResponse> {
        Box::pin(async { StoreResponse::default() })
    }
    fn snapshot(&self, _: u64, _: SnapshotHeader, _: SnapshotChunks) -> BoxFuture<Result<(), String>> {
        Box::pin(async { Err("deaf".to_owned()) })
    }
    fn unreachable(&self, _: u64) {}
    fn connected(&self, _: u64, _: &str) {}
}

async fn stranger(authority: &Authority, cluster_id: u64, target: &str) -> String {
    let credentials = authority.issue_store(&["127.0.0.1".to_owned()]).unwrap();
    let options = Options::new("127.0.0.1:0".parse().unwrap(), "127.0.0.1:1", credentials);
    let transport = Transport::start(options, Arc::new(Deaf)).await.unwrap();
    transport.set_identity(LocalIdentity { cluster_id, store_id: 77 });
    transport.set_address(1, target);
    let frame = Frame::default().encode_to_vec();
    let _ = transport.send_frame(1, 0, frame.into());
    let request = PlacementRequest { reserved: 0, request: Some(placement_request::Request::AllocIds(1)) };
    let request = StoreRequest { request: Some(store_request::Request::Placement(request)) };
    let error =
        transport.call(1, request, Duration::from_secs(5)).await.expect_err("strangers are not answered").to_string();
    assert!(!transport.is_connected(1), "strangers are not connected");
    transport.shutdown().await;
    error
}

/// A peer without a certificate of the cluster's authority, and a store of another cluster that has one, cannot say a word.
async fn strangers(cluster: &Cluster) {
    let target = &cluster.stores[0].address;
    let cluster_id = cluster.admin().cluster_status().await.unwrap().info.unwrap().cluster_id;
    let error = stranger(&Authority::generate().unwrap(), cluster_id, target).await;
    assert!(error.contains("certificate") || error.contains("connect"), "{error}");
    let error = stranger(&cluster.authority, cluster_id ^ 1, target).await;
    assert!(error.contains("cluster"), "{error}");
}

#[test]
fn an_unknown_configuration_key_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.toml"), "[raft]\ntick_milliseconds = 7\n").unwrap();
    let (_, error, ok) = flotilla(&["serve", "--config", "store.toml", "--check-config"], folder.path());
    assert!(!ok && error.contains("tick_milliseconds") && error.contains("line 2"), "{error}");
    assert!(!folder.path().join("flotilla-data").exists(), "nothing was made");
}

#[test]
fn joining_nobody_is_an_error_that_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", common::free_port());
    let (_, error, ok) =
        flotilla(&["serve", "--data-dir", "d", "--listen", &listen, "--join", "127.0.0.1:9"], folder.path());
    assert!(!ok && error.contains("certificate"), "without a certificate there is nothing to join with: {error}");
}

#[test]
fn the_command_exists() {
    let output = std::process::Command::new(FLOTILLA).arg("--version").output().unwrap();
    assert!(output.status.success());
}

/// A store whose folder is an old copy has forgotten votes and entries that it promised: it must not go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_an_old_copy_of_its_folder_stops() {
    let mut cluster = Cluster::start(3).await;
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let raw = client.raw();
    raw.put("kept", "old", None).await.unwrap();
    cluster.wait_until_equal().await;

    let copy = cluster.folder.path().join("copy");
    cluster.stores[2].kill();
    copy_folder(&cluster.stores[2].dir, &copy);
    cluster.stores[2].start();
    for n in 0..50 {
        raw.put("kept", format!("new {n}"), None).await.unwrap();
    }
    cluster.wait_until_equal().await;

    cluster.stores[2].kill();
    std::fs::remove_dir_all(&cluster.stores[2].dir).unwrap();
    std::fs::rename(&copy, &cluster.stores[2].dir).unwrap();
    cluster.stores[2].start();
    let status = cluster.stores[2].wait().await;
    let log = cluster.stores[2].log_tail();
    assert_eq!(status.code(), Some(70), "{log}");
    assert!(log.contains("join again with an empty folder"), "{log}");
    assert_eq!(raw.get("kept").await.unwrap().as_deref(), Some(&b"new 49"[..]), "the others go on");
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
