//! Answers for people (aligned tables) and for programs (JSON with stable field names).

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use serde_json::Value;

/// Who reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// People
    Table,
    /// Programs
    Json,
}

/// Writes a line to standard output. A reader that went away is an error and no panic.
pub fn line(text: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")
}

/// Writes JSON, indented.
pub fn json(value: &Value) -> Result<()> {
    line(serde_json::to_string_pretty(value).context("cannot write JSON")?)
}

/// How a column's cells stand.
#[derive(Clone, Copy)]
pub enum Column {
    /// Text, to the left.
    Text(&'static str),
    /// Numbers, to the right.
    Number(&'static str),
}

/// A table without lines. Rows are never wrapped, so that each stays one line for `grep` and `awk`.
pub fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(name) => Cell::new(name),
        Column::Number(name) => Cell::new(name).set_alignment(CellAlignment::Right),
    }));
    for row in rows {
        table.add_row(row);
    }
    let last = columns.len().saturating_sub(1);
    for (index, column) in columns.iter().enumerate() {
        if let Some(cells) = table.column_mut(index) {
            cells.set_padding((0, if index == last { 0 } else { 2 }));
            cells.set_constraint(ColumnConstraint::ContentWidth);
            if matches!(column, Column::Number(_)) {
                cells.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `n` with thousands set apart.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `a / b` with two digits; `-` if there is nothing to divide by.
pub fn ratio(a: u64, b: u64) -> String {
    ratio_number(a, b).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// `a / b`, if there is something to divide by.
pub fn ratio_number(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

/// Bytes with a binary unit.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let rows = [vec!["7".to_owned(), "a".to_owned()], vec!["1234".to_owned(), "long text".to_owned()]];
        let text = table(&[Column::Number("ID"), Column::Text("KEY")], rows);
        assert_eq!(text, "  ID  KEY\n   7  a\n1234  long text");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(ratio(3, 2), "1.50");
        assert_eq!(ratio(3, 0), "-");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
