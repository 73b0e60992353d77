//! The directives of the confchange suite: one configuration per file, changed by every command.

use flotilla_raft::confchange::Changer;
use flotilla_raft::tracker::Tracker;

use crate::datadriven::Case;
use crate::interaction::{parse_bool, parse_changes};

/// A configuration without a group around it.
pub struct Changes {
    tracker: Tracker,
    /// Grows with every command, so that the output tells when a member was added.
    last_index: u64,
}

impl Changes {
    pub fn new() -> Changes {
        Changes { tracker: Tracker::new(10, 0), last_index: 0 }
    }

    /// Runs one command and returns what it prints.
    pub fn run(&mut self, case: &Case) -> String {
        let changed = self.change(case);
        self.last_index += 1;
        changed.unwrap_or_else(|err| err)
    }

    fn change(&mut self, case: &Case) -> Result<String, String> {
        let changes = parse_changes(&case.input)?;
        let changer = Changer { tracker: &self.tracker, last_index: self.last_index };
        let changed = match case.command.as_str() {
            "simple" => changer.simple(&changes),
            "enter-joint" => {
                let mut auto_leave = false;
                for (key, value) in case.options() {
                    auto_leave = key == "autoleave" && parse_bool(value)?;
                }
                changer.enter_joint(auto_leave, &changes)
            }
            "leave-joint" if !changes.is_empty() => {
                return Err("this command takes no input".into());
            }
            "leave-joint" => changer.leave_joint(),
            _ => return Err("unknown command".into()),
        };
        let (config, progress) = changed.map_err(|err| err.to_string())?;
        self.tracker.config = config;
        self.tracker.progress = progress;
        Ok(format!("{}\n{}", self.tracker.config, self.tracker.progress))
    }
}
