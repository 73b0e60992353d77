//! `flotilla-sim`: runs seeds until a law is broken, and says how to see it again.

use std::{ops::Range, process::ExitCode};

use clap::Parser;
use flotilla_sim::{Knobs, run};

/// Runs the store's real logic under simulated faults.
#[derive(Parser)]
#[command(name = "flotilla-sim", version)]
struct Arguments {
    /// Run this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds: first..last, without the last.
    #[arg(long, value_parser = parse_range, default_value = "0..100")]
    seeds: Range<u64>,
    /// So many stores, whatever the seed says.
    #[arg(long)]
    stores: Option<usize>,
    /// So many simulated seconds, whatever the seed says.
    #[arg(long)]
    secs: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Say nothing about runs in which all is well.
    #[arg(long)]
    quiet: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once("..").ok_or("seeds are given as first..last")?;
    let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    Ok(number(first)?..number(last)?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seeds = arguments.seed.map_or(arguments.seeds.clone(), |seed| seed..seed + 1);
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = 0;
    for seed in seeds.clone() {
        let mut knobs = Knobs::random(seed);
        knobs.stores = arguments.stores.unwrap_or(knobs.stores);
        knobs.run_ms = arguments.secs.map_or(knobs.run_ms, |secs| secs * 1000);
        if arguments.trace || seeds.end - seeds.start == 1 {
            println!("seed {seed}: {knobs:?}");
        }
        let outcome = run(&knobs, false, arguments.trace);
        let Some(law) = outcome.broken else {
            if !arguments.quiet {
                println!("seed {seed}: well, digest {:016x}, {}", outcome.digest, outcome.summary);
            }
            continue;
        };
        failures += 1;
        if arguments.keep_going {
            let head: String = law.lines().next().unwrap_or_default().chars().take(300).collect();
            println!("seed {seed}: BROKEN {head}");
            continue;
        }
        if !arguments.trace {
            println!("seed {seed}: {knobs:?}");
            for line in run(&knobs, true, false).last_lines {
                println!("{line}");
            }
        }
        println!("seed {seed}: BROKEN {law}");
        let stores = arguments.stores.map_or(String::new(), |stores| format!(" --stores {stores}"));
        let secs = arguments.secs.map_or(String::new(), |secs| format!(" --secs {secs}"));
        println!("again: flotilla-sim --seed {seed}{stores}{secs} --trace");
        return ExitCode::FAILURE;
    }
    println!("{} seeds, {failures} broken", seeds.end - seeds.start);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
