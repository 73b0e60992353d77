//! The directives of the interaction suite (`testdata`), over an [`Environment`]. Our own are in [`crate::faults`].

use bytes::Bytes;
use flotilla_raft::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Config, Message, MessageType,
    NO_LIMIT, ReadOnlyOption, Snapshot, Storage,
};

use crate::datadriven::Case;
use crate::environment::Environment;
use crate::faults;

/// What a command has to say: an error is printed like output, even where output is silenced.
pub type Handled = Result<(), String>;

/// Runs one command and returns what it prints.
pub fn run(env: &mut Environment, case: &Case) -> String {
    env.output.take();
    let handled = dispatch(env, case);
    if let Err(err) = handled {
        if env.output.is_quiet() {
            return err;
        }
        env.output.print(err);
    }
    let text = env.output.take();
    if text.is_empty() { "ok".into() } else { text }
}

fn dispatch(env: &mut Environment, case: &Case) -> Handled {
    match case.command.as_str() {
        "_breakpoint" => Ok(()),
        "add-nodes" => add_nodes(env, case),
        "campaign" => {
            env.node(case.number(0)?)?.raw.campaign();
            Ok(())
        }
        "compact" => compact(env, case),
        "deliver-msgs" => deliver_msgs(env, case),
        "process-ready" => for_each(env, case, "handling Ready", Environment::process_ready),
        "process-append-thread" => for_each(env, case, "processing append thread", Environment::process_append_thread),
        "process-apply-thread" => for_each(env, case, "processing apply thread", Environment::process_apply_thread),
        "log-level" => {
            let name = case.args.first().ok_or("the level is missing")?;
            env.output.set_level_named(&name.key)
        }
        "raft-log" => raft_log(env, case.number(0)?),
        "raft-state" => raft_state(env),
        "set-randomized-election-timeout" => {
            let timeout = case.option("timeout")?;
            env.node(case.number(0)?)?.raw.set_randomized_election_timeout(timeout as u32);
            Ok(())
        }
        "stabilize" => stabilize(env, case),
        "status" => {
            let status = env.node(case.number(0)?)?.raw.status();
            env.output.print(status.progress);
            Ok(())
        }
        "tick-election" => tick(env, case, |config| config.election_tick),
        "tick-heartbeat" => tick(env, case, |config| config.heartbeat_tick),
        "transfer-leadership" => {
            let to = case.option("to")?;
            env.node(case.option("from")?)?.raw.transfer_leader(to);
            Ok(())
        }
        "forget-leader" => {
            env.node(case.number(0)?)?.raw.forget_leader();
            Ok(())
        }
        "send-snapshot" => send_snapshot(env, case),
        "propose" => propose(env, case),
        "propose-conf-change" => propose_conf_change(env, case),
        "report-unreachable" => {
            let nodes = case.nodes()?;
            let [on, about] = nodes[..] else {
                return Err("must specify exactly two node indexes: node on which to report, and reported node".into());
            };
            env.node(on)?.raw.report_unreachable(about);
            Ok(())
        }
        _ => faults::dispatch(env, case),
    }
}

/// Does `what` for all nodes named; with a header each where there are several.
fn for_each(
    env: &mut Environment,
    case: &Case,
    header: &str,
    what: impl Fn(&mut Environment, u64) -> Handled,
) -> Handled {
    let nodes = case.nodes()?;
    let output = env.output.clone();
    for &id in &nodes {
        if nodes.len() > 1 {
            output.println(format_args!("> {id} {header}"));
            output.indented(|| what(env, id))?;
        } else {
            what(env, id)?;
        }
    }
    Ok(())
}

/// The spellings that Go accepts, and its error.
pub fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {value:?}: invalid syntax")),
    }
}

/// With the errors of Go.
pub fn parse_number(value: &str) -> Result<u64, String> {
    let reason = if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        "invalid syntax"
    } else {
        "value out of range"
    };
    value.parse().map_err(|_| format!("strconv.ParseUint: parsing {value:?}: {reason}"))
}

fn add_nodes(env: &mut Environment, case: &Case) -> Handled {
    let mut config = Config {
        election_tick: 3,
        heartbeat_tick: 1,
        max_bytes_per_msg: NO_LIMIT,
        max_inflight_msgs: i32::MAX as usize,
        check_quorum: false,
        pre_vote: false,
        step_down_on_removal: false,
        ids_are_unique: false,
        ..Config::default()
    };
    let mut snapshot = Snapshot::default();
    for (key, value) in case.options() {
        match key {
            "voters" => snapshot.metadata.conf_state.voters.push(parse_number(value)?),
            "learners" => snapshot.metadata.conf_state.learners.push(parse_number(value)?),
            "inflight" => config.max_inflight_msgs = parse_number(value)? as usize,
            "index" => {
                snapshot.metadata.index = parse_number(value)?;
                config.applied = snapshot.metadata.index;
            }
            "content" => snapshot.data = Bytes::copy_from_slice(value.as_bytes()),
            "async-storage-writes" => config.async_storage_writes = parse_bool(value)?,
            "prevote" => config.pre_vote = parse_bool(value)?,
            "checkquorum" => config.check_quorum = parse_bool(value)?,
            "max-committed-size-per-ready" => config.max_committed_bytes_per_ready = parse_number(value)?,
            "disable-conf-change-validation" => config.disable_conf_change_validation = parse_bool(value)?,
            "read-only" => {
                config.read_only = match value {
                    "safe" => ReadOnlyOption::Safe,
                    "lease-based" => ReadOnlyOption::LeaseBased,
                    _ => return Err(format!("invalid read-only option {value:?}")),
                }
            }
            "step-down-on-removal" => config.step_down_on_removal = parse_bool(value)?,
            _ => {}
        }
    }
    env.add_nodes(case.number(0)?, &config, snapshot)
}

fn compact(env: &mut Environment, case: &Case) -> Handled {
    let (id, index) = (case.number(0)?, case.number(1)?);
    let log = &mut env.node(id)?.raw.storage_mut().log;
    log.compact(index).map_err(|err| err.to_string())?;
    raft_log(env, id)
}

fn deliver_msgs(env: &mut Environment, case: &Case) -> Handled {
    let mut recipients: Vec<(u64, bool)> = case.nodes()?.into_iter().map(|id| (id, false)).collect();
    let mut kind = None;
    for (key, value) in case.options() {
        match key {
            "drop" => {
                let id = parse_number(value)?;
                if recipients.iter().any(|recipient| recipient.0 == id) {
                    return Err(format!("can't both deliver and drop msgs to {id}"));
                }
                recipients.push((id, true));
            }
            "type" => {
                let named = MessageType::ALL.into_iter().find(|kind| kind.to_string() == value);
                kind = Some(named.ok_or_else(|| format!("unknown message type {value}"))?);
            }
            _ => {}
        }
    }
    let delivered: usize = recipients.into_iter().map(|(id, drop)| env.deliver(id, drop, kind)).sum();
    if delivered == 0 {
        env.output.println("no messages");
    }
    Ok(())
}

fn raft_log(env: &mut Environment, id: u64) -> Handled {
    let output = env.output.clone();
    let log = &env.any_node(id)?.raw.storage().log;
    let (first, last) = (log.first_index(), log.last_index());
    if last < first {
        output.print(format_args!("log is empty: first index={first}, last index={last}"));
        return Ok(());
    }
    for entry in log.entries(first, last + 1, NO_LIMIT).map_err(|err| err.to_string())? {
        output.println(entry);
    }
    Ok(())
}

fn raft_state(env: &mut Environment) -> Handled {
    for node in &env.nodes {
        let raw = &node.raw;
        if node.life == faults::Life::Down {
            env.output.println(format_args!("{}: down", raw.id()));
            continue;
        }
        let voter = if raw.configuration().voters.contains(raw.id()) { "Voter" } else { "Non-Voter" };
        env.output.println(format_args!(
            "{}: {} ({voter}) Term:{} Lead:{}",
            raw.id(),
            raw.role(),
            raw.term(),
            raw.leader_id()
        ));
    }
    Ok(())
}

fn stabilize(env: &mut Environment, case: &Case) -> Handled {
    let level = env.output.level();
    let mut handled = Ok(());
    for (key, value) in case.options() {
        if key == "log-level" {
            handled = handled.and_then(|()| env.output.set_level_named(value));
        }
    }
    let ids = case.nodes()?;
    let ids = if ids.is_empty() { (1..=env.nodes.len() as u64).collect() } else { ids };
    handled = handled.and_then(|()| env.stabilize(&ids));
    env.output.set_level(level);
    handled
}

fn tick(env: &mut Environment, case: &Case, ticks: impl Fn(&Config) -> u32) -> Handled {
    let node = env.node(case.number(0)?)?;
    for _ in 0..ticks(&node.config) {
        node.raw.tick();
    }
    Ok(())
}

fn send_snapshot(env: &mut Environment, case: &Case) -> Handled {
    let (from, to) = (case.number(0)?, case.number(1)?);
    let raw = &env.node(from)?.raw;
    let snapshot = raw.storage().snapshot(to).map_err(|err| err.to_string())?;
    let message = Message {
        kind: MessageType::Snap,
        term: raw.term(),
        from,
        to,
        snapshot: Some(Box::new(snapshot)),
        ..Message::default()
    };
    env.output.print(&message);
    env.messages.get_mut().push(message);
    Ok(())
}

fn propose(env: &mut Environment, case: &Case) -> Handled {
    if case.args.len() != 2 || !case.args[1].values.is_empty() {
        return Err("propose takes a node and one word".into());
    }
    let data = Bytes::copy_from_slice(case.args[1].key.as_bytes());
    dropped(env.node(case.number(0)?)?.raw.propose(data))
}

fn dropped<T, E>(proposed: Result<T, E>) -> Handled {
    proposed.map(drop).map_err(|_| "raft proposal dropped".into())
}

fn propose_conf_change(env: &mut Environment, case: &Case) -> Handled {
    let mut v1 = false;
    let mut transition = ConfChangeTransition::Auto;
    for (key, value) in case.options() {
        match (key, value) {
            ("v1", _) => v1 = parse_bool(value)?,
            ("transition", "auto") => transition = ConfChangeTransition::Auto,
            ("transition", "implicit") => transition = ConfChangeTransition::JointImplicit,
            ("transition", "explicit") => transition = ConfChangeTransition::JointExplicit,
            ("transition", _) => return Err(format!("unknown transition {value}")),
            _ => return Err(format!("unknown command {key}")),
        }
    }
    let changes = parse_changes(&case.input)?;
    let raw = &mut env.node(case.number(0)?)?.raw;
    if !v1 {
        return dropped(raw.propose_conf_change(ConfChangeV2 { transition, changes, ..ConfChangeV2::default() }));
    }
    match changes[..] {
        [ConfChangeSingle { kind, node_id }] if transition == ConfChangeTransition::Auto => {
            dropped(raw.propose_conf_change_v1(ConfChange { kind, node_id, ..ConfChange::default() }))
        }
        _ => Err("v1 conf change can only have one operation and no transition".into()),
    }
}

/// Parses changes such as `v1 l2 r3 u4`: add a voter, add a learner, remove, update.
pub fn parse_changes(input: &str) -> Result<Vec<ConfChangeSingle>, String> {
    let input = input.trim();
    if input.is_empty() {
        return Ok(Vec::new());
    }
    let parse = |token: &str| {
        let (kind, id) = token
            .split_at_checked(1)
            .filter(|(_, id)| !id.is_empty())
            .ok_or_else(|| format!("unknown token {token}"))?;
        let kind = match kind {
            "v" => ConfChangeType::AddNode,
            "l" => ConfChangeType::AddLearnerNode,
            "r" => ConfChangeType::RemoveNode,
            "u" => ConfChangeType::UpdateNode,
            _ => return Err(format!("unknown input: {token}")),
        };
        Ok(ConfChangeSingle { kind, node_id: parse_number(id)? })
    };
    input.split(' ').map(parse).collect()
}
