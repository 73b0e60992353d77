//! The raw client against a cluster in memory.

mod fake_cluster;

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use fake_cluster::{Fake, Mishap};
use flotilla_client::{Client, Error, Options, Pair, Raw};
use flotilla_proto::memcomparable;

fn pair(key: &str, value: &str) -> Pair {
    Pair { key: key.to_owned().into(), value: value.to_owned().into() }
}

async fn connect(fake: &Fake, options: Options) -> Client {
    Client::connect_with([fake.addresses[0].clone()], options).await.unwrap()
}

/// Puts 500 keys, then compares scans of many ranges, limits and both directions with what an ordered map says.
async fn scans_agree_with_a_map(raw: &Raw) {
    let model: BTreeMap<String, String> =
        (0..1500).map(|n| (format!("k{:04}", n * 7 % 1500), format!("v{n}"))).collect();
    raw.batch_put(model.iter().map(|(key, value)| pair(key, value)), None).await.unwrap();
    let ends = ["", "a", "k0000", "k0123x", "k0500", "k1000", "k1499", "z"];
    for start in ends {
        for end in ends {
            let inside: Vec<Pair> = model
                .iter()
                .filter(|(key, _)| key.as_str() >= start && (end.is_empty() || key.as_str() < end))
                .map(|(key, value)| pair(key, value))
                .collect();
            for limit in [0, 1, 7, 512, 600, usize::MAX] {
                let up = raw.scan(start, end, limit).await.unwrap();
                assert_eq!(up[..], inside[..limit.min(inside.len())], "{start:?}..{end:?} limit {limit}");
                let down = raw.scan_reverse(start, end, limit).await.unwrap();
                let expected: Vec<_> = inside.iter().rev().take(limit).cloned().collect();
                assert_eq!(down, expected, "{start:?}..{end:?} reverse, limit {limit}");
            }
        }
    }
}

#[tokio::test]
async fn scans_cross_regions() {
    let fake = Fake::start(3).await;
    fake.split(&[b"a", b"k0100", b"k0101", b"k0500", b"k1200x", b"x"]);
    scans_agree_with_a_map(&connect(&fake, Options::default()).await.raw()).await;
}

#[tokio::test]
async fn scans_of_a_keyspace_cross_regions_split_anywhere() {
    let fake = Fake::start(3).await;
    let at = |key: &[u8]| memcomparable::encode(&[b"r\0\0\0", key].concat());
    let bounds = [at(b""), at(b"k0100"), at(b"k0500"), memcomparable::encode(b"r\0\0\x01")];
    let mut keys: Vec<&[u8]> = bounds.iter().map(|key| &key[..]).collect();
    // No encodings: in the middle of a group, and with a marker that does not fit.
    keys.push(b"r\0\0\0k08");
    keys.push(b"r\0\0\0k100\xff5\0\0\0\0\0\0\0\x33tail");
    fake.split(&keys);
    let client = connect(&fake, Options::default()).await;
    // Keys outside of the keyspace are not seen.
    client.raw().put("q", "outside", None).await.unwrap();
    client.raw().put("z", "outside", None).await.unwrap();
    scans_agree_with_a_map(&client.keyspace("DEFAULT").await.unwrap()).await;
    assert!(matches!(client.keyspace("nobody's").await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn batches_follow_splits_and_leaders() {
    let fake = Fake::start(3).await;
    let raw = connect(&fake, Options::default()).await.raw();
    raw.put("a", "warm the cache", None).await.unwrap();
    fake.split(&[b"c", b"e"]);
    fake.state.lock().leaders.insert(1, 3);
    let pairs: Vec<Pair> = ["a", "b", "c", "d", "e", "f"].map(|key| pair(key, key)).into();
    raw.batch_put(pairs.clone(), None).await.unwrap();
    fake.split(&[b"b"]);
    let mut found = raw.batch_get(["f", "e", "d", "c", "b", "a", "none"]).await.unwrap();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(found, pairs);
    raw.batch_delete(["a", "f"]).await.unwrap();
    raw.delete("b").await.unwrap();
    assert_eq!(raw.get("a").await.unwrap(), None);
    assert_eq!(raw.get("c").await.unwrap(), Some(Bytes::from_static(b"c")));
    raw.delete_range("", "").await.unwrap();
    assert!(fake.state.lock().data.is_empty());
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_unknown() {
    let fake = Fake::start(1).await;
    let raw = connect(&fake, Options::default()).await.raw();
    fake.state.lock().mishaps.push(Mishap::LostAnswer);
    assert!(matches!(raw.put("k", "v", None).await, Err(Error::Unknown(_))));
    assert_eq!(raw.get("k").await.unwrap(), Some(Bytes::from_static(b"v")), "it did take place");
}

#[tokio::test]
async fn a_put_is_repeated_when_asked_for_but_compare_and_swap_is_not() {
    let fake = Fake::start(1).await;
    let raw = connect(&fake, Options { retry_unknown: true, ..Options::default() }).await.raw();
    fake.state.lock().mishaps.push(Mishap::LostAnswer);
    raw.put("k", "v", None).await.unwrap();
    fake.state.lock().mishaps.push(Mishap::LostAnswer);
    let before = fake.requests.load(Ordering::SeqCst);
    let swap = raw.compare_and_swap("k", Some("v".into()), "w", None).await;
    assert!(matches!(swap, Err(Error::Unknown(_))));
    assert_eq!(fake.requests.load(Ordering::SeqCst), before + 1);
    let swap = raw.compare_and_swap("k", Some("v".into()), "x", None).await.unwrap();
    assert!(!swap.swapped);
    assert_eq!(swap.previous.as_deref(), Some(&b"w"[..]));
}

#[tokio::test]
async fn a_refused_put_is_invalid_and_a_busy_store_is_waited_for() {
    let fake = Fake::start(1).await;
    let raw = connect(&fake, Options::default()).await.raw();
    fake.state.lock().mishaps.push(Mishap::RefusedByStatus);
    assert!(matches!(raw.put("k", "v", None).await, Err(Error::Invalid(_))));
    fake.state.lock().mishaps.extend([Mishap::Busy, Mishap::Busy]);
    raw.put("k", "v", None).await.unwrap();
}

#[tokio::test]
async fn nothing_sent_is_a_definite_failure() {
    let fake = Fake::start(2).await;
    let client = connect(&fake, Options { deadline: Duration::from_millis(300), ..Options::default() }).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Client::connect_with(
        [nowhere.to_string()],
        Options { deadline: Duration::from_millis(100), ..Options::default() },
    );
    assert!(matches!(gone.await, Err(Error::Failed(_))));
    // No store leads: each points at the other.
    fake.state.lock().leaders.insert(1, 9);
    assert!(matches!(client.raw().put("k", "v", None).await, Err(Error::Failed(_))));
}
