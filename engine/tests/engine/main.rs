//! The engine from outside, over real folders. One binary, because each would link all of RocksDB.

mod access;
mod crash;
mod install;
mod model;

use std::path::Path;

use flotilla_engine::{Direction, Engine, EngineError, Options, Scan};
use flotilla_proto::disk::{Cf, WriteBatch};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn open(dir: &Path) -> Engine {
    Engine::open(dir, &Options::small()).expect("the engine opens")
}

fn open_error(dir: &Path) -> EngineError {
    Engine::open(dir, &Options::small()).expect_err("the engine refuses to open")
}

fn batch(pairs: &[(Cf, &str, &str)]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for (cf, key, value) in pairs {
        batch.put(*cf, key.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    batch
}

fn put(engine: &Engine, cf: Cf, key: &str, value: &str) {
    engine.write(&batch(&[(cf, key, value)])).expect("the write succeeds");
}

fn collect(scan: Scan) -> Pairs {
    scan.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect::<Result<_, _>>()
        .expect("the scan succeeds")
}

fn all(engine: &Engine, cf: Cf) -> Pairs {
    collect(engine.scan(cf, b"", b"", Direction::Forward))
}
