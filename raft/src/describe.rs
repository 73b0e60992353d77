//! Printed forms, byte for byte those of etcd/raft: the data-driven tests compare them, and people who know that
//! library can read them.
//!
//! Messages: `1->2 MsgApp Term:1 Log:1/11 Commit:11 Entries:[1/12 EntryNormal "foo"]`, peer ids in hexadecimal, fields
//! that are not set left out. Entries: `term/index type payload`.

use core::fmt::{self, Display, Formatter, Write};

use crate::conf::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use crate::message::{APPEND_THREAD, APPLY_THREAD, Entry, HardState, Message, MessageType, NONE, Payload, Snapshot};
use crate::raw_node::{Ready, SoftState};

impl Display for MessageType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MessageType::Hup => "MsgHup",
            MessageType::Beat => "MsgBeat",
            MessageType::Prop => "MsgProp",
            MessageType::App => "MsgApp",
            MessageType::AppResp => "MsgAppResp",
            MessageType::Vote => "MsgVote",
            MessageType::VoteResp => "MsgVoteResp",
            MessageType::Snap => "MsgSnap",
            MessageType::Heartbeat => "MsgHeartbeat",
            MessageType::HeartbeatResp => "MsgHeartbeatResp",
            MessageType::Unreachable => "MsgUnreachable",
            MessageType::SnapStatus => "MsgSnapStatus",
            MessageType::CheckQuorum => "MsgCheckQuorum",
            MessageType::TransferLeader => "MsgTransferLeader",
            MessageType::TimeoutNow => "MsgTimeoutNow",
            MessageType::ReadIndex => "MsgReadIndex",
            MessageType::ReadIndexResp => "MsgReadIndexResp",
            MessageType::PreVote => "MsgPreVote",
            MessageType::PreVoteResp => "MsgPreVoteResp",
            MessageType::StorageAppend => "MsgStorageAppend",
            MessageType::StorageAppendResp => "MsgStorageAppendResp",
            MessageType::StorageApply => "MsgStorageApply",
            MessageType::StorageApplyResp => "MsgStorageApplyResp",
            MessageType::ForgetLeader => "MsgForgetLeader",
        })
    }
}

/// A peer, a storage thread, or nobody.
struct Target(u64);

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            NONE => f.write_str("None"),
            APPEND_THREAD => f.write_str("AppendThread"),
            APPLY_THREAD => f.write_str("ApplyThread"),
            id => write!(f, "{id:x}"),
        }
    }
}

/// Ids in hexadecimal, separated by commas.
pub(crate) struct CommaHex<'a>(pub &'a [u64]);

impl Display for CommaHex<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (n, id) in self.0.iter().enumerate() {
            write!(f, "{}{id:x}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Numbers in brackets, separated by spaces.
struct Bracketed<'a, T>(&'a [T]);

impl<T: Display> Display for Bracketed<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (n, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if n > 0 { " " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Bytes in double quotes, as Go's `%q` prints them.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                quote_char(f, c)?;
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        f.write_char('"')
    }
}

fn quote_char(f: &mut Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '"' => f.write_str("\\\""),
        '\\' => f.write_str("\\\\"),
        '\u{7}' => f.write_str("\\a"),
        '\u{8}' => f.write_str("\\b"),
        '\u{c}' => f.write_str("\\f"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\u{b}' => f.write_str("\\v"),
        ' '..='~' => f.write_char(c),
        '\0'..='\u{1f}' | '\u{7f}' => write!(f, "\\x{:02x}", u32::from(c)),
        _ if c.escape_debug().len() == 1 => f.write_char(c),
        '\0'..='\u{ffff}' => write!(f, "\\u{:04x}", u32::from(c)),
        _ => write!(f, "\\U{:08x}", u32::from(c)),
    }
}

/// `v1`, `l2`, `r3`, `u4`: add a voter, add a learner, remove, update.
impl Display for ConfChangeSingle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            ConfChangeType::AddNode => 'v',
            ConfChangeType::AddLearnerNode => 'l',
            ConfChangeType::RemoveNode => 'r',
            ConfChangeType::UpdateNode => 'u',
        };
        write!(f, "{letter}{}", self.node_id)
    }
}

impl Display for ConfChangeType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfChangeType::AddNode => "ConfChangeAddNode",
            ConfChangeType::AddLearnerNode => "ConfChangeAddLearnerNode",
            ConfChangeType::RemoveNode => "ConfChangeRemoveNode",
            ConfChangeType::UpdateNode => "ConfChangeUpdateNode",
        })
    }
}

impl Display for ConfChangeTransition {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConfChangeTransition::Auto => "ConfChangeTransitionAuto",
            ConfChangeTransition::JointImplicit => "ConfChangeTransitionJointImplicit",
            ConfChangeTransition::JointExplicit => "ConfChangeTransitionJointExplicit",
        })
    }
}

impl Display for ConfChangeV2 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "transition:{}", self.transition)?;
        for change in &self.changes {
            write!(f, " changes:{{type:{} node_id:{}}}", change.kind, change.node_id)?;
        }
        if !self.context.is_empty() {
            write!(f, " context:{}", Quoted(&self.context))?;
        }
        Ok(())
    }
}

impl Display for ConfState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Voters:{} VotersOutgoing:{} Learners:{} LearnersNext:{} AutoLeave:{}",
            Bracketed(&self.voters),
            Bracketed(&self.voters_outgoing),
            Bracketed(&self.learners),
            Bracketed(&self.learners_next),
            self.auto_leave
        )
    }
}

impl Display for Snapshot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let metadata = &self.metadata;
        write!(f, "Index:{} Term:{} ConfState:{}", metadata.index, metadata.term, metadata.conf_state)
    }
}

impl Display for HardState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Term:{}", self.term)?;
        if self.vote != NONE {
            write!(f, " Vote:{}", self.vote)?;
        }
        write!(f, " Commit:{}", self.commit)
    }
}

impl Display for SoftState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Lead:{} State:{}", self.leader_id, self.role)
    }
}

impl Display for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ", self.term, self.index)?;
        match &self.payload {
            Payload::Normal(data) => write!(f, "EntryNormal {}", Quoted(data)),
            Payload::ConfChange(change) => {
                let single = ConfChangeSingle { kind: change.kind, node_id: change.node_id };
                write!(f, "EntryConfChange {single}")
            }
            Payload::ConfChangeV2(change) => {
                f.write_str("EntryConfChangeV2")?;
                change.changes.iter().try_for_each(|single| write!(f, " {single}"))
            }
        }
    }
}

impl Display for Message {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        describe_message(f, self, 0)
    }
}

/// All lines but the first one, and what they nest, begin with `indent` spaces.
fn describe_message(f: &mut Formatter<'_>, m: &Message, indent: usize) -> fmt::Result {
    write!(f, "{}->{} {} Term:{} Log:{}/{}", Target(m.from), Target(m.to), m.kind, m.term, m.log_term, m.index)?;
    if m.reject {
        write!(f, " Rejected (Hint: {})", m.reject_hint)?;
    }
    if m.commit != 0 {
        write!(f, " Commit:{}", m.commit)?;
    }
    if m.vote != NONE {
        write!(f, " Vote:{}", m.vote)?;
    }
    match &m.entries[..] {
        [] => {}
        [entry] => write!(f, " Entries:[{entry}]")?,
        entries => {
            f.write_str(" Entries:[")?;
            for entry in entries {
                write!(f, "\n{:indent$}  {entry}", "")?;
            }
            write!(f, "\n{:indent$}]", "")?;
        }
    }
    if let Some(snapshot) = m.snapshot.as_deref().filter(|snapshot| !snapshot.is_empty()) {
        write!(f, "\n{:indent$}  Snapshot: {snapshot}", "")?;
    }
    if !m.responses.is_empty() {
        f.write_str(" Responses:[")?;
        for response in &m.responses {
            write!(f, "\n{:indent$}  ", "")?;
            describe_message(f, response, indent + 2)?;
        }
        write!(f, "\n{:indent$}]", "")?;
    }
    Ok(())
}

impl Display for Ready {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.describes_nothing() {
            return f.write_str("<empty Ready>");
        }
        writeln!(f, "Ready MustSync={}:", self.must_sync)?;
        if let Some(soft_state) = &self.soft_state {
            writeln!(f, "{soft_state}")?;
        }
        if let Some(hard_state) = self.hard_state.filter(|state| !state.is_empty()) {
            writeln!(f, "HardState {hard_state}")?;
        }
        if !self.read_states.is_empty() {
            f.write_str("ReadStates [")?;
            for (n, read) in self.read_states.iter().enumerate() {
                write!(f, "{}{{{} {}}}", if n > 0 { " " } else { "" }, read.index, Bracketed(&read.context))?;
            }
            f.write_str("]\n")?;
        }
        if !self.entries.is_empty() {
            f.write_str("Entries:\n")?;
            self.entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))?;
        }
        if let Some(snapshot) = self.snapshot.as_deref().filter(|snapshot| !snapshot.is_empty()) {
            writeln!(f, "Snapshot {snapshot}")?;
        }
        if !self.committed_entries.is_empty() {
            f.write_str("CommittedEntries:\n")?;
            self.committed_entries.iter().try_for_each(|entry| writeln!(f, "{entry}"))?;
        }
        if !self.messages.is_empty() {
            f.write_str("Messages:\n")?;
            self.messages.iter().try_for_each(|message| writeln!(f, "{message}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Quoted;
    use alloc::string::ToString;

    #[test]
    fn bytes_are_quoted_as_go_does() {
        let cases: [(&[u8], &str); 7] = [
            (b"", r#""""#),
            (b"foo", r#""foo""#),
            (b"\"fo'o\"\\", r#""\"fo'o\"\\""#),
            (b"\x00\x07\x1f\x7f\n\t", r#""\x00\a\x1f\x7f\n\t""#),
            (b"a\xffb\xc3", r#""a\xffb\xc3""#),
            ("a\u{e9}\u{4e16}\u{1f600}".as_bytes(), "\"a\u{e9}\u{4e16}\u{1f600}\""),
            ("\u{200b}\u{e0001}".as_bytes(), r#""\u200b\U000e0001""#),
        ];
        for (bytes, want) in cases {
            assert_eq!(Quoted(bytes).to_string(), want);
        }
    }
}
