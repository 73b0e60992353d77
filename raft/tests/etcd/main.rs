//! Replays the data-driven tests of etcd/raft, and our own scripts of the same form, and compares every byte of output.
//!
//! `FLOTILLA_ETCD_RAFT` names the folder with etcd/raft's `testdata`, `quorum/testdata` and `confchange/testdata`; by
//! default `../../shared/etcd-raft` beside the crate. Our scripts are in `tests/scripts`; `FLOTILLA_RECORD=1` writes
//! down in them what their commands print now. Arguments choose files by parts of their paths. Prints a line per file,
//! with the first difference where there is one, and `N commands in M files, K failed` for each of the two, etcd/raft's
//! last.

mod confchanges;
mod datadriven;
mod environment;
mod faults;
mod interaction;
mod output;
mod quorums;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use datadriven::Case;

/// Runs one command of a file and returns what it prints.
type Handler = Box<dyn FnMut(&Case) -> String>;

struct Suite {
    /// Where its files are.
    folder: &'static str,
    /// What a new file starts with.
    start: fn() -> Handler,
}

fn interaction() -> Handler {
    let mut env = environment::Environment::new();
    Box::new(move |case| interaction::run(&mut env, case))
}

fn confchanges() -> Handler {
    let mut changes = confchanges::Changes::new();
    Box::new(move |case| changes.run(case))
}

const ETCD_SUITES: [Suite; 3] = [
    Suite { folder: "testdata", start: interaction },
    Suite { folder: "quorum/testdata", start: || Box::new(quorums::run) },
    Suite { folder: "confchange/testdata", start: confchanges },
];

const OWN_SUITES: [Suite; 3] = [
    Suite { folder: "tests/scripts", start: interaction },
    Suite { folder: "tests/scripts/quorum", start: || Box::new(quorums::run) },
    Suite { folder: "tests/scripts/confchange", start: confchanges },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("data_files: test");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = args.into_iter().filter(|arg| !arg.starts_with('-')).collect();
    let record = std::env::var_os("FLOTILLA_RECORD").is_some();

    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = run_suites(crate_root, &OWN_SUITES, &filters, record);
    println!("own scripts: {own}");
    let etcd_root =
        std::env::var_os("FLOTILLA_ETCD_RAFT").map_or_else(|| crate_root.join("../../shared/etcd-raft"), PathBuf::from);
    if !etcd_root.is_dir() {
        println!("skipped: {} is absent; set FLOTILLA_ETCD_RAFT to a copy of etcd/raft's data", etcd_root.display());
        return own.exit_code();
    }
    let etcd = run_suites(&etcd_root, &ETCD_SUITES, &filters, false);
    println!("{etcd}");
    if own.failed > 0 { own.exit_code() } else { etcd.exit_code() }
}

#[derive(Default)]
struct Summary {
    commands: usize,
    files: usize,
    failed: usize,
}

impl Summary {
    fn exit_code(&self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands in {} files, {} failed", self.commands, self.files, self.failed)
    }
}

fn run_suites(root: &Path, suites: &[Suite], filters: &[String], record: bool) -> Summary {
    let mut summary = Summary::default();
    for Suite { folder, start } in suites {
        for path in files_in(&root.join(folder)) {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
                continue;
            }
            summary.files += 1;
            match run_file(&path, start(), record) {
                Ok(count) => {
                    summary.commands += count;
                    println!("pass {name} ({count} commands)");
                }
                Err((count, difference)) => {
                    summary.commands += count;
                    summary.failed += 1;
                    println!("FAIL {name}: {difference}");
                }
            }
        }
    }
    summary
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

/// Runs the commands of a file up to the first difference, or writes down what they print. Returns how many were run.
fn run_file(path: &Path, mut handler: Handler, record: bool) -> Result<usize, (usize, String)> {
    let text = std::fs::read_to_string(path).map_err(|err| (0, err.to_string()))?;
    let cases = datadriven::parse(&text).map_err(|err| (0, err))?;
    let lines: Vec<&str> = text.lines().collect();
    let (mut recorded, mut copied) = (String::new(), 0);
    for (n, case) in cases.iter().enumerate() {
        let run = catch_unwind(AssertUnwindSafe(|| handler(case)));
        let mut actual = run.unwrap_or_else(|panic| format!("panic: {}", panic_text(&*panic)));
        if !actual.is_empty() && !actual.ends_with('\n') {
            actual.push('\n');
        }
        // A script may be recorded with other messages, but not with another end.
        let broken = case.command == "outcome" && actual != "ok\n";
        if record && !broken {
            recorded.extend(lines[copied..=case.separator].iter().flat_map(|line| [line, "\n"]));
            recorded.push_str(&actual);
            copied = case.end;
        } else if broken || actual != case.expected {
            return Err((n + 1, difference(case, &actual)));
        }
    }
    if record {
        recorded.extend(lines[copied..].iter().flat_map(|line| [line, "\n"]));
        std::fs::write(path, recorded).map_err(|err| (cases.len(), err.to_string()))?;
    }
    Ok(cases.len())
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("of an unknown kind")
}

/// The first line that differs, with the lines around it.
fn difference(case: &Case, actual: &str) -> String {
    const AROUND: usize = 4;
    let (want, got): (Vec<&str>, Vec<&str>) = (case.expected.lines().collect(), actual.lines().collect());
    let at = want.iter().zip(&got).take_while(|(want, got)| want == got).count();
    let mut text = format!("line {}: {}\n", case.line, case.text);
    for line in &want[at.saturating_sub(AROUND)..at] {
        text += &format!("    | {line}\n");
    }
    for line in want.iter().skip(at).take(AROUND) {
        text += &format!("    - {line}\n");
    }
    for line in got.iter().skip(at).take(AROUND) {
        text += &format!("    + {line}\n");
    }
    text
}
