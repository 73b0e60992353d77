//! The configuration of a store: a TOML file whose every key has a default.
//!
//! The unit of a number is the last word of its key (`_ms`, `_mib`, `_bytes`, `_ticks`), so that numbers stay numbers. Unknown keys are
//! refused. Flags of the command line are applied to the [`Config`] after it was loaded; then [`Config::validate`] must be called.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// The commented defaults, as `flotilla serve --print-config` shows them.
const SAMPLE: &str = r##"# Configuration of a Flotilla store. Every key may be left out; what stands here are the defaults.
# Lines that begin with "# key =" show keys that have no value by default.

# Where everything of this store lies.
data_dir = "./flotilla-data"
# TCP for clients and tools, and the same UDP port number for the other stores.
listen = "127.0.0.1:2379"
# How others reach this store (host:port), if not at `listen`. Needed if `listen` means all interfaces.
# advertise = "store-1.example.com:2379"
# Any stores of the cluster to join, as host:port. Empty: continue, or begin a new cluster if the data folder is empty.
join = []

# Certificates that stores show each other; all stores need ones of the same authority. Paths that are not given lie in
# `data_dir`/certs (ca.crt, store.crt, store.key), where the first store of a cluster makes them.
[security]
# ca = "certs/ca.crt"
# cert = "certs/store.crt"
# key = "certs/store.key"

# TLS on the client port; without this section it speaks plain text. With `ca`, clients must show a certificate of it.
# [client_tls]
# cert = "certs/server.pem"
# key = "certs/server.key"
# ca = "certs/clients-ca.pem"

[raft]
# The beat of all raft groups of this store. Must be the same on all stores, as must the next two.
tick_ms = 50
heartbeat_ticks = 2
# A follower that hears nothing for this many ticks, and up to twice as many, begins an election.
election_ticks = 20
# A region that nobody writes to for this many ticks goes to sleep and costs nothing; 0: never.
sleep_ticks = 40
# Threads that run the raft groups.
workers = 2
# The largest log entry; larger writes are refused.
entry_bytes_max = 8_388_608
# What may wait on its way to one store; more is dropped, and sent again by the groups.
store_queue_bytes_max = 67_108_864
# Requests that may wait for a raft worker; more is refused as busy.
inbox_bytes_max = 67_108_864
# Snapshots at a time.
snapshots_sending_max = 4
snapshots_receiving_max = 4

[engine]
# RocksDB: memory for blocks that were read, and for writes that are not flushed yet (per column family).
block_cache_mib = 256
write_buffer_mib = 32
# Write-ahead log above which what holds it back is flushed; bounds the time of a restart.
wal_mib = 64
background_jobs = 2
open_files = 4_096

[placement]
# Voters that each region should have.
replicas = 3
# A store that is silent for this long counts as down, and for the second time as lost: its replicas are made elsewhere.
down_after_ms = 10_000
replace_after_ms = 1_800_000

[log]
# error, warn, info, debug or trace, or directives such as "info,flotilla_raftstore=debug".
level = "info"
# text or json.
format = "text"
"##;

/// All settings of a store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything of this store lies.
    pub data_dir: PathBuf,
    /// TCP for clients, UDP for stores.
    pub listen: SocketAddr,
    /// How others reach this store; see [`Config::advertised`].
    pub advertise: Option<String>,
    /// Stores of the cluster to join, as host:port.
    pub join: Vec<String>,
    /// Identity among the stores; see [`Config::certificates`].
    pub security: Security,
    /// TLS on the client port.
    pub client_tls: Option<ClientTls>,
    /// Consensus.
    pub raft: Raft,
    /// RocksDB.
    pub engine: Engine,
    /// The placement driver, should it run here.
    pub placement: Placement,
    /// Log output.
    pub log: Log,
}

/// Files with this store's identity. What is absent lies below the data folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    /// The authority's certificate.
    pub ca: Option<PathBuf>,
    /// This store's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Files with this store's identity, all of them named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This store's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Files for TLS on the client port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// If present, clients must show a certificate of this authority.
    pub ca: Option<PathBuf>,
    /// The certificate that clients see, and its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Consensus. Bounds are explained in the sample.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each key is explained in the sample")]
pub struct Raft {
    pub tick_ms: u64,
    pub heartbeat_ticks: u32,
    pub election_ticks: u32,
    pub sleep_ticks: u32,
    pub workers: usize,
    pub entry_bytes_max: usize,
    pub store_queue_bytes_max: usize,
    pub inbox_bytes_max: usize,
    pub snapshots_sending_max: usize,
    pub snapshots_receiving_max: usize,
}

/// RocksDB.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each key is explained in the sample")]
pub struct Engine {
    pub block_cache_mib: usize,
    pub write_buffer_mib: usize,
    pub wal_mib: usize,
    pub background_jobs: u32,
    pub open_files: u32,
}

/// The placement driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each key is explained in the sample")]
pub struct Placement {
    pub replicas: usize,
    pub down_after_ms: u64,
    pub replace_after_ms: u64,
}

/// Log output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Directives as `tracing_subscriber::EnvFilter` reads them.
    pub level: String,
    /// Its form.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {error}")]
    Read { path: String, error: std::io::Error },
    /// It is no TOML, or a key is unknown or has the wrong type.
    #[error("configuration {path}, line {line}: {reason}")]
    Parse { path: String, line: usize, reason: String },
    /// A value makes no sense.
    #[error("configuration {path}, {line}: {invalid}")]
    Invalid { path: String, line: String, invalid: Invalid },
}

/// A value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key `{key}`: {reason}")]
pub struct Invalid {
    /// With its section: `raft.tick_ms`.
    pub key: &'static str,
    /// What is wrong with it, and what it is.
    pub reason: String,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Read { path: shown.clone(), error })?;
        Config::parse(&text, &shown)
    }

    fn parse(text: &str, path: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| parse_error(text, path, &error))?;
        config.validate().map_err(|invalid| {
            let line = line_of(text, invalid.key).map_or("not in the file".into(), |line| format!("line {line}"));
            ConfigError::Invalid { path: path.to_owned(), line, invalid }
        })?;
        Ok(config)
    }

    /// The commented defaults as TOML.
    pub fn sample() -> &'static str {
        SAMPLE
    }

    /// The address that other stores and clients use.
    pub fn advertised(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// The files with this store's identity.
    pub fn certificates(&self) -> Certificates {
        let path = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| self.data_dir.join("certs").join(name))
        };
        Certificates {
            ca: path(&self.security.ca, "ca.crt"),
            cert: path(&self.security.cert, "store.crt"),
            key: path(&self.security.key, "store.key"),
        }
    }

    /// Checks what the types do not: ranges, and how values go together.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_addresses()?;
        let Raft { tick_ms, heartbeat_ticks, election_ticks, workers, entry_bytes_max, .. } = self.raft;
        within("raft.tick_ms", tick_ms, 1, 1_000)?;
        within("raft.heartbeat_ticks", heartbeat_ticks.into(), 1, 100)?;
        within("raft.election_ticks", election_ticks.into(), 2, 1_000)?;
        // A single heartbeat that is lost or late must not begin an election.
        check("raft.election_ticks", election_ticks >= heartbeat_ticks.saturating_mul(3), || {
            format!(
                "is {election_ticks} and must be at least three times raft.heartbeat_ticks, which is {heartbeat_ticks}"
            )
        })?;
        within("raft.sleep_ticks", self.raft.sleep_ticks.into(), 0, 1_000_000)?;
        within("raft.workers", workers as u64, 1, 256)?;
        within("raft.entry_bytes_max", entry_bytes_max as u64, 64 << 10, 64 << 20)?;
        for (key, bytes) in [
            ("raft.store_queue_bytes_max", self.raft.store_queue_bytes_max),
            ("raft.inbox_bytes_max", self.raft.inbox_bytes_max),
        ] {
            check(key, bytes >= entry_bytes_max, || {
                format!(
                    "is {bytes} and must not be below raft.entry_bytes_max, which is {entry_bytes_max}: one entry would never pass"
                )
            })?;
        }
        within("raft.snapshots_sending_max", self.raft.snapshots_sending_max as u64, 1, 1_024)?;
        within("raft.snapshots_receiving_max", self.raft.snapshots_receiving_max as u64, 1, 1_024)?;
        within("engine.block_cache_mib", self.engine.block_cache_mib as u64, 1, 1 << 20)?;
        within("engine.write_buffer_mib", self.engine.write_buffer_mib as u64, 1, 1 << 12)?;
        within("engine.wal_mib", self.engine.wal_mib as u64, 1, 1 << 14)?;
        within("engine.background_jobs", self.engine.background_jobs.into(), 1, 256)?;
        within("engine.open_files", self.engine.open_files.into(), 64, 1 << 20)?;
        within("placement.replicas", self.placement.replicas as u64, 1, 9)?;
        let replicas = self.placement.replicas;
        check("placement.replicas", replicas % 2 == 1, || {
            format!("is {replicas} and must be odd: an even number survives no more losses")
        })?;
        within("placement.down_after_ms", self.placement.down_after_ms, 1_000, 86_400_000)?;
        within("placement.replace_after_ms", self.placement.replace_after_ms, self.placement.down_after_ms, 604_800_000)
    }

    fn validate_addresses(&self) -> Result<(), Invalid> {
        check("listen", self.listen.port() != 0, || {
            format!("is {} and needs a port other than 0: stores and clients must know it", self.listen)
        })?;
        match &self.advertise {
            None => check("advertise", !self.listen.ip().is_unspecified(), || {
                format!("must be given because `listen` is {}, where nobody can be reached", self.listen)
            })?,
            Some(address) => {
                check("advertise", is_host_and_port(address), || format!("is {address:?} and must be host:port"))?;
                let parsed = address.parse::<SocketAddr>();
                check("advertise", !parsed.is_ok_and(|address| address.ip().is_unspecified()), || {
                    format!("is {address:?}, where nobody can be reached")
                })?;
            }
        }
        for address in &self.join {
            check("join", is_host_and_port(address), || format!("contains {address:?}, which must be host:port"))?;
        }
        Ok(())
    }
}

fn check(key: &'static str, holds: bool, reason: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { key, reason: reason() }) }
}

fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), Invalid> {
    check(key, (min..=max).contains(&value), || format!("is {value} and must be from {min} to {max}"))
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn parse_error(text: &str, path: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
    let key = text.lines().nth(line).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let message = error.message();
    let reason = match key {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("key `{key}`: {message}"),
        _ => message.to_owned(),
    };
    ConfigError::Parse { path: path.to_owned(), line: line + 1, reason }
}

/// The line on which a key with its section stands.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = "";
    text.lines().enumerate().find_map(|(at, line)| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            current = name.trim();
        }
        let is_key = line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        (current == section && is_key).then_some(at + 1)
    })
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: "./flotilla-data".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 2379)),
            advertise: None,
            join: vec![],
            security: Security::default(),
            client_tls: None,
            raft: Raft::default(),
            engine: Engine::default(),
            placement: Placement::default(),
            log: Log::default(),
        }
    }
}

impl Default for Raft {
    fn default() -> Raft {
        Raft {
            tick_ms: 50,
            heartbeat_ticks: 2,
            election_ticks: 20,
            sleep_ticks: 40,
            workers: 2,
            entry_bytes_max: 8 << 20,
            store_queue_bytes_max: 64 << 20,
            inbox_bytes_max: 64 << 20,
            snapshots_sending_max: 4,
            snapshots_receiving_max: 4,
        }
    }
}

impl Default for Engine {
    fn default() -> Engine {
        Engine { block_cache_mib: 256, write_buffer_mib: 32, wal_mib: 64, background_jobs: 2, open_files: 4_096 }
    }
}

impl Default for Placement {
    fn default() -> Placement {
        Placement { replicas: 3, down_after_ms: 10_000, replace_after_ms: 1_800_000 }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into(), format: LogFormat::Text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, "store.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_sample_shows_the_defaults_and_all_keys() {
        assert_eq!(Config::parse(Config::sample(), "sample").unwrap(), Config::default());
        // With the commented keys too it is still a configuration, and names everything that there is.
        let keys = ["advertise", "ca", "cert", "key"];
        let uncommented = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest == "[client_tls]" || keys.iter().any(|key| rest.starts_with(&format!("{key} = "))) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let all: Vec<_> = Config::sample().lines().map(uncommented).collect();
        let config = Config::parse(&all.join("\n"), "sample").unwrap();
        assert!(config.advertise.is_some() && config.client_tls.is_some_and(|tls| tls.ca.is_some()));
        assert!(config.security.ca.is_some() && config.security.cert.is_some() && config.security.key.is_some());
        let shown = format!("{:?}", Config::default());
        for key in shown.split([' ', '{', ',']).filter_map(|word| word.strip_suffix(':')) {
            assert!(Config::sample().contains(key), "{key} is missing in the sample");
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(Config::parse("", "store.toml").unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_are_refused_with_file_line_and_name() {
        let text = error("listen = \"127.0.0.1:1\"\n[raft]\ntick_sm = 5\n");
        assert!(text.starts_with("configuration store.toml, line 3: ") && text.contains("`tick_sm`"), "{text}");
        for section in ["raft", "engine", "placement", "log", "security", "client_tls"] {
            assert!(error(&format!("[{section}]\nnonsense = 1")).contains("`nonsense`"), "{section}");
        }
        assert!(error("nonsense = 1").contains("line 1: ") && error("[nonsense]").contains("`nonsense`"));
    }

    #[test]
    fn wrong_types_are_refused_with_line_and_key() {
        let text = error("[raft]\n\ntick_ms = \"50ms\"\n");
        assert!(text.contains("line 3: key `tick_ms`: ") && text.contains("string"), "{text}");
        assert!(error("[log]\nformat = \"xml\"").contains("key `format`"));
        assert!(error("listen = \"localhost\"").contains("line 1: key `listen`"));
        assert!(error("data_dir = ").contains("line 1"));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_line_and_key() {
        let text = error("[engine]\nwal_mib = 1\n[raft]\nelection_ticks = 5\n");
        assert!(
            text.starts_with("configuration store.toml, line 4: key `raft.election_ticks`: is 5 and must be"),
            "{text}"
        );
        let text = error("listen = \"0.0.0.0:2379\"");
        assert!(
            text.contains("not in the file: key `advertise`: must be given because `listen` is 0.0.0.0:2379"),
            "{text}"
        );
        assert!(error("[placement]\nreplicas = 4").contains("must be odd"));
        assert!(error("join = [\"a:1\", \"b\"]").contains("contains \"b\""));
        assert!(error("advertise = \"http://a:1\"").contains("`advertise`"));
        assert!(error("listen = \"127.0.0.1:0\"").contains("`listen`"));
        assert!(error("[raft]\nentry_bytes_max = 1").contains("must be from 65536"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let text = Config::load(Path::new("/nonexistent/store.toml")).unwrap_err().to_string();
        assert!(text.starts_with("configuration /nonexistent/store.toml: "), "{text}");
    }

    #[test]
    fn paths_and_addresses_have_defaults_of_their_own() {
        let config = Config::parse("data_dir = \"/d\"\n[security]\nca = \"/my/ca.pem\"", "store.toml").unwrap();
        assert_eq!(config.certificates().ca, Path::new("/my/ca.pem"));
        assert_eq!(config.certificates().key, Path::new("/d/certs/store.key"));
        assert_eq!(config.advertised(), "127.0.0.1:2379");
    }
}
