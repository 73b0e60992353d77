//! Three replicas of openraft as tasks of one thread. Its log and state machine are as small as they can be.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::error::{InstallSnapshotError, RPCError, RaftError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    BasicNode, Config, Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, RaftNetwork,
    RaftNetworkFactory, RaftSnapshotBuilder, Snapshot, SnapshotMeta, SnapshotPolicy, StorageError, StoredMembership,
    Vote,
};

use crate::{COMPACT_EVERY, PAYLOAD};

openraft::declare_raft_types!(pub Types: D = Vec<u8>, R = (), NodeId = u64, Node = BasicNode);

type Raft = openraft::Raft<Types>;
type Result<T> = std::result::Result<T, StorageError<u64>>;

#[derive(Default)]
struct LogInner {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
}

/// A log in memory.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<LogInner>>);

impl Log {
    fn with<T>(&self, f: impl FnOnce(&mut LogInner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>> {
        Ok(self.with(|log| log.entries.range(range).map(|(_, entry)| entry.clone()).collect()))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        Ok(self.with(|log| LogState {
            last_purged_log_id: log.purged,
            last_log_id: log.entries.values().next_back().map(|entry| entry.log_id).or(log.purged),
        }))
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<()> {
        self.with(|log| log.vote = Some(*vote));
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>> {
        Ok(self.with(|log| log.vote))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.with(|log| log.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry))));
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<()> {
        self.with(|log| drop(log.entries.split_off(&log_id.index)));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<()> {
        self.with(|log| {
            log.entries = log.entries.split_off(&(log_id.index + 1));
            log.purged = Some(log_id);
        });
        Ok(())
    }
}

/// A state machine that forgets everything but where it is.
#[derive(Clone, Default)]
pub struct Machine {
    applied: Option<LogId<u64>>,
    members: StoredMembership<u64, BasicNode>,
}

impl Machine {
    fn meta(&self) -> SnapshotMeta<u64, BasicNode> {
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.members.clone(),
            snapshot_id: format!("{:?}", self.applied),
        }
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        Ok(Snapshot { meta: self.meta(), snapshot: Box::new(Cursor::new(Vec::new())) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>)> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(members) = entry.payload {
                self.members = StoredMembership::new(Some(entry.log_id), members);
            }
            results.push(());
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta<u64, BasicNode>, _: Box<Cursor<Vec<u8>>>) -> Result<()> {
        self.applied = meta.last_log_id;
        self.members = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        Ok(None)
    }
}

/// The peers of a group, by id.
#[derive(Clone, Default)]
struct Router(Arc<Mutex<HashMap<u64, Raft>>>);

impl Router {
    fn peer(&self, id: u64) -> Raft {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[&id].clone()
    }
}

/// The way to one peer: a call of its functions.
struct Link {
    router: Router,
    target: u64,
}

impl RaftNetworkFactory<Types> for Router {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Link {
        Link { router: self.clone(), target }
    }
}

type RpcError<E = RaftError<u64>> = RPCError<u64, BasicNode, E>;

fn remote<E: std::error::Error>(target: u64, err: E) -> RPCError<u64, BasicNode, E> {
    RPCError::RemoteError(openraft::error::RemoteError::new(target, err))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> std::result::Result<AppendEntriesResponse<u64>, RpcError> {
        self.router.peer(self.target).append_entries(rpc).await.map_err(|err| remote(self.target, err))
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> std::result::Result<InstallSnapshotResponse<u64>, RpcError<RaftError<u64, InstallSnapshotError>>> {
        self.router.peer(self.target).install_snapshot(rpc).await.map_err(|err| remote(self.target, err))
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _: RPCOption) -> std::result::Result<VoteResponse<u64>, RpcError> {
        self.router.peer(self.target).vote(rpc).await.map_err(|err| remote(self.target, err))
    }
}

/// Runs `f` where the tasks of groups can run, on this thread.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

pub struct Group {
    peers: Vec<Raft>,
}

impl Group {
    /// A group whose first peer leads.
    pub async fn elected() -> Group {
        let config = Config {
            heartbeat_interval: 1000,
            election_timeout_min: 5000,
            election_timeout_max: 10_000,
            max_payload_entries: 4096,
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(COMPACT_EVERY),
            ..Config::default()
        };
        let config = Arc::new(config.validate().expect("the configuration is valid"));
        let router = Router::default();
        let mut peers = Vec::new();
        for id in 1..=3 {
            let raft = Raft::new(id, config.clone(), router.clone(), Log::default(), Machine::default());
            let raft = raft.await.expect("a peer starts");
            router.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, raft.clone());
            peers.push(raft);
        }
        let members: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
        peers[0].initialize(members).await.expect("a new group can be initialized");
        peers[0]
            .wait(None)
            .metrics(|metrics| metrics.current_leader == Some(1) && metrics.state.is_leader(), "it leads")
            .await
            .expect("the first peer is elected");
        let group = Group { peers };
        group.propose(1).await;
        group
    }

    /// Has `count` clients write at the same time, until all are answered.
    pub async fn propose(&self, count: usize) {
        let writes: Vec<_> = (0..count)
            .map(|_| {
                let leader = self.peers[0].clone();
                tokio::spawn(async move { leader.client_write(PAYLOAD.to_vec()).await.is_ok() })
            })
            .collect();
        for write in writes {
            assert!(write.await.expect("a client does not panic"), "the leader takes writes");
        }
    }

    /// One client that writes one thing after the other, without a task of its own.
    pub async fn propose_one(&self) {
        self.peers[0].client_write(PAYLOAD.to_vec()).await.expect("the leader takes writes");
    }

    pub async fn shutdown(self) {
        for peer in self.peers {
            let _ = peer.shutdown().await;
        }
    }
}
