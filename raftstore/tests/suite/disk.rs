//! What raftstore demands of a store's disk, written once: `sim/tests/disk.rs` runs it on the simulated disk, and `server/src/disk_tests.rs`
//! on RocksDB. Where the two differ, the simulator would prove things of a disk that nobody has.

use bytes::Bytes;
use flotilla_proto::{
    disk::{
        Cf, WriteBatch, apply_state_key, data_end_key, data_key, hard_state_key, log_key, log_range, peer_state_key,
        truncated_state_key,
    },
    flotilla::raft as wire_raft,
    store::{ApplyState, Epoch, Peer, PeerRole, PeerState, PeerStatus, Region, Space, TruncatedState},
};
use flotilla_raft::{Entry, Payload};
use flotilla_raftstore::{
    apply::{finish_destroy, finish_install, put_initial_states},
    disk::{ApplyDisk, LogReader},
    recover::Recovered,
    wire,
};
use prost::Message as _;

/// A disk under test, and what befalls it.
pub trait Bench {
    /// What raftstore gets.
    type Disk: ApplyDisk + LogReader;
    /// The disk in use.
    fn disk(&mut self) -> &mut Self::Disk;
    /// As the log writer writes: a batch, not durable yet.
    fn write(&mut self, batch: WriteBatch);
    /// As the log writer makes durable all that was written.
    fn sync(&mut self);
    /// Keys and values in [start, end), in order.
    fn scan(&mut self, cf: Cf, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Bytes)>;
    /// A received snapshot, whole and durable.
    fn put_snapshot(&mut self, dir: &str, pairs: &[(Cf, Vec<u8>, Bytes)]);
    /// Whether a received snapshot lies there.
    fn has_snapshot(&mut self, dir: &str) -> bool;
    /// The process ends and starts again, without recovery.
    fn kill(&mut self);
    /// The power fails: nothing that was not synced may be relied on. Without recovery.
    fn power_cut(&mut self);
    /// What a start finds, after it has finished what was interrupted.
    fn recover(&mut self) -> Recovered;
}

const REGION: u64 = 7;

fn region() -> Region {
    Region {
        id: REGION,
        start_key: Bytes::from_static(b"b"),
        end_key: Bytes::from_static(b"m"),
        epoch: Some(Epoch { conf_ver: 1, version: 1 }),
        peers: vec![Peer { id: 70, store_id: 1, role: PeerRole::Voter as i32 }],
        space: Space::User as i32,
    }
}

fn key(name: &str) -> Vec<u8> {
    data_key(Space::User, name.as_bytes())
}

fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn batch(fill: impl FnOnce(&mut WriteBatch)) -> WriteBatch {
    let mut batch = WriteBatch::new();
    fill(&mut batch);
    batch
}

fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    Entry { index, term, payload: Payload::Normal(vec![index as u8; bytes].into()) }
}

fn put_entry(batch: &mut WriteBatch, entry: Entry) {
    batch.put(Cf::Raft, log_key(REGION, entry.index), wire::entry_to_wire(entry).encode_to_vec());
}

fn put_hard_state(batch: &mut WriteBatch, term: u64, vote: u64) {
    batch.put_message(Cf::Raft, hard_state_key(REGION), &wire_raft::HardState { term, vote, commit: 0 });
}

fn begin<B: Bench>(bench: &mut B) {
    bench.write(batch(|batch| put_initial_states(batch, &region(), 70)));
    bench.sync();
}

fn indexes(entries: &[Entry]) -> Vec<(u64, u64)> {
    entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

fn log<B: Bench>(bench: &mut B) -> Vec<u64> {
    let (start, end) = log_range(REGION);
    let pairs = bench.scan(Cf::Raft, &start, &end);
    pairs.iter().map(|(_, value)| wire_raft::Entry::decode(value.clone()).unwrap().index).collect()
}

/// All tests, each on a disk of its own.
pub fn all<B: Bench>(new: impl Fn() -> B) {
    let tests: [fn(&mut B); 12] = [
        a_batch_is_seen_at_once_and_whole,
        the_last_operation_on_a_key_wins,
        ranges_end_before_their_end,
        a_log_is_read_in_pieces_but_at_least_one_entry,
        a_log_is_overwritten_and_cut,
        a_kill_loses_nothing_that_was_written,
        a_power_cut_loses_nothing_that_was_synced,
        a_power_cut_leaves_a_prefix,
        recovery_finds_term_vote_log_and_applied_index,
        clearing_spares_neighbours_and_lasts,
        a_snapshot_is_put_in_place_again_after_a_power_cut,
        a_destroyed_peer_is_cleared_again_after_a_power_cut,
    ];
    for test in tests {
        test(&mut new());
    }
}

fn a_batch_is_seen_at_once_and_whole<B: Bench>(bench: &mut B) {
    bench.disk().write(batch(|batch| {
        batch.put(Cf::Default, key("c"), value("1"));
        batch.put(Cf::Lock, key("c"), value("2"));
        batch.put(Cf::Write, key("c"), value("3"));
        batch.put_message(Cf::Raft, apply_state_key(REGION), &ApplyState { index: 6, term: 5 });
    }));
    let disk = bench.disk();
    assert_eq!(disk.get(Cf::Default, &key("c")), Some(value("1")));
    assert_eq!(disk.get(Cf::Lock, &key("c")), Some(value("2")));
    assert_eq!(disk.get(Cf::Write, &key("c")), Some(value("3")));
    assert!(disk.get(Cf::Raft, &apply_state_key(REGION)).is_some());
    assert_eq!(disk.get(Cf::Default, &key("d")), None);
}

fn the_last_operation_on_a_key_wins<B: Bench>(bench: &mut B) {
    bench.disk().write(batch(|batch| batch.put(Cf::Default, key("c"), value("old"))));
    bench.disk().write(batch(|batch| {
        batch.delete(Cf::Default, key("c"));
        batch.put(Cf::Default, key("c"), value("new"));
        batch.put(Cf::Default, key("d"), value("gone"));
        batch.delete_range(Cf::Default, key("d"), key("e"));
        batch.put(Cf::Default, key("dd"), Bytes::new());
    }));
    assert_eq!(bench.disk().get(Cf::Default, &key("c")), Some(value("new")));
    assert_eq!(bench.disk().get(Cf::Default, &key("d")), None);
    assert_eq!(bench.disk().get(Cf::Default, &key("dd")), Some(Bytes::new()), "an empty value is one");
}

fn ranges_end_before_their_end<B: Bench>(bench: &mut B) {
    bench.disk().write(batch(|batch| {
        for name in ["a", "b", "c", "cc", "d"] {
            batch.put(Cf::Default, key(name), value(name));
        }
    }));
    let names = |bench: &mut B, start: &str, end: &[u8]| {
        let pairs = bench.scan(Cf::Default, &key(start), end);
        pairs.iter().map(|(key, _)| String::from_utf8(key[1..].to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(bench, "b", &key("d")), ["b", "c", "cc"]);
    assert_eq!(names(bench, "bb", &data_end_key(Space::User, b"")), ["c", "cc", "d"]);
    bench.disk().write(batch(|batch| batch.delete_range(Cf::Default, key("b"), key("cc"))));
    assert_eq!(names(bench, "", &data_end_key(Space::User, b"")), ["a", "cc", "d"]);
}

fn a_log_is_read_in_pieces_but_at_least_one_entry<B: Bench>(bench: &mut B) {
    bench.write(batch(|batch| (6..=9).for_each(|index| put_entry(batch, entry(index, 5, 1_000)))));
    let disk = bench.disk();
    assert_eq!(indexes(&disk.entries(REGION, 6, 10, u64::MAX)), [(6, 5), (7, 5), (8, 5), (9, 5)]);
    assert_eq!(indexes(&disk.entries(REGION, 7, 9, u64::MAX)), [(7, 5), (8, 5)]);
    assert_eq!(indexes(&disk.entries(REGION, 6, 10, 0)), [(6, 5)]);
    let some = disk.entries(REGION, 6, 10, 2_500);
    assert!((1..=2).contains(&some.len()), "{} entries in 2,500 bytes", some.len());
    assert_eq!(some[0], entry(6, 5, 1_000));
}

fn a_log_is_overwritten_and_cut<B: Bench>(bench: &mut B) {
    bench.write(batch(|batch| (6..=9).for_each(|index| put_entry(batch, entry(index, 5, 10)))));
    bench.write(batch(|batch| {
        put_entry(batch, entry(7, 6, 10));
        batch.delete_range(Cf::Raft, log_key(REGION, 8), log_key(REGION, 10));
    }));
    assert_eq!(indexes(&bench.disk().entries(REGION, 6, 8, u64::MAX)), [(6, 5), (7, 6)]);
    assert_eq!(log(bench), [6, 7]);
    bench.write(batch(|batch| {
        batch.put_message(Cf::Raft, truncated_state_key(REGION), &TruncatedState { index: 6, term: 5 });
        batch.delete_range(Cf::Raft, log_key(REGION, 0), log_key(REGION, 7));
    }));
    assert_eq!(log(bench), [7]);
}

fn a_kill_loses_nothing_that_was_written<B: Bench>(bench: &mut B) {
    begin(bench);
    bench.write(batch(|batch| {
        put_hard_state(batch, 6, 70);
        put_entry(batch, entry(6, 6, 10));
    }));
    bench.disk().write(batch(|batch| batch.put(Cf::Default, key("c"), value("1"))));
    bench.kill();
    assert_eq!(log(bench), [6]);
    assert_eq!(bench.disk().get(Cf::Default, &key("c")), Some(value("1")));
    assert_eq!(bench.recover().peers[0].hard_state.vote, 70);
}

fn a_power_cut_loses_nothing_that_was_synced<B: Bench>(bench: &mut B) {
    begin(bench);
    bench.write(batch(|batch| put_entry(batch, entry(6, 6, 10))));
    bench.sync();
    bench.disk().write(batch(|batch| batch.put(Cf::Default, key("c"), value("1"))));
    bench.disk().sync();
    for _ in 0..3 {
        bench.power_cut();
        assert_eq!(log(bench), [6]);
        assert_eq!(bench.disk().get(Cf::Default, &key("c")), Some(value("1")));
    }
}

/// Log and data share one order: an applied index that survives has its data and its log, and what is lost is lost from the end.
fn a_power_cut_leaves_a_prefix<B: Bench>(bench: &mut B) {
    begin(bench);
    for index in 6..40 {
        bench.write(batch(|batch| put_entry(batch, entry(index, 5, 100))));
        if index == 20 {
            bench.sync();
        }
        bench.disk().write(batch(|batch| {
            batch.put(Cf::Default, key(&format!("c{index}")), value("1"));
            batch.put_message(Cf::Raft, apply_state_key(REGION), &ApplyState { index, term: 5 });
        }));
    }
    bench.power_cut();
    let log = log(bench);
    let last = *log.last().unwrap();
    assert_eq!(log, (6..=last).collect::<Vec<_>>(), "a log without a gap");
    assert!(last >= 20, "synced up to 20, left is {last}");
    let applied = bench.recover().peers[0].applied.index;
    assert!((19..=last).contains(&applied), "applied {applied} of {last}");
    let data = bench.scan(Cf::Default, &key("c"), &key("d"));
    assert_eq!(data.len() as u64, applied - 5, "data and applied index are lost together");
}

fn recovery_finds_term_vote_log_and_applied_index<B: Bench>(bench: &mut B) {
    begin(bench);
    bench.write(batch(|batch| {
        put_hard_state(batch, 8, 71);
        (6..=8).for_each(|index| put_entry(batch, entry(index, 8, 10)));
    }));
    bench.sync();
    bench.disk().write(batch(|batch| {
        batch.put_message(Cf::Raft, apply_state_key(REGION), &ApplyState { index: 7, term: 8 });
    }));
    bench.disk().sync();
    bench.power_cut();
    let recovered = bench.recover();
    let peer = &recovered.peers[0];
    assert_eq!(((*peer.region).clone(), peer.peer_id), (region(), 70));
    assert_eq!((peer.hard_state.term, peer.hard_state.vote), (8, 71));
    assert_eq!(peer.last, ApplyState { index: 8, term: 8 });
    assert_eq!(peer.applied, ApplyState { index: 7, term: 8 });
    assert_eq!(recovered.peers.len(), 1);
}

fn clearing_spares_neighbours_and_lasts<B: Bench>(bench: &mut B) {
    let fill = |bench: &mut B| {
        bench.disk().write(batch(|batch| {
            for cf in Cf::DATA {
                for name in ["a", "b", "lzz", "m"] {
                    batch.put(cf, key(name), value(name));
                }
            }
        }));
    };
    let left = |bench: &mut B, cf| {
        let pairs = bench.scan(cf, &key(""), &data_end_key(Space::User, b""));
        pairs.iter().map(|(_, value)| String::from_utf8(value.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    fill(bench);
    bench.disk().clear(&key("b"), &key("m"));
    for cf in Cf::DATA {
        assert_eq!(left(bench, cf), ["a", "m"]);
    }
    bench.power_cut();
    for cf in Cf::DATA {
        assert!(!left(bench, cf).iter().any(|name| name == "b" || name == "lzz"), "what was cleared stays away");
    }
}

fn installing(dir: &str) -> PeerState {
    PeerState {
        status: PeerStatus::Installing as i32,
        region: Some(region()),
        peer_id: 70,
        snapshot_dir: dir.to_owned(),
        clear_start_key: region().start_key,
        clear_end_key: region().end_key,
        snapshot_state: Some(ApplyState { index: 30, term: 9 }),
        ..PeerState::default()
    }
}

fn a_snapshot_is_put_in_place_again_after_a_power_cut<B: Bench>(bench: &mut B) {
    begin(bench);
    let pairs: Vec<_> = Cf::DATA.into_iter().map(|cf| (cf, key("c"), value("new"))).collect();
    bench.disk().write(batch(|batch| {
        batch.put(Cf::Default, key("c"), value("old"));
        batch.put(Cf::Default, key("d"), value("old"));
        batch.put(Cf::Default, key("x"), value("another region's"));
    }));
    bench.put_snapshot("snap", &pairs);
    bench.disk().write(batch(|batch| {
        batch.put_message(Cf::Raft, peer_state_key(REGION), &installing("snap"));
        batch.put_message(Cf::Raft, truncated_state_key(REGION), &TruncatedState { index: 30, term: 9 });
        put_hard_state(batch, 9, 0);
    }));
    bench.disk().sync();
    // Cleared and ingested once, and the power fails before that is noted.
    bench.disk().clear(&key("b"), &key("m"));
    bench.disk().ingest("snap");
    assert!(bench.has_snapshot("snap"), "the folder stays until the state is durable");
    bench.power_cut();
    let check = |bench: &mut B| {
        let recovered = bench.recover();
        assert_eq!(recovered.peers[0].applied, ApplyState { index: 30, term: 9 });
        for cf in Cf::DATA {
            assert_eq!(bench.disk().get(cf, &key("c")), Some(value("new")));
        }
        assert_eq!(bench.disk().get(Cf::Default, &key("d")), None);
        assert_eq!(bench.disk().get(Cf::Default, &key("x")), Some(value("another region's")));
        assert!(!bench.has_snapshot("snap"));
    };
    check(bench);
    bench.power_cut();
    check(bench);
    // And at one go.
    bench.put_snapshot("next", &pairs);
    finish_install(bench.disk(), &region(), 70, &ApplyState { index: 30, term: 9 }, "next", None);
    bench.power_cut();
    assert!(!bench.has_snapshot("next"));
    check(bench);
}

fn a_destroyed_peer_is_cleared_again_after_a_power_cut<B: Bench>(bench: &mut B) {
    begin(bench);
    let tombstone = PeerState {
        status: PeerStatus::Tombstone as i32,
        region: Some(region()),
        min_peer_id: 71,
        clearing: true,
        ..PeerState::default()
    };
    bench.disk().write(batch(|batch| batch.put(Cf::Default, key("c"), value("1"))));
    bench.disk().write(batch(|batch| {
        batch.put_message(Cf::Raft, peer_state_key(REGION), &tombstone);
        for key in [hard_state_key(REGION), truncated_state_key(REGION), apply_state_key(REGION)] {
            batch.delete(Cf::Raft, key);
        }
        let (start, end) = log_range(REGION);
        batch.delete_range(Cf::Raft, start, end);
    }));
    bench.disk().sync();
    bench.power_cut();
    let recovered = bench.recover();
    assert!(recovered.peers.is_empty());
    assert_eq!(recovered.tombstones.get(&REGION), Some(&71));
    assert_eq!(bench.disk().get(Cf::Default, &key("c")), None);
    finish_destroy(bench.disk(), tombstone);
    bench.power_cut();
    assert_eq!(bench.recover().tombstones.get(&REGION), Some(&71));
}
