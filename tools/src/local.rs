//! A cluster of several stores on this machine: each a child process with a folder, a port and a log file of its own.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use flotilla_client::Admin;
use flotilla_proto::{
    placement::{RegionInfo, ScanRegionsRequest, StoreStats},
    store::PeerRole,
};
use flotilla_transport::identity::{Authority, CA_CERT_FILE, STORE_CERT_FILE, STORE_KEY_FILE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::output;

/// The port of the first store, if it is free.
pub const DEFAULT_PORT: u16 = 2379;

const HOST: [u8; 4] = [127, 0, 0, 1];
const POLL: Duration = Duration::from_millis(50);
/// How long a store may take to stop by itself.
const STOP_WAIT: Duration = Duration::from_secs(20);
/// Lines of a dead store's log that are shown.
const LOG_TAIL_LINES: usize = 20;

/// Stores on this machine. Dropping it kills them.
pub struct LocalCluster {
    pub stores: Vec<LocalStore>,
    admin: Admin,
}

/// One store, running or not.
pub struct LocalStore {
    /// host:port
    pub address: String,
    pub log: PathBuf,
    dir: PathBuf,
    join: Option<String>,
    /// With settings that are not the defaults.
    config: Option<PathBuf>,
    child: Option<Child>,
}

impl LocalCluster {
    /// Makes folders, certificates and the choice of ports for `count` stores below `dir`; what is there is used again.
    pub fn prepare(dir: &Path, count: usize, base_port: Option<u16>) -> Result<LocalCluster> {
        ensure!(count > 0, "a cluster needs at least one store");
        let ca_dir = dir.join("certs");
        let authority = match ca_dir.join(CA_CERT_FILE).exists() {
            true => Authority::load(&ca_dir).context("cannot load the authority")?,
            false => Authority::create(&ca_dir).context("cannot make the authority")?,
        };
        let mut stores: Vec<LocalStore> = Vec::new();
        for (number, port) in (1..=count).zip(remembered_ports(dir, count, base_port)?) {
            let address = SocketAddr::from((HOST, port)).to_string();
            let store_dir = dir.join(format!("store-{number}"));
            let certs = store_dir.join("certs");
            if !certs.join(STORE_KEY_FILE).exists() {
                let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
                authority.issue_store(&hosts)?.write(&certs, "store")?;
            }
            let join = stores.first().map(|first| first.address.clone());
            let log = store_dir.join("store.log");
            stores.push(LocalStore { address, log, dir: store_dir, join, config: None, child: None });
        }
        let endpoints = stores.iter().map(|store| store.address.clone()).collect();
        let admin = Admin::new(endpoints, Duration::from_secs(5), None)?;
        Ok(LocalCluster { stores, admin })
    }

    /// Has all stores run with these settings (TOML) when they start next.
    pub fn configure(&mut self, settings: &str) -> Result<()> {
        for store in &mut self.stores {
            let path = store.dir.join("store.toml");
            fs::write(&path, settings).with_context(|| format!("cannot write {}", path.display()))?;
            store.config = Some(path);
        }
        Ok(())
    }

    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.stores.iter().map(|store| store.address.clone()).collect()
    }

    /// Starts all stores. In new folders the first one begins a cluster and must serve before the others can join it. Fails at once where
    /// no region would get its replicas.
    pub async fn start(&mut self, patience: Duration) -> Result<()> {
        let is_new = !self.stores[0].data_dir().exists();
        if self.stores.len() > 1 {
            let dir = &self.stores[0].dir;
            let (capacity_bytes, available_bytes) = flotilla_server::disk_bytes(dir)
                .with_context(|| format!("cannot look at the disk of {}", dir.display()))?;
            check_disk(dir, &StoreStats { capacity_bytes, available_bytes, ..StoreStats::default() })?;
        }
        for index in 0..self.stores.len() {
            self.stores[index].start()?;
            if index == 0 && is_new {
                self.wait_until_serving(0, patience).await?;
            }
        }
        for index in 0..self.stores.len() {
            self.wait_until_serving(index, patience).await?;
        }
        Ok(())
    }

    /// Waits until a store answers clients. Fails if any store dies.
    pub async fn wait_until_serving(&mut self, index: usize, patience: Duration) -> Result<()> {
        let admin = Admin::new(vec![self.stores[index].address.clone()], Duration::from_secs(5), None)?;
        let deadline = Instant::now() + patience;
        loop {
            self.check_alive()?;
            let reason = match admin.cluster_status().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let store = &self.stores[index];
            ensure!(
                Instant::now() < deadline,
                "store {} at {} does not serve after {} s: {reason}\n{}",
                index + 1,
                store.address,
                patience.as_secs(),
                store.log_tail()
            );
            sleep(POLL).await;
        }
    }

    /// Waits until every region has a leader and a voter on `replicas` stores, all of them heard from and none behind.
    pub async fn wait_until_replicated(&mut self, replicas: usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            self.check_alive()?;
            let all = ScanRegionsRequest { with_system: true, ..ScanRegionsRequest::default() };
            let waiting = match self.admin.regions(all).await {
                Ok(regions) if regions.is_empty() => "there are no regions yet".to_owned(),
                Ok(regions) => match regions.iter().filter(|info| !is_whole(info, replicas)).count() {
                    0 => return Ok(()),
                    count => format!("{count} of {} regions lack a leader or replicas", regions.len()),
                },
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < deadline, "the cluster is not complete after {} s: {waiting}", patience.as_secs());
            sleep(POLL * 2).await;
        }
    }

    /// Fails with the end of its log if a store died that was not stopped on purpose.
    pub fn check_alive(&mut self) -> Result<()> {
        for (index, store) in self.stores.iter_mut().enumerate() {
            if let Some(status) = store.exited()? {
                bail!("store {} at {} ended ({status}); {}", index + 1, store.address, store.log_tail());
            }
        }
        Ok(())
    }

    /// Stops all stores cleanly: SIGTERM, then, for those that do not listen, SIGKILL.
    pub async fn stop(&mut self) -> Result<()> {
        for store in &self.stores {
            store.signal(Signal::SIGTERM);
        }
        let mut late = Vec::new();
        for (index, store) in self.stores.iter_mut().enumerate() {
            let Some(mut child) = store.child.take() else { continue };
            if timeout(STOP_WAIT, child.wait()).await.is_err() {
                child.kill().await.with_context(|| format!("cannot kill store {}", index + 1))?;
                late.push((index + 1).to_string());
            }
        }
        ensure!(
            late.is_empty(),
            "store {} did not stop within {} s and was killed",
            late.join(", "),
            STOP_WAIT.as_secs()
        );
        Ok(())
    }
}

/// A store that stands still.
pub struct Paused<'a> {
    store: &'a LocalStore,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.store.signal(Signal::SIGCONT);
    }
}

impl LocalStore {
    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts the store's process. Must be called on a thread that lives as long as the store shall: it dies with that thread, so that
    /// it does not outlive this process however that ends.
    pub fn start(&mut self) -> Result<()> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let certs = self.dir.join("certs");
        let mut command = Command::new(&binary);
        command.arg("serve").arg("--data-dir").arg(self.data_dir()).arg("--listen").arg(&self.address);
        command.arg("--ca").arg(certs.join(CA_CERT_FILE));
        command.arg("--cert").arg(certs.join(STORE_CERT_FILE)).arg("--key").arg(certs.join(STORE_KEY_FILE));
        if let Some(join) = &self.join {
            command.arg("--join").arg(join);
        }
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        let log_too = log.try_clone().context("cannot share the log file")?;
        command.stdin(Stdio::null()).stdout(log).stderr(log_too).kill_on_drop(true);
        // A group of its own: Ctrl-C in a terminal goes to this process alone, which then stops its children in order.
        command.process_group(0);
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid. Nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)?;
                // The parent may have died before the line above.
                if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Kills the store with SIGKILL, as a power failure would. Gives the moment after which it did nothing any more.
    pub async fn kill(&mut self) -> Result<Instant> {
        let mut child = self.child.take().context("the store does not run")?;
        child.start_kill().context("cannot kill the store")?;
        let killed = Instant::now();
        child.wait().await.context("cannot wait for the killed store")?;
        Ok(killed)
    }

    /// Stops the store's process where it stands, until the result is dropped. All of its threads have stopped when this returns.
    pub async fn pause(&self) -> Result<Paused<'_>> {
        let pid = self.pid().context("the store does not run")?;
        self.signal(Signal::SIGSTOP);
        let paused = Paused { store: self };
        let deadline = Instant::now() + STOP_WAIT;
        while !is_stopped(pid)? {
            ensure!(Instant::now() < deadline, "the store does not stop");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(paused)
    }

    /// Its process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait().context("cannot look after a store"),
            None => Ok(None),
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// Whether all threads of a process have been stopped by a signal.
fn is_stopped(pid: u32) -> Result<bool> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).context("cannot read a store's threads")?;
    for thread in threads {
        let stat = thread.map(|thread| fs::read_to_string(thread.path().join("stat")));
        // One that is gone by now does nothing any more.
        let Ok(Ok(stat)) = stat else { continue };
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next());
        if state != Some("T") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_whole(info: &RegionInfo, replicas: usize) -> bool {
    let voters = info.region.iter().flat_map(|region| &region.peers).filter(|peer| peer.role() == PeerRole::Voter);
    info.leader.is_some() && info.pending_peers.is_empty() && info.down_peers.is_empty() && voters.count() >= replicas
}

fn check_disk(dir: &Path, stats: &StoreStats) -> Result<()> {
    ensure!(
        !stats.is_nearly_full(),
        "the disk of {} is nearly full: {} of {} are free, and stores with less than a twentieth are given no replicas",
        dir.display(),
        output::bytes(stats.available_bytes),
        output::bytes(stats.capacity_bytes)
    );
    Ok(())
}

/// The ports that the stores below `dir` had before, or new ones. Stores know each other by address: were all of them to move at once,
/// none would find another.
fn remembered_ports(dir: &Path, count: usize, base_port: Option<u16>) -> Result<Vec<u16>> {
    let path = dir.join("ports");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let before: std::result::Result<Vec<u16>, _> = text.split_whitespace().map(str::parse).collect();
    let before = before.with_context(|| format!("{} holds no port numbers", path.display()))?;
    if before.is_empty() {
        let ports = ports(count, base_port)?;
        let lines: Vec<String> = ports.iter().map(u16::to_string).collect();
        fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(ports);
    }
    ensure!(before.len() == count, "{} has {} stores, not {count}", dir.display(), before.len());
    if let Some(base) = base_port.filter(|base| *base != before[0]) {
        bail!("the stores in {} begin at port {}, not {base}", dir.display(), before[0]);
    }
    for port in &before {
        hold_port(*port)
            .with_context(|| format!("port {port}, which a store in {} has, is not free", dir.display()))?;
    }
    Ok(before)
}

/// Ports that are free for TCP and UDP: from `base_port` up, all of them; without it, from the default port up as far as those are
/// free, and any others instead of those that are not.
fn ports(count: usize, base_port: Option<u16>) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for offset in 0..u16::try_from(count).context("so many stores have no room on one machine")? {
        let wanted =
            base_port.unwrap_or(DEFAULT_PORT).checked_add(offset).context("there are no ports beyond 65535")?;
        let (port, hold) = match (hold_port(wanted), base_port) {
            (Ok(hold), _) => (wanted, hold),
            (Err(error), Some(_)) => return Err(error).context(format!("port {wanted} is not free")),
            (Err(_), None) => any_port()?,
        };
        ports.push(port);
        // All are held until all are chosen, so that none is chosen twice.
        held.push(hold);
    }
    Ok(ports)
}

fn hold_port(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    Ok((TcpListener::bind(SocketAddr::from((HOST, port)))?, UdpSocket::bind(SocketAddr::from((HOST, port)))?))
}

fn any_port() -> Result<(u16, (TcpListener, UdpSocket))> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let listener = TcpListener::bind(SocketAddr::from((HOST, 0))).context("no port is free")?;
        let port = listener.local_addr().context("cannot tell a port")?.port();
        if let Ok(udp) = UdpSocket::bind(SocketAddr::from((HOST, port))) {
            return Ok((port, (listener, udp)));
        }
    }
    bail!("no port is free for TCP and UDP both")
}

#[cfg(test)]
mod tests {
    use flotilla_proto::store::{Peer, Region};

    use super::*;

    #[test]
    fn a_taken_port_is_avoided_or_refused() {
        let (taken, _hold) = any_port().unwrap();
        assert!(ports(1, Some(taken)).is_err());
        let ports = ports(5, None).unwrap();
        let mut distinct = ports.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 5);
        assert!(!ports.contains(&taken));
    }

    #[test]
    fn a_region_is_whole_with_a_leader_and_all_voters() {
        let peers = (1..=3).map(|id| Peer { id, store_id: id, role: PeerRole::Voter.into() }).collect();
        let whole = RegionInfo {
            region: Some(Region { peers, ..Region::default() }),
            leader: Some(Peer::default()),
            ..RegionInfo::default()
        };
        assert!(is_whole(&whole, 3));
        assert!(!is_whole(&whole, 4));
        assert!(!is_whole(&RegionInfo { leader: None, ..whole.clone() }, 3));
        assert!(!is_whole(&RegionInfo { pending_peers: vec![2], ..whole }, 3));
    }

    #[test]
    fn a_disk_without_room_for_replicas_is_told_of_before_anything_waits_for_them() {
        let stats =
            |available_bytes| StoreStats { capacity_bytes: 200 << 30, available_bytes, ..StoreStats::default() };
        assert!(check_disk(Path::new("/data"), &stats(10 << 30)).is_ok());
        assert_eq!(
            check_disk(Path::new("/data"), &stats(9 << 30)).unwrap_err().to_string(),
            "the disk of /data is nearly full: 9.0 GiB of 200.0 GiB are free, and stores with less than a twentieth are given no replicas"
        );
    }

    #[test]
    fn stores_keep_their_ports() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = LocalCluster::prepare(dir.path(), 2, None).unwrap().endpoints();
        let written = fs::read_to_string(dir.path().join("ports")).unwrap();
        assert!(chosen.iter().zip(written.lines()).all(|(address, port)| address.ends_with(port)), "{written}");

        // Ports that no other test takes meanwhile.
        let (ports, held): (Vec<u16>, Vec<_>) = (0..2).map(|_| any_port().unwrap()).unzip();
        fs::write(dir.path().join("ports"), format!("{}\n{}\n", ports[0], ports[1])).unwrap();
        assert!(LocalCluster::prepare(dir.path(), 2, None).is_err(), "they are taken");
        drop(held);
        let kept = LocalCluster::prepare(dir.path(), 2, None).unwrap().endpoints();
        assert!(kept[0].ends_with(&ports[0].to_string()) && kept[1].ends_with(&ports[1].to_string()));
        assert!(LocalCluster::prepare(dir.path(), 3, None).is_err());
    }

    #[test]
    fn certificates_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = || fs::read(dir.path().join("store-2/certs").join(STORE_CERT_FILE)).unwrap();
        LocalCluster::prepare(dir.path(), 2, None).unwrap();
        let first = read();
        let again = LocalCluster::prepare(dir.path(), 2, None).unwrap();
        assert_eq!(read(), first);
        assert_eq!(again.stores[1].join.as_ref(), Some(&again.stores[0].address));
    }
}
