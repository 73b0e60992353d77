//! Makes a broken seed small: leaves out whole kinds of faults, then single ones, clients and stores, and shortens the run, as long as the
//! same law stays broken.
//!
//! Every kind of fault has its own stream of chance, so leaving one out moves no other. What the network does afterwards differs all the
//! same: whether the law is still broken is found out by running, and a step that mends it is taken back.

use crate::{Knobs, faults::Fault, run};

/// A broken run, as small as it is known so far.
#[derive(Clone, Debug)]
pub struct Case {
    /// What to run.
    pub knobs: Knobs,
    /// What was turned, by name.
    turned: Vec<(String, String)>,
    /// The faults that took place in it.
    pub happened: Vec<(Fault, u32, u64)>,
}

impl Case {
    /// As the seed has it.
    pub fn new(knobs: Knobs) -> Case {
        Case { knobs, turned: Vec::new(), happened: Vec::new() }
    }

    fn turn(&mut self, name: &str, value: &str) {
        self.knobs.turn(name, value).expect("the minimiser turns knobs that exist");
        self.turned.retain(|(other, _)| other != name);
        self.turned.push((name.to_owned(), value.to_owned()));
    }

    /// What to add to the command line to get this run.
    pub fn arguments(&self) -> String {
        let mut arguments: Vec<String> =
            self.turned.iter().map(|(name, value)| format!("--set {name}={value}")).collect();
        if !self.knobs.skip.is_empty() {
            let skipped = self.knobs.skip.iter().map(|(fault, number)| format!("{}:{number}", fault.name()));
            arguments.push(format!("--skip {}", skipped.collect::<Vec<_>>().join(",")));
        }
        arguments.join(" ")
    }
}

/// A law without its particulars: up to the first colon.
fn name_of(law: &str) -> &str {
    law.split(':').next().unwrap_or(law)
}

/// The smallest run found in which the law that `case` breaks is still broken, and what it says there; `None` if all is well.
pub fn minimise(case: Case, mut tell: impl FnMut(&str)) -> Option<(Case, String)> {
    let mut runs = 0;
    let mut best = case;
    let first = run(&best.knobs, false, false);
    let mut law = first.broken?;
    best.happened = first.happened;
    let wanted = name_of(&law).to_owned();
    tell(&format!("to keep: {law}"));
    let mut attempt = |best: &mut Case, law: &mut String, smaller: Case, what: &str| {
        runs += 1;
        let outcome = run(&smaller.knobs, false, false);
        let broken = outcome.broken.filter(|broken| name_of(broken) == wanted);
        let Some(broken) = broken else { return false };
        *best = Case { happened: outcome.happened, ..smaller };
        *law = broken;
        tell(&format!("{what}: still broken, {} faults left", best.happened.len()));
        true
    };
    for fault in Fault::ALL {
        let mut smaller = best.clone();
        if *fault.every_ms(&mut smaller.knobs) > 0 {
            smaller.turn(&format!("{}_every_ms", fault.name().replace('-', "_")), "0");
            attempt(&mut best, &mut law, smaller, &format!("without {}", fault.name()));
        }
    }
    for knob in ["loss", "duplicates", "stragglers", "snapshot_loss", "drift_ppm", "crash_all", "clients"] {
        let mut smaller = best.clone();
        smaller.turn(knob, "0");
        if smaller.knobs != best.knobs {
            attempt(&mut best, &mut law, smaller, &format!("{knob} 0"));
        }
    }
    // Faults, in halves of halves.
    let mut size = best.happened.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.happened.len() {
            let mut smaller = best.clone();
            let part = best.happened[from..(from + size).min(best.happened.len())].iter();
            smaller.knobs.skip.extend(part.map(|(fault, number, _)| (*fault, *number)));
            if !attempt(&mut best, &mut law, smaller, &format!("without {size} faults from number {from} on")) {
                from += size;
            }
        }
        size /= 2;
    }
    // The run is cut in halves of what is left of it.
    let mut step_ms = best.knobs.run_ms / 2;
    while step_ms >= 250 {
        let mut smaller = best.clone();
        smaller.turn("run_ms", &(best.knobs.run_ms - step_ms).to_string());
        if !attempt(&mut best, &mut law, smaller, "shorter") {
            step_ms /= 2;
        }
        step_ms = step_ms.min(best.knobs.run_ms / 2);
    }
    // What a skipped fault never was need not be named.
    let mut smaller = best.clone();
    smaller.knobs.skip.retain(|(fault, _)| *fault.every_ms(&mut best.knobs.clone()) > 0);
    attempt(&mut best, &mut law, smaller, "fewer words");
    tell(&format!("{runs} runs"));
    Some((best, law))
}
