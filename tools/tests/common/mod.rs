//! A cluster of real processes for tests: own folders, free ports, and nothing left behind.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    fs::File,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use flotilla_client::Admin;
use flotilla_proto::placement::{RegionInfo, ScanRegionsRequest};
use flotilla_transport::identity::Authority;
use tempfile::TempDir;
use tokio::time::sleep;

pub const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// How long a cluster may take for anything that it does in well under a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is free for TCP and UDP.
pub fn free_port() -> u16 {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = tcp.local_addr().expect("bound").port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free for both TCP and UDP");
}

/// One store's process.
pub struct Store {
    pub address: String,
    pub dir: PathBuf,
    join: Vec<String>,
    child: Option<Child>,
}

impl Store {
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "the store runs already");
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect("a log file");
        let mut command = Command::new(FLOTILLA);
        command.arg("serve").arg("--data-dir").arg(&self.dir).arg("--listen").arg(&self.address);
        if !self.join.is_empty() {
            command.arg("--join").arg(self.join.join(","));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        self.child = Some(command.spawn().expect("the store starts"));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("it ends");
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("the store runs").id() as i32
    }

    /// Waits until the process has ended by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().expect("the store runs").try_wait().expect("the process is ours")
            {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "the store at {} does not end\n{}", self.address, self.log_tail());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the process runs. A store that ended by itself is a failure of the test: its log is shown.
    pub fn check(&mut self) {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().expect("the process is ours")
        {
            panic!("the store at {} ended by itself: {status}\n{}", self.address, self.log_tail());
        }
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster and its folder, which goes when the cluster goes.
pub struct Cluster {
    pub stores: Vec<Store>,
    pub authority: Authority,
    pub folder: TempDir,
}

impl Cluster {
    /// Starts `count` stores and waits until every region has that many voters.
    pub async fn start(count: usize) -> Cluster {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = Authority::create(&folder.path().join("ca")).expect("an authority");
        let mut cluster = Cluster { stores: Vec::new(), authority, folder };
        for n in 0..count {
            let first = cluster.stores.first().map(|store| store.address.clone());
            let mut store = cluster.make_store(&format!("store-{}", n + 1), first.into_iter().collect());
            store.start();
            cluster.stores.push(store);
            if n == 0 {
                cluster
                    .wait_for("the first store to serve", async |cluster| {
                        cluster.admin().cluster_status().await.is_ok()
                    })
                    .await;
            }
        }
        cluster
            .wait_for("all regions to have all replicas", async |cluster| {
                let Ok(regions) = cluster.all_regions().await else { return false };
                let voters = |info: &RegionInfo| {
                    info.region.as_ref().map_or(0, |region| region.peers.iter().filter(|peer| peer.role == 0).count())
                };
                !regions.is_empty() && regions.iter().all(|info| voters(info) == count && info.leader.is_some())
            })
            .await;
        cluster
    }

    /// A store that does not run yet, with a certificate of the cluster's authority.
    pub fn make_store(&self, name: &str, join: Vec<String>) -> Store {
        let dir = self.folder.path().join(name);
        let credentials = self.authority.issue_store(&["127.0.0.1".to_owned()]).expect("a certificate");
        credentials.write(&dir.join("certs"), "store").expect("the certificate is written");
        Store { address: format!("127.0.0.1:{}", free_port()), dir, join, child: None }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.stores.iter().map(|store| store.address.clone()).collect()
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.endpoints(), Duration::from_secs(5), None).expect("endpoints are given")
    }

    pub async fn all_regions(&self) -> flotilla_client::Result<Vec<RegionInfo>> {
        self.admin().regions(ScanRegionsRequest { with_system: true, ..Default::default() }).await
    }

    /// Waits for a condition; fails with what was awaited.
    pub async fn wait_for(&mut self, what: &str, condition: impl AsyncFn(&Cluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self).await {
            for store in &mut self.stores {
                store.check();
            }
            if Instant::now() > deadline {
                let logs: Vec<String> =
                    self.stores.iter().map(|store| format!("{}:\n{}", store.address, store.log_tail())).collect();
                panic!("gave up waiting for {what}\n{}", logs.join("\n"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the replicas of every region are equal on all stores, and says how many regions there are.
    pub async fn wait_until_equal(&mut self) -> usize {
        let mut count = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.compare().await {
                Ok(regions) => {
                    count = count.max(regions);
                    return count;
                }
                Err(difference) if Instant::now() > deadline => panic!("replicas differ: {difference}"),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn compare(&self) -> Result<usize, String> {
        let admin = self.admin();
        let regions = self.all_regions().await.map_err(|error| error.to_string())?;
        for info in &regions {
            let region = info.region.clone().unwrap_or_default();
            let mut sums = Vec::new();
            for store in &self.stores {
                let sum = admin.checksum(&store.address, region.id).await.map_err(|error| error.to_string())?;
                sums.push(sum.ok_or_else(|| format!("region {} is not on {}", region.id, store.address))?);
            }
            let same = sums.windows(2).all(|pair| {
                (pair[0].applied_index, pair[0].checksum, pair[0].pairs, &pair[0].region)
                    == (pair[1].applied_index, pair[1].checksum, pair[1].pairs, &pair[1].region)
            });
            if !same {
                return Err(format!("region {}: {sums:?}", region.id));
            }
        }
        Ok(regions.len())
    }
}

/// Runs the command to its end; standard output, standard error and whether it succeeded.
pub fn flotilla(args: &[&str], dir: &Path) -> (String, String, bool) {
    let output =
        Command::new(FLOTILLA).args(args).current_dir(dir).stdin(Stdio::null()).output().expect("the command runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.success())
}
