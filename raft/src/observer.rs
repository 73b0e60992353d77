//! Where the core's log lines go.

use core::fmt;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// Takes the log lines of one group. `()` takes none, and then no line is ever formatted: the calls compile to nothing.
pub trait Observer {
    /// Whether anything is taken at all. Lines are formatted only where this is true.
    const ENABLED: bool = true;

    /// Takes one line, without level and newline. The text is that of etcd/raft.
    fn log(&mut self, level: Level, line: fmt::Arguments<'_>);
}

impl Observer for () {
    const ENABLED: bool = false;

    fn log(&mut self, _: Level, _: fmt::Arguments<'_>) {}
}

macro_rules! debug {
    ($obs:expr, $($arg:tt)*) => { $crate::observer::emit!(Debug, $obs, $($arg)*) };
}
macro_rules! info {
    ($obs:expr, $($arg:tt)*) => { $crate::observer::emit!(Info, $obs, $($arg)*) };
}
macro_rules! warning {
    ($obs:expr, $($arg:tt)*) => { $crate::observer::emit!(Warn, $obs, $($arg)*) };
}
macro_rules! error {
    ($obs:expr, $($arg:tt)*) => { $crate::observer::emit!(Error, $obs, $($arg)*) };
}
macro_rules! emit {
    ($level:ident, $obs:expr, $($arg:tt)*) => {
        if O::ENABLED {
            $crate::observer::Observer::log(&mut $obs, $crate::observer::Level::$level, format_args!($($arg)*));
        }
    };
}
pub(crate) use {debug, emit, error, info, warning};
