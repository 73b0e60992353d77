use alloc::{string::String, vec};

use bytes::Bytes;
use flotilla_proto::store::{Ailing, Epoch, Peer};

use super::*;
use crate::report::Leader;

/// A report of region `id` with the keys [start, end), led by its peer on `store_id`, which has the id of the store.
fn report(id: u64, start: &str, end: &str, conf_ver: u64, version: u64, store_id: u64) -> Report {
    let peers = (1..=3).map(|n| Peer { id: n, store_id: n, role: 0 }).collect();
    let region = Region {
        id,
        start_key: Bytes::copy_from_slice(start.as_bytes()),
        end_key: Bytes::copy_from_slice(end.as_bytes()),
        epoch: Some(Epoch { conf_ver, version }),
        peers,
        space: Space::User as i32,
    };
    Report { region, leader: Leader { peer_id: store_id, store_id, term: 5 }, ailing: Ailing::default() }
}

fn put(directory: &mut Directory, report: Report) -> Option<Change> {
    directory.put(report, 0, |_, _| Vec::new())
}

fn find(directory: &Directory, key: &str) -> Option<(u64, u64)> {
    let region = directory.find(Space::User, &Bytes::copy_from_slice(key.as_bytes()))?.region?;
    Some((region.id, report::epoch(&region).version))
}

fn ids(directory: &Directory, start: &str, end: &str, limit: usize, store_id: u64) -> Vec<u64> {
    let key = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let found = directory.scan(Space::User, &key(start), &key(end), limit, store_id);
    found.into_iter().filter_map(|info| info.region).map(|region| region.id).collect()
}

fn deletes(change: &Change) -> Vec<&[u8]> {
    change.writes.iter().filter(|write| write.value.is_none()).map(|write| write.key.as_slice()).collect()
}

#[test]
fn older_reports_and_older_leaders_are_ignored() {
    let mut directory = Directory::default();
    assert!(put(&mut directory, report(2, "", "", 3, 3, 1)).is_some());
    assert_eq!(put(&mut directory, report(2, "", "", 2, 3, 1)), None);
    assert_eq!(put(&mut directory, report(2, "", "", 3, 2, 1)), None);
    assert_eq!(put(&mut directory, report(2, "", "", 4, 2, 1)), None);
    let mut old_leader = report(2, "", "", 3, 3, 2);
    old_leader.leader.term = 4;
    assert_eq!(put(&mut directory, old_leader), None);
    assert_eq!(directory.leaders_on(1), 1);
    assert!(put(&mut directory, report(2, "", "", 3, 3, 2)).is_some());
    assert_eq!((directory.leaders_on(1), directory.leaders_on(2)), (0, 1));
}

#[test]
fn only_ranges_and_peers_are_written() {
    let mut directory = Directory::default();
    assert_eq!(put(&mut directory, report(2, "", "", 1, 1, 1)).expect("new").writes.len(), 1);
    let mut lagging = report(2, "", "", 1, 1, 2);
    lagging.ailing.pending = vec![3];
    assert_eq!(put(&mut directory, lagging).expect("newer leader").writes, []);
}

#[test]
fn a_split_leaves_no_key_without_an_answer() {
    let mut directory = Directory::default();
    put(&mut directory, report(2, "", "", 1, 1, 1));
    put(&mut directory, report(2, "", "m", 1, 2, 1));
    assert_eq!(find(&directory, "a"), Some((2, 2)));
    assert_eq!(find(&directory, "x"), Some((2, 1)), "what was last known of the hole");
    put(&mut directory, report(4, "m", "", 1, 2, 1));
    assert_eq!(find(&directory, "x"), Some((4, 2)));
}

#[test]
fn a_child_may_report_before_its_parent() {
    let mut directory = Directory::default();
    put(&mut directory, report(2, "", "", 1, 1, 1));
    let change = put(&mut directory, report(4, "m", "", 1, 2, 1)).expect("newer");
    assert_eq!(change.displaced, [2]);
    assert_eq!(deletes(&change), [keys::region_key(2).as_slice()]);
    assert_eq!(find(&directory, "a"), Some((2, 1)), "what was last known of the hole");
    assert!(directory.get(2).is_none());
    put(&mut directory, report(2, "", "m", 1, 2, 1));
    assert_eq!(find(&directory, "a"), Some((2, 2)));
    assert_eq!(put(&mut directory, report(2, "", "", 1, 1, 1)), None);
}

#[test]
fn a_merge_displaces_the_source_and_its_late_report_changes_nothing() {
    let mut directory = Directory::default();
    put(&mut directory, report(2, "", "m", 1, 2, 1));
    put(&mut directory, report(4, "m", "", 1, 2, 2));
    assert_eq!(put(&mut directory, report(2, "", "", 1, 3, 1)).expect("merged").displaced, [4]);
    assert_eq!(put(&mut directory, report(4, "m", "", 1, 2, 2)), None);
    assert_eq!((directory.len(), directory.leaders_on(2)), (1, 0));
}

#[test]
fn neighbours_and_scans() {
    let mut directory = Directory::default();
    for (id, start, end) in [(2, "", "c"), (3, "c", "f"), (4, "f", "k"), (5, "p", "")] {
        put(&mut directory, report(id, start, end, 1, 2, 1));
    }
    let previous = |key: &str| {
        let found = directory.find_previous(Space::User, &Bytes::copy_from_slice(key.as_bytes()))?;
        found.region.map(|region| region.id)
    };
    assert_eq!((previous("a"), previous("c"), previous("g")), (None, Some(2), Some(3)));
    assert_eq!((previous("m"), previous("z")), (None, None), "a hole, and behind a hole");
    assert_eq!(find(&directory, "m"), None);
    assert_eq!(ids(&directory, "", "", 10, 0), [2, 3, 4, 5]);
    assert_eq!(ids(&directory, "d", "f", 10, 0), [3]);
    assert_eq!(ids(&directory, "m", "", 10, 0), [5]);
    assert_eq!(ids(&directory, "d", "", 2, 3), [3, 4]);
    assert_eq!(ids(&directory, "", "", 10, 9), Vec::<u64>::new());
}

#[test]
fn spaces_are_apart() {
    let mut directory = Directory::default();
    let mut system = report(1, "", "", 1, 1, 1);
    system.region.space = Space::System as i32;
    put(&mut directory, system);
    put(&mut directory, report(2, "", "", 1, 1, 1));
    assert_eq!(find(&directory, "a"), Some((2, 1)));
    let system = directory.find(Space::System, &Bytes::from_static(b"placement/ids")).expect("known");
    assert_eq!(system.region.expect("there").id, 1);
    assert!(directory.find_previous(Space::System, &Bytes::new()).is_none());
    assert_eq!(directory.leaders_on(1), 1, "the system region does not count");
}

#[test]
fn a_full_report_takes_the_lead_of_what_it_does_not_name() {
    let mut directory = Directory::default();
    put(&mut directory, report(2, "", "m", 1, 2, 1));
    put(&mut directory, report(4, "m", "", 1, 2, 1));
    assert_eq!(directory.keep_led(1, &BTreeSet::from([4])), [2]);
    assert_eq!(directory.leaders_on(1), 1);
    assert_eq!(directory.get(2).expect("still there").leader, None);
    assert_eq!(directory.keep_led(7, &BTreeSet::new()), Vec::<u64>::new());
}

#[test]
fn loading_keeps_the_newest_of_what_overlaps() {
    let mut directory = Directory::default();
    let regions =
        [report(2, "", "", 1, 1, 1), report(4, "m", "", 1, 3, 1), report(5, "", "g", 1, 2, 1)].map(|r| r.region);
    let writes = directory.load(regions.to_vec(), 0);
    assert_eq!(writes, [Write::delete(keys::region_key(2))]);
    assert_eq!(ids(&directory, "", "", 10, 0), [5, 4]);
}

#[test]
fn ghosts_are_bounded() {
    let mut directory = Directory::default();
    for n in 0..=limits::GHOSTS_MAX as u64 + 1 {
        let key: String = alloc::format!("{n:05}");
        put(&mut directory, report(2, &key, "", 1, n + 1, 1));
    }
    assert_eq!(find(&directory, "00000"), None, "the oldest went");
    assert!(find(&directory, "00001").is_some());
}
