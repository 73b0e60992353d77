//! What a command prints: its own lines and the log lines of the nodes, at or above a level.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use flotilla_raft::{Level, Observer};

const LEVELS: [&str; 6] = ["DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE"];
const NONE: usize = 5;

#[derive(Debug, Default)]
struct State {
    text: String,
    /// An index into [`LEVELS`]. At the last one, even the lines of the commands are dropped.
    level: usize,
}

/// Shared by the environment and the observers of all its nodes.
#[derive(Clone, Debug, Default)]
pub struct Output(Rc<RefCell<State>>);

impl Output {
    pub fn is_quiet(&self) -> bool {
        self.0.borrow().level == NONE
    }

    pub fn level(&self) -> usize {
        self.0.borrow().level
    }

    pub fn set_level(&self, level: usize) {
        self.0.borrow_mut().level = level;
    }

    /// Sets the level by name, in any case.
    pub fn set_level_named(&self, name: &str) -> Result<(), String> {
        let level = LEVELS.iter().position(|level| level.eq_ignore_ascii_case(name));
        self.set_level(level.ok_or_else(|| format!("log levels must be either of [{}]", LEVELS.join(" ")))?);
        Ok(())
    }

    pub fn print(&self, text: impl fmt::Display) {
        if !self.is_quiet() {
            let text = text.to_string();
            self.0.borrow_mut().text.push_str(&text);
        }
    }

    pub fn println(&self, text: impl fmt::Display) {
        self.print(format_args!("{text}\n"));
    }

    /// What was printed since the last call.
    pub fn take(&self) -> String {
        std::mem::take(&mut self.0.borrow_mut().text)
    }

    /// Indents by two spaces what `f` prints.
    pub fn indented<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = self.take();
        let result = f();
        let inner = self.take();
        let mut state = self.0.borrow_mut();
        state.text = before;
        for line in inner.lines() {
            state.text.push_str("  ");
            state.text.push_str(line);
            state.text.push('\n');
        }
        result
    }
}

impl Observer for Output {
    fn log(&mut self, level: Level, line: fmt::Arguments<'_>) {
        let level = match level {
            Level::Debug => 0,
            Level::Info => 1,
            Level::Warn => 2,
            Level::Error => 3,
        };
        if self.level() <= level {
            self.println(format_args!("{} {line}", LEVELS[level]));
        }
    }
}
