//! Random histories against maps in memory.

use std::collections::BTreeMap;

use flotilla_engine::{Direction, Engine, Options, Snapshot};
use flotilla_proto::disk::{Cf, WriteBatch};
use proptest::prelude::*;

use crate::collect;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Model = [Map; 4];

#[derive(Clone, Debug)]
enum Change {
    Put(Cf, Vec<u8>, u16),
    Delete(Cf, Vec<u8>),
    DeleteRange(Cf, Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    Sync,
    Flush,
    Reopen,
    Snapshot,
    Clear(Vec<u8>, Vec<u8>),
    /// Replaces a range by a snapshot with these keys.
    Install(Vec<u8>, Vec<u8>, Vec<(Cf, Vec<u8>, u16)>),
    Scan(Cf, Vec<u8>, Vec<u8>),
}

fn cf() -> impl Strategy<Value = Cf> {
    proptest::sample::select(&Cf::ALL[..])
}

/// Few keys, so that they meet.
fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0u8..4, 1..4)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (cf(), key(), any::<u16>()).prop_map(|(cf, key, value)| Change::Put(cf, key, value)),
        2 => (cf(), key()).prop_map(|(cf, key)| Change::Delete(cf, key)),
        1 => (cf(), key(), key()).prop_map(|(cf, start, end)| Change::DeleteRange(cf, start, end)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let data = proptest::sample::select(&Cf::DATA[..]);
    prop_oneof![
        8 => proptest::collection::vec(change(), 0..12).prop_map(Step::Write),
        1 => Just(Step::Sync),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
        1 => (key(), key()).prop_map(|(start, end)| Step::Clear(start, end)),
        1 => (key(), key(), proptest::collection::vec((data, key(), any::<u16>()), 0..9))
            .prop_map(|(start, end, pairs)| Step::Install(start, end, pairs)),
        3 => (cf(), key(), key()).prop_map(|(cf, start, end)| Step::Scan(cf, start, end)),
    ]
}

fn value(number: u16) -> Vec<u8> {
    number.to_string().repeat(usize::from(number % 50)).into_bytes()
}

fn remove(map: &mut Map, start: &[u8], end: &[u8]) {
    map.retain(|key, _| !(start <= key.as_slice() && key.as_slice() < end));
}

fn pairs<'map>(
    map: &'map Map,
    start: &'map [u8],
    end: &'map [u8],
) -> impl DoubleEndedIterator<Item = (Vec<u8>, Vec<u8>)> + 'map {
    let inside =
        move |(key, _): &(&Vec<u8>, &Vec<u8>)| start <= key.as_slice() && (end.is_empty() || key.as_slice() < end);
    map.iter().filter(inside).map(|(key, value)| (key.clone(), value.clone()))
}

fn write(engine: &Engine, model: &mut Model, changes: Vec<Change>) {
    let mut batch = WriteBatch::new();
    for change in changes {
        match change {
            Change::Put(cf, key, number) => {
                model[cf as usize].insert(key.clone(), value(number));
                batch.put(cf, key, value(number));
            }
            Change::Delete(cf, key) => {
                model[cf as usize].remove(&key);
                batch.delete(cf, key);
            }
            Change::DeleteRange(cf, start, end) => {
                remove(&mut model[cf as usize], &start, &end);
                batch.delete_range(cf, start, end);
            }
        }
    }
    engine.write(&batch).unwrap();
}

fn install(
    engine: &Engine,
    model: &mut Model,
    folder: &std::path::Path,
    (start, end): (&[u8], &[u8]),
    new: &[(Cf, Vec<u8>, u16)],
) {
    let mut maps = Model::default();
    for (cf, key, number) in new {
        if start <= key.as_slice() && key.as_slice() < end {
            maps[*cf as usize].insert(key.clone(), value(*number));
        }
    }
    let mut writer = engine.snapshot_writer(folder).unwrap();
    for cf in Cf::DATA {
        maps[cf as usize].iter().for_each(|(key, value)| writer.add(cf, key, value).unwrap());
        remove(&mut model[cf as usize], start, end);
        model[cf as usize].append(&mut maps[cf as usize].clone());
    }
    writer.finish().unwrap();
    engine.clear_range(start, end).unwrap();
    engine.ingest(folder).unwrap();
}

fn check(snapshot: &Snapshot, model: &Model) {
    for cf in Cf::ALL {
        let expected: Vec<_> = pairs(&model[cf as usize], b"", b"").collect();
        assert_eq!(collect(snapshot.scan(cf, b"", b"", Direction::Forward)), expected, "column family {}", cf.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_maps(steps in proptest::collection::vec(step(), 1..60), plain in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { plain_snapshot_bytes_max: if plain { 1 << 10 } else { 0 }, ..Options::small() };
        let data = dir.path().join("data");
        let mut engine = Engine::open(&data, &options).unwrap();
        let mut model = Model::default();
        let mut snapshots: Vec<(Snapshot, Model)> = Vec::new();
        for step in steps {
            match step {
                Step::Write(changes) => write(&engine, &mut model, changes),
                Step::Sync => engine.sync().unwrap(),
                Step::Flush => engine.flush().unwrap(),
                Step::Snapshot => snapshots.push((engine.snapshot(), model.clone())),
                Step::Reopen => {
                    snapshots.drain(..).for_each(|(snapshot, model)| check(&snapshot, &model));
                    drop(engine);
                    engine = Engine::open(&data, &options).unwrap();
                    prop_assert_eq!(engine.recovery().torn_bytes, 0);
                }
                // Clearing does not respect snapshots.
                Step::Clear(start, end) => {
                    snapshots.drain(..).for_each(|(snapshot, model)| check(&snapshot, &model));
                    Cf::DATA.into_iter().for_each(|cf| remove(&mut model[cf as usize], &start, &end));
                    engine.clear_range(&start, &end).unwrap();
                }
                Step::Install(start, end, new) => {
                    snapshots.drain(..).for_each(|(snapshot, model)| check(&snapshot, &model));
                    install(&engine, &mut model, &dir.path().join("snapshot"), (&start, &end), &new);
                }
                Step::Scan(cf, start, end) => {
                    let map = &model[cf as usize];
                    let forward: Vec<_> = pairs(map, &start, &end).collect();
                    let reverse: Vec<_> = pairs(map, &start, &end).rev().collect();
                    prop_assert_eq!(collect(engine.scan(cf, &start, &end, Direction::Forward)), forward);
                    prop_assert_eq!(collect(engine.scan(cf, &start, &end, Direction::Reverse)), reverse);
                    let found = engine.get(cf, &start).unwrap().map(|value| value.to_vec());
                    prop_assert_eq!(found.as_ref(), map.get(&start));
                }
            }
        }
        snapshots.drain(..).for_each(|(snapshot, model)| check(&snapshot, &model));
        check(&engine.snapshot(), &model);
    }
}
