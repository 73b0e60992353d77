//! `flotilla-sim`: runs seeds until a law is broken, and says how to see it again.

use std::{num::NonZeroUsize, ops::Range, process::ExitCode};

use clap::{Parser, ValueEnum};
use flotilla_sim::{
    Knobs, Outcome, campaign,
    faults::Fault,
    group,
    minimise::{self, Case},
    run,
};

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
    /// How a seed's knobs are set.
    #[arg(long, value_enum, default_value = "random")]
    profile: Profile,
    /// Run single groups of the consensus core, with joint changes of members, in the place of whole stores.
    #[arg(long, conflicts_with_all = ["profile", "secs", "set", "skip", "minimise", "threads"])]
    group: bool,
    /// So many simulated seconds, whatever the seed says.
    #[arg(long)]
    secs: Option<u64>,
    /// Turn a knob, whatever the seed says: stores=5, delay_us=50..500. May be repeated.
    #[arg(long, value_name = "KNOB=VALUE")]
    set: Vec<String>,
    /// Leave out one fault, by kind and number as the trace names it: crash:3. May be repeated, or separated by commas.
    #[arg(long, value_name = "KIND:NUMBER", value_delimiter = ',', value_parser = parse_fault)]
    skip: Vec<(Fault, u32)>,
    /// Find the shortest schedule that still breaks the seed's law.
    #[arg(long, requires = "seed")]
    minimise: bool,
    /// Seeds run at the same time.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Say nothing about runs in which all is well.
    #[arg(long)]
    quiet: bool,
    /// Switch on this deliberate bug.
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, default_value_t = 0)]
    bug: u32,
    /// Look for every deliberate bug in the seeds, and print a table.
    #[cfg(feature = "seeded-bugs")]
    #[arg(long)]
    bugs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// As the seed wants it.
    Random,
    /// Without faults.
    Calm,
    /// Five stores with 64 regions, without faults: for the speed.
    Large,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Profile::Random => "random",
            Profile::Calm => "calm",
            Profile::Large => "large",
        }
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once("..").ok_or("seeds are given as first..last")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let seeds = number(first)?..number(last)?;
    if seeds.is_empty() {
        return Err(format!("there is no seed from {first} on below {last}"));
    }
    Ok(seeds)
}

fn parse_fault(text: &str) -> Result<(Fault, u32), String> {
    let (kind, number) = text.split_once(':').ok_or("a fault is given as kind:number")?;
    let kind = Fault::ALL.into_iter().find(|fault| fault.name() == kind).ok_or(format!("there is no fault {kind}"))?;
    Ok((kind, number.parse().map_err(|error| format!("{number}: {error}"))?))
}

impl Arguments {
    fn knobs(&self, seed: u64) -> Result<Knobs, String> {
        let mut knobs = match self.profile {
            Profile::Random => Knobs::random(seed),
            Profile::Calm => Knobs::calm(seed),
            Profile::Large => Knobs::large(seed),
        };
        knobs.run_ms = self.secs.map_or(knobs.run_ms, |secs| secs * 1000);
        for setting in &self.set {
            let (name, value) = setting.split_once('=').ok_or(format!("{setting}: a knob is turned by name=value"))?;
            knobs.turn(name, value)?;
        }
        knobs.skip.extend(self.skip.iter().copied());
        Ok(knobs)
    }

    /// What replays a seed, without what the minimiser adds.
    fn command(&self, seed: u64) -> String {
        let mut command = format!("flotilla-sim {}--seed {seed}", if self.group { "--group " } else { "" });
        if self.profile != Profile::Random {
            command.push_str(&format!(" --profile {}", self.profile.name()));
        }
        command.extend(self.secs.map(|secs| format!(" --secs {secs}")));
        command.extend(self.set.iter().map(|setting| format!(" --set {setting}")));
        if !self.skip.is_empty() {
            let skipped = self.skip.iter().map(|(fault, number)| format!("{}:{number}", fault.name()));
            command.push_str(&format!(" --skip {}", skipped.collect::<Vec<_>>().join(",")));
        }
        #[cfg(feature = "seeded-bugs")]
        if self.bug > 0 {
            command.push_str(&format!(" --bug {}", self.bug));
        }
        command
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.trace {
        std::panic::set_hook(Box::new(|_| {}));
    }
    match work(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn work(arguments: &Arguments) -> Result<ExitCode, String> {
    #[cfg(feature = "seeded-bugs")]
    {
        if arguments.bugs {
            return Ok(flotilla_sim::bugs::print_table(arguments.seeds.clone(), arguments.threads.get()));
        }
        flotilla_raft::seeded::choose(arguments.bug);
    }
    if arguments.group {
        return Ok(run_groups(arguments));
    }
    let Some(seed) = arguments.seed else { return run_seeds(arguments) };
    let knobs = arguments.knobs(seed)?;
    println!("seed {seed}, profile {}: {knobs:?}", arguments.profile.name());
    if arguments.minimise {
        let minimal = minimise::minimise(Case::new(knobs), |text| println!("{text}"));
        let Some((case, law)) = minimal else {
            println!("seed {seed}: well, there is nothing to make smaller");
            return Ok(ExitCode::SUCCESS);
        };
        println!("still broken: {law}");
        println!("faults left:");
        for (fault, number, at_us) in &case.happened {
            println!("  {:>6}.{:06} {}:{number}", at_us / 1_000_000, at_us % 1_000_000, fault.name());
        }
        println!("again: {} {} --trace", arguments.command(seed), case.arguments());
        return Ok(ExitCode::FAILURE);
    }
    let began = std::time::Instant::now();
    let outcome = run(&knobs, false, arguments.trace);
    let (real, simulated) = (began.elapsed().as_secs_f64(), outcome.simulated_us as f64 / 1e6);
    match outcome.broken {
        None => {
            println!("seed {seed}: well, digest {:016x}, {}", outcome.digest, outcome.summary);
            println!(
                "{simulated:.0} simulated seconds in {real:.2} s: {:.0} times real time, {:.0} events/s",
                simulated / real,
                outcome.steps as f64 / real
            );
            Ok(ExitCode::SUCCESS)
        }
        Some(law) => {
            fail(arguments, &knobs, &law);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn run_groups(arguments: &Arguments) -> ExitCode {
    let seeds = arguments.seed.map_or(arguments.seeds.clone(), |seed| seed..seed + 1);
    let mut broken = 0;
    for seed in seeds.clone() {
        let outcome = group::run(seed, false, arguments.trace);
        broken += u64::from(outcome.broken.is_some());
        if let Some(law) = outcome.broken {
            println!("group {seed}: BROKEN {law}");
            if !arguments.keep_going {
                leave_trace(&format!("group-{seed}"), "", &group::run(seed, true, false), &law);
                println!("again:   {} --trace", arguments.command(seed));
                return ExitCode::FAILURE;
            }
        } else if !arguments.quiet {
            println!("group {seed}: well, digest {:016x}, {}", outcome.digest, outcome.summary);
        }
    }
    println!("{} groups, {broken} broken", seeds.end - seeds.start);
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says all there is to say about a broken seed, and leaves its trace in a file.
fn fail(arguments: &Arguments, knobs: &Knobs, law: &str) {
    let seed = knobs.seed;
    println!("seed {seed}, profile {}: BROKEN {law}", arguments.profile.name());
    println!("{knobs:?}");
    leave_trace(&seed.to_string(), &format!("{knobs:?}\n"), &run(knobs, true, false), law);
    println!("again:   {} --trace", arguments.command(seed));
    println!("smaller: {} --minimise", arguments.command(seed));
}

fn leave_trace(name: &str, head: &str, outcome: &Outcome, law: &str) {
    let path = std::env::temp_dir().join(format!("flotilla-sim-{name}.trace"));
    let text = format!("{head}{}\nBROKEN {law}\n", outcome.last_lines.join("\n"));
    match std::fs::write(&path, text) {
        Ok(()) => println!("the end of its trace: {}", path.display()),
        Err(error) => println!("the trace could not be written to {}: {error}", path.display()),
    }
}

fn run_seeds(arguments: &Arguments) -> Result<ExitCode, String> {
    let mut first = None;
    let mut broken = 0u64;
    arguments.knobs(arguments.seeds.start)?;
    campaign::run_all(
        arguments.seeds.clone(),
        arguments.threads.get(),
        |seed| arguments.knobs(seed).expect("the arguments fit every seed"),
        |knobs, outcome| {
            let seed = knobs.seed;
            match outcome.broken {
                None if arguments.quiet => {}
                None => println!("seed {seed}: well, digest {:016x}, {}", outcome.digest, outcome.summary),
                Some(law) => {
                    broken += 1;
                    let head: String = law.lines().next().unwrap_or_default().chars().take(300).collect();
                    println!("seed {seed}: BROKEN {head}");
                    first.get_or_insert((knobs, law));
                }
            }
            arguments.keep_going || broken == 0
        },
    );
    if let Some((knobs, law)) = &first
        && !arguments.keep_going
    {
        fail(arguments, knobs, law);
        return Ok(ExitCode::FAILURE);
    }
    println!("{} seeds, {broken} broken", arguments.seeds.end - arguments.seeds.start);
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
