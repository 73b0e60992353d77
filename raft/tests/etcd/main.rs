//! Replays the data-driven tests of etcd/raft and compares every byte of output.
//!
//! `FLOTILLA_ETCD_RAFT` names the folder with their `testdata`, `quorum/testdata` and `confchange/testdata`; by default
//! `../../shared/etcd-raft` beside the crate. Arguments choose files by parts of their paths. Prints a line per file,
//! with the first difference where there is one, and `N commands in M files, K failed` at the end.

mod confchanges;
mod datadriven;
mod environment;
mod interaction;
mod output;
mod quorums;

use std::any::Any;
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

const SUITES: [Suite; 3] = [
    Suite {
        folder: "testdata",
        start: || {
            let mut env = environment::Environment::new();
            Box::new(move |case| interaction::run(&mut env, case))
        },
    },
    Suite { folder: "quorum/testdata", start: || Box::new(quorums::run) },
    Suite {
        folder: "confchange/testdata",
        start: || {
            let mut changes = confchanges::Changes::new();
            Box::new(move |case| changes.run(case))
        },
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("etcd_data_files: test");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = args.into_iter().filter(|arg| !arg.starts_with('-')).collect();
    let root = std::env::var_os("FLOTILLA_ETCD_RAFT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/etcd-raft"), PathBuf::from);
    if !root.is_dir() {
        println!("skipped: {} is absent; set FLOTILLA_ETCD_RAFT to a copy of etcd/raft's data", root.display());
        return ExitCode::SUCCESS;
    }
    let (mut commands, mut files, mut failed) = (0, 0, 0);
    for Suite { folder, start } in SUITES {
        for path in files_in(&root.join(folder)) {
            let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
            if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
                continue;
            }
            files += 1;
            match run_file(&path, start()) {
                Ok(count) => {
                    commands += count;
                    println!("pass {name} ({count} commands)");
                }
                Err((count, difference)) => {
                    commands += count;
                    failed += 1;
                    println!("FAIL {name}: {difference}");
                }
            }
        }
    }
    println!("{commands} commands in {files} files, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// Runs the commands of a file up to the first difference. Returns how many were run.
fn run_file(path: &Path, mut handler: Handler) -> Result<usize, (usize, String)> {
    let text = std::fs::read_to_string(path).map_err(|err| (0, err.to_string()))?;
    let cases = datadriven::parse(&text).map_err(|err| (0, err))?;
    for (n, case) in cases.iter().enumerate() {
        let run = catch_unwind(AssertUnwindSafe(|| handler(case)));
        let mut actual = run.unwrap_or_else(|panic| format!("panic: {}", panic_text(&*panic)));
        if !actual.is_empty() && !actual.ends_with('\n') {
            actual.push('\n');
        }
        if actual != case.expected {
            return Err((n + 1, difference(case, &actual)));
        }
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
