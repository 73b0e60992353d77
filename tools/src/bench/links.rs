//! Cuts the links between stores on this machine, by filters on their UDP sockets: the kernel drops what comes in, as a broken cable would. The
//! processes go on and notice nothing; nothing stands between them when nothing is cut.
//!
//! The sockets belong to child processes of this one. It takes handles on them with `pidfd_getfd`, which Linux allows to whoever may trace a process
//! (a sandbox may forbid it: then cutting fails with a message).

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use nix::libc;

use crate::local::LocalCluster;

/// The UDP sockets of all stores of a cluster, as their processes are now.
pub struct Links {
    /// By place in the cluster: the port, and a handle on the socket.
    sockets: Vec<(u16, OwnedFd)>,
}

/// All links of a store, cut until this is dropped.
pub struct Cut<'a> {
    links: &'a Links,
}

impl Links {
    /// Finds the sockets. All stores must run.
    pub fn of(cluster: &LocalCluster) -> Result<Links> {
        let mut sockets = Vec::new();
        for store in &cluster.stores {
            let pid = store.pid().context("a store does not run")?;
            let port = store.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            let port: u16 = port.context("a store's address has no port")?;
            let socket =
                socket_of(pid, port).with_context(|| format!("cannot reach into the store at {}", store.address))?;
            sockets.push((port, socket));
        }
        Ok(Links { sockets })
    }

    /// Cuts a store off from all others, both ways.
    pub fn cut(&self, place: usize) -> Result<Cut<'_>> {
        // Heals what was done if only a part can be done.
        let cut = Cut { links: self };
        let (port, _) = self.sockets[place];
        for (other, (_, socket)) in self.sockets.iter().enumerate() {
            let filter = if other == place { vec![DROP] } else { drop_from(port).to_vec() };
            attach(socket, &filter).context("cannot put a filter on a store's socket")?;
        }
        Ok(cut)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        for (_, socket) in &self.links.sockets {
            detach(socket);
        }
    }
}

fn socket_of(pid: u32, port: u16) -> Result<OwnedFd> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/udp")).context("cannot read its UDP sockets")?;
    let inode = inode_of(&table, port).with_context(|| format!("it has no UDP socket at port {port}"))?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("cannot read its open files")? {
        let path = entry.context("cannot read its open files")?.path();
        let leads_there = fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str());
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<i32>().ok());
        if let (true, Some(number)) = (leads_there, number) {
            return taken_from(pid, number).context("cannot take a handle on its UDP socket (pidfd_getfd)");
        }
    }
    anyhow::bail!("it has no UDP socket at port {port} open")
}

/// The socket with a local port, from a table like `/proc/net/udp`.
fn inode_of(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        let inode = fields.nth(7)?.parse().ok()?;
        (u16::from_str_radix(local, 16).ok()? == port).then_some(inode)
    })
}

fn taken_from(pid: u32, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the calls take and give plain numbers; each descriptor that they give is new and owned by nobody else.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if process < 0 {
            return Err(io::Error::last_os_error());
        }
        let process = OwnedFd::from_raw_fd(process as i32);
        let socket = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(socket as i32))
    }
}

// Classic packet filters (linux/filter.h). They see a datagram from its UDP header on: first, in two bytes, the port that it came from.
const DROP: libc::sock_filter = instruction(libc::BPF_RET, 0, 0, 0);
const KEEP: libc::sock_filter = instruction(libc::BPF_RET, 0, 0, u32::MAX);

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn drop_from(port: u16) -> [libc::sock_filter; 4] {
    [
        instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::from(port)),
        DROP,
        KEEP,
    ]
}

fn attach(socket: &OwnedFd, filter: &[libc::sock_filter]) -> Result<()> {
    let len = u16::try_from(filter.len()).context("the filter is too long")?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program points to `len` instructions, which the kernel copies and does not change.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    ensure!(status == 0, "{}", io::Error::last_os_error());
    Ok(())
}

fn detach(socket: &OwnedFd) {
    let nothing: i32 = 0;
    // SAFETY: the value is a number that lives until the call returns. It fails only if there is no filter.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const nothing).cast(),
            size_of::<i32>() as libc::socklen_t,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    fn socket() -> (UdpSocket, u16) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    fn hears(socket: &UdpSocket, port: u16, from: &UdpSocket) -> bool {
        from.send_to(b"word", ("127.0.0.1", port)).unwrap();
        socket.recv(&mut [0; 8]).is_ok()
    }

    #[test]
    fn a_store_that_is_cut_off_neither_hears_nor_is_heard() {
        let (one, two, three) = (socket(), socket(), socket());
        let links = Links {
            sockets: [&one, &two, &three]
                .map(|(_, port)| (*port, socket_of(std::process::id(), *port).unwrap()))
                .into_iter()
                .collect(),
        };
        let all = || {
            [
                hears(&one.0, one.1, &two.0),
                hears(&two.0, two.1, &one.0),
                hears(&two.0, two.1, &three.0),
                hears(&three.0, three.1, &two.0),
            ]
        };
        assert_eq!(all(), [true; 4]);
        let cut = links.cut(0).unwrap();
        assert_eq!(all(), [false, false, true, true]);
        drop(cut);
        assert_eq!(all(), [true; 4]);
    }

    #[test]
    fn a_socket_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
                     1203: 0100007F:094B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000 0\n";
        assert_eq!(inode_of(table, 2379), Some(4711));
        assert_eq!(inode_of(table, 2380), None);
    }
}
