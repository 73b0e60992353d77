//! What a store's process uses, as the system counts it, and what the store says of itself.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// A store's answer is small and comes at once, or not at all.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// A process's use of the machine since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on a processor.
    pub cpu: Duration,
    /// Memory in pages of its own, not counting files that are mapped.
    pub anonymous_bytes: u64,
}

impl Usage {
    /// Reads it from `/proc`.
    pub fn of(pid: u32) -> Result<Usage> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("cannot read /proc/{pid}/{file}"))
        };
        let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .context("cannot ask for the length of a clock tick")?
            .unwrap_or(100) as u64;
        let cpu_ticks = cpu_ticks(&read("stat")?).context("/proc/PID/stat has another form")?;
        let anonymous_kib = field_kib(&read("status")?, "RssAnon:").context("/proc/PID/status has no RssAnon")?;
        Ok(Usage {
            cpu: Duration::from_millis(cpu_ticks * 1000 / ticks_per_second),
            anonymous_bytes: anonymous_kib * 1024,
        })
    }
}

/// User and system time from a line of `/proc/PID/stat`. The name in it may hold anything, so the fields are counted from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn field_kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// What a store says of itself now: the counters of `/status`, which ask nobody else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnStatus {
    /// Peers on the store.
    pub regions: u64,
    /// Of these, so many lead.
    pub leaders: u64,
    /// Peers that sleep.
    pub dormant: u64,
    /// Elections that peers here have won.
    pub elected: u64,
    /// Times that a dormant peer woke up.
    pub woken: u64,
    /// Bytes of UDP packets to other stores.
    pub udp_bytes_sent: u64,
}

impl OwnStatus {
    /// Of two stores together.
    pub fn plus(self, other: &OwnStatus) -> OwnStatus {
        OwnStatus {
            regions: self.regions + other.regions,
            leaders: self.leaders + other.leaders,
            dormant: self.dormant + other.dormant,
            elected: self.elected + other.elected,
            woken: self.woken + other.woken,
            udp_bytes_sent: self.udp_bytes_sent + other.udp_bytes_sent,
        }
    }

    /// Asks the store at `address`.
    pub async fn of(address: &str) -> Result<OwnStatus> {
        let asked = timeout(STATUS_TIMEOUT, get(address, "/status")).await;
        let body = asked.with_context(|| format!("{address} does not tell its status"))??;
        let status: Value = serde_json::from_slice(&body).context("a store's status is not JSON")?;
        let number = |name: &str| status[name].as_u64().with_context(|| format!("a store's status has no {name}"));
        Ok(OwnStatus {
            regions: number("regions")?,
            leaders: number("leaders")?,
            dormant: number("dormant")?,
            elected: number("elected")?,
            woken: sum(&status["woken"]).context("a store's status has no woken")?,
            udp_bytes_sent: number("udp_bytes_sent")?,
        })
    }
}

fn sum(counts: &Value) -> Option<u64> {
    counts.as_object()?.values().map(Value::as_u64).sum()
}

async fn get(address: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("cannot ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("cannot read the answer")?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer has no head")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{address} does not serve {path}");
    Ok(answer.split_off(end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 300 1000 200";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("17 (cut"), None);
        assert_eq!(field_kib("Name:\tx\nRssAnon:\t    1234 kB\n", "RssAnon:"), Some(1234));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.anonymous_bytes > 0);
        assert!(Usage::of(u32::MAX).is_err());
    }
}
