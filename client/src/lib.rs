//! A client for Flotilla, and for any cluster that speaks the TiKV client protocol.
//!
//! [`Client`] knows the cluster: where its regions lie, who leads them, and a few connections to each store. [`Raw`] reads and writes
//! keys of one key space: `client.raw()` the plain keys of API V1, `client.keyspace(name)` those of a keyspace (API V2). [`Admin`]
//! speaks to Flotilla's own admin service.
//!
//! Every call runs under one deadline, within which it follows leaders, reloads what is out of date and backs off. A call that fails
//! says what became of it (see [`Error`]): *failed definitely*, *unknown outcome* or *invalid*. A write that was sent and whose answer
//! did not come is of unknown outcome, never failed.
//!
//! Deliberately missing: transactions, and the batched stream `BatchCommands` (each request is a unary call).

mod admin;
mod call;
mod channels;
mod directory;
mod error;
mod keyspace;
pub mod limits;
mod raw;
mod region;
mod scan;
mod send;
mod verdict;

use std::{sync::Arc, time::Duration};

pub use admin::Admin;
pub use channels::Tls;
pub use error::{Error, Result};
pub use keyspace::Keyspace;
pub use raw::{CompareAndSwap, Pair, Raw};
pub use scan::Scan;

use crate::{channels::Channels, directory::Directory, region::RegionCache};

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most time that one call may take, retries included.
    pub deadline: Duration,
    /// Sends a put, delete or delete-range again after its outcome became unknown, until the deadline. Right for keys with one writer
    /// (repeating a blind write is harmless); with several writers a late repeat may undo another's write. Compare-and-swap is never
    /// sent again.
    pub retry_unknown: bool,
    /// The largest pause between two attempts. Shorter finds a new leader sooner, and costs the stores more meanwhile.
    pub pause_max: Duration,
    /// Connections to each store, used in turn.
    pub connections_per_store: usize,
    /// Requests that one batch call keeps in flight at once.
    pub batch_concurrency: usize,
    /// TLS to the client port; absent: plain text.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            deadline: limits::DEADLINE,
            retry_unknown: false,
            pause_max: limits::BACKOFF_MAX,
            connections_per_store: limits::CONNECTIONS_PER_STORE,
            batch_concurrency: limits::BATCH_CONCURRENCY,
            tls: None,
        }
    }
}

/// A connection to a cluster. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    options: Options,
    channels: Channels,
    directory: Directory,
    regions: RegionCache,
}

impl Client {
    /// Connects with default options to a cluster of which some stores listen at `endpoints` (host:port).
    pub async fn connect<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Result<Client> {
        Client::connect_with(endpoints, Options::default()).await
    }

    /// Connects to a cluster of which some stores listen at `endpoints` (host:port).
    pub async fn connect_with<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
        options: Options,
    ) -> Result<Client> {
        let endpoints: Vec<String> = endpoints.into_iter().map(Into::into).collect();
        let channels = Channels::new(options.connections_per_store, options.tls.clone())?;
        let directory = Directory::connect(endpoints, &channels, options.deadline).await?;
        let regions = RegionCache::default();
        Ok(Client { inner: Arc::new(Inner { options, channels, directory, regions }) })
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.directory.cluster_id()
    }

    /// Raw keys as they are (API V1).
    pub fn raw(&self) -> Raw {
        Raw::new(Arc::clone(&self.inner), Keyspace::V1)
    }

    /// Raw keys of a keyspace (API V2), which must exist; "DEFAULT" always does.
    pub async fn keyspace(&self, name: &str) -> Result<Raw> {
        let mut call = call::Call::new("load keyspace", call::Kind::Read, &self.inner.options);
        let id = self.inner.directory.keyspace(&self.inner.channels, name, &mut call).await?;
        Ok(Raw::new(Arc::clone(&self.inner), Keyspace::V2 { id }))
    }
}
