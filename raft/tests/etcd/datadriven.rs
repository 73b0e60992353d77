//! The file format of cockroachdb/datadriven: commands with arguments, optional input, and the expected output.
//!
//! ```text
//! # A comment.
//! command positional key=value key=(value, value)
//! optional input
//! ----
//! expected output, up to a blank line
//! ```
//!
//! Output with blank lines stands between two pairs of `----` lines. A command line that ends with `\` continues.

use std::fmt::Write as _;

/// One argument of a command; positional if it has no values.
#[derive(Debug)]
pub struct Arg {
    pub key: String,
    pub values: Vec<String>,
}

/// One command with its input and expected output.
#[derive(Debug)]
pub struct Case {
    /// The number of its line, from 1.
    pub line: usize,
    /// The command line as it stands in the file.
    pub text: String,
    pub command: String,
    pub args: Vec<Arg>,
    pub input: String,
    pub expected: String,
    /// The line numbers, from 0, of the `----` and of the first line after the expected output.
    pub separator: usize,
    pub end: usize,
}

impl Case {
    /// The positional argument `n`, as a number.
    pub fn number(&self, n: usize) -> Result<u64, String> {
        let arg = self.args.get(n).ok_or_else(|| format!("argument {n} is missing"))?;
        arg.key.parse().map_err(|_| format!("argument {n} must be a number: {}", arg.key))
    }

    /// All positional arguments, as node numbers.
    pub fn nodes(&self) -> Result<Vec<u64>, String> {
        let positional = self.args.iter().filter(|arg| arg.values.is_empty());
        positional.map(|arg| arg.key.parse().map_err(|_| format!("must be a number: {}", arg.key))).collect()
    }

    /// All values of all `key=value` arguments, in order.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.args.iter().flat_map(|arg| arg.values.iter().map(|value| (arg.key.as_str(), value.as_str())))
    }

    /// The first value of `key`, as a number.
    pub fn option(&self, key: &str) -> Result<u64, String> {
        let (_, value) = self.options().find(|(k, _)| *k == key).ok_or_else(|| format!("{key}= is missing"))?;
        value.parse().map_err(|_| format!("{key} must be a number: {value}"))
    }
}

/// Reads a whole file.
pub fn parse(text: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((n, line)) = lines.next() {
        let mut command_line = line.trim().to_string();
        if command_line.is_empty() || command_line.starts_with('#') {
            continue;
        }
        while let Some(head) = command_line.strip_suffix('\\') {
            let (_, next) = lines.next().ok_or("the file ends in a continued line")?;
            command_line = format!("{} {}", head.trim_end(), next.trim());
        }
        let (command, args) = parse_command(&command_line).map_err(|err| format!("line {}: {err}", n + 1))?;
        let mut input = Vec::new();
        let mut separated = None;
        for (n, line) in lines.by_ref() {
            if line == "----" {
                separated = Some(n);
                break;
            }
            input.push(line);
        }
        let Some(separator) = separated else {
            return Err(format!("line {}: no ---- after the command", n + 1));
        };
        let mut expected = String::new();
        let mut end = separator + 1;
        if lines.next_if(|(_, line)| *line == "----").is_some() {
            let mut previous_dashes = false;
            for (_, line) in lines.by_ref() {
                if previous_dashes && line == "----" {
                    previous_dashes = false;
                    break;
                }
                if previous_dashes {
                    expected.push_str("----\n");
                }
                previous_dashes = line == "----";
                if !previous_dashes {
                    let _ = writeln!(expected, "{line}");
                }
            }
            if previous_dashes {
                expected.push_str("----\n");
            }
        } else {
            for (n, line) in lines.by_ref() {
                if line.trim().is_empty() {
                    break;
                }
                end = n + 1;
                let _ = writeln!(expected, "{line}");
            }
        }
        let text = line.trim().to_string();
        cases.push(Case { line: n + 1, text, command, args, input: input.join("\n"), expected, separator, end });
    }
    Ok(cases)
}

/// Splits a command line into the command and its arguments. Spaces separate, except within parentheses.
fn parse_command(line: &str) -> Result<(String, Vec<Arg>), String> {
    let (command, mut rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut args = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok((command.to_string(), args));
        }
        let end = rest.find([' ', '=']).unwrap_or(rest.len());
        let key = rest[..end].to_string();
        rest = &rest[end..];
        let mut values = Vec::new();
        if let Some(value) = rest.strip_prefix('=') {
            if let Some(list) = value.strip_prefix('(') {
                let close = closing_parenthesis(list).ok_or_else(|| format!("{key}=( is not closed"))?;
                values.extend(split_list(&list[..close]).map(|item| item.trim().to_string()));
                rest = &list[close + 1..];
            } else {
                let end = value.find(' ').unwrap_or(value.len());
                values.push(value[..end].to_string());
                rest = &value[end..];
            }
        }
        args.push(Arg { key, values });
    }
}

/// Where the parenthesis closes that was opened before `list`.
fn closing_parenthesis(list: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in list.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Splits at commas outside of parentheses.
fn split_list(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    list.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
}
