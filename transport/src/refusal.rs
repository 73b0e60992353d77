//! Why a connection is closed, as application close codes.

use std::fmt;

use quinn::VarInt;

/// Why one store will not talk to another. Sent as the close code of the connection, with a reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// TLS failed: no certificate, one of another authority, an expired one. Counted here, sent as a TLS alert.
    Tls,
    /// The certificate is the cluster's but not a store's.
    NotAStore,
    /// The hello cannot be read or contradicts itself.
    Malformed,
    /// Unknown protocol version, or a feature is required that this store does not know.
    Version,
    /// Another cluster.
    Cluster,
    /// Somebody else answers at this address.
    WrongStore,
    /// The peer claims this store's own id, or is this very process.
    OwnStore,
    /// Another living process holds the store id.
    Duplicate,
    /// This store has no identity yet.
    NotJoined,
    /// Hello or TLS took too long.
    Timeout,
    /// Too many connections or handshakes.
    Busy,
}

impl Refusal {
    pub const ALL: [Refusal; 11] = [
        Refusal::Tls,
        Refusal::NotAStore,
        Refusal::Malformed,
        Refusal::Version,
        Refusal::Cluster,
        Refusal::WrongStore,
        Refusal::OwnStore,
        Refusal::Duplicate,
        Refusal::NotJoined,
        Refusal::Timeout,
        Refusal::Busy,
    ];

    /// Label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Tls => "tls",
            Refusal::NotAStore => "not_a_store",
            Refusal::Malformed => "malformed",
            Refusal::Version => "version",
            Refusal::Cluster => "cluster",
            Refusal::WrongStore => "wrong_store",
            Refusal::OwnStore => "own_store",
            Refusal::Duplicate => "duplicate",
            Refusal::NotJoined => "not_joined",
            Refusal::Timeout => "timeout",
            Refusal::Busy => "busy",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(REFUSALS + self as u32)
    }

    pub(crate) fn from_code(code: VarInt) -> Option<Refusal> {
        let index = code.into_inner().checked_sub(u64::from(REFUSALS))?;
        Refusal::ALL.into_iter().find(|refusal| refusal.index() as u64 == index)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Tls => "tls handshake failed",
            Refusal::NotAStore => "not a store certificate",
            Refusal::Malformed => "malformed hello",
            Refusal::Version => "unknown protocol version",
            Refusal::Cluster => "another cluster",
            Refusal::WrongStore => "wrong store",
            Refusal::OwnStore => "own store id",
            Refusal::Duplicate => "store id is in use by another process",
            Refusal::NotJoined => "store has not joined a cluster",
            Refusal::Timeout => "handshake took too long",
            Refusal::Busy => "too many connections",
        })
    }
}

/// Refusals are codes from here on.
const REFUSALS: u32 = 0x100;

/// Nothing wrong: the connection is not needed any more.
pub(crate) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// The process ends.
pub(crate) const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(1);
/// A newer process holds the store id.
pub(crate) const CLOSE_SUPERSEDED: VarInt = VarInt::from_u32(2);
/// The peer sent what cannot be read: over a limit, unknown kind, truncated.
pub(crate) const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal.index(), index);
            assert_eq!(Refusal::from_code(refusal.code()), Some(refusal));
        }
        for code in [CLOSE_DONE, CLOSE_SHUTDOWN, CLOSE_SUPERSEDED, CLOSE_PROTOCOL, VarInt::from_u32(0x1ff)] {
            assert_eq!(Refusal::from_code(code), None);
        }
    }
}
