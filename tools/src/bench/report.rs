//! What was measured, beside what is demanded.

use std::time::Duration;

use serde_json::{Value, json};

use crate::output::{Column, table};

/// One measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What was measured.
    pub measure: &'static str,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What must be reached, and what is aimed at; less is better. `None`: just told.
    pub goal: Option<(f64, f64)>,
}

impl Line {
    /// A duration in seconds.
    pub fn seconds(measure: &'static str, value: Duration, goal: Option<(f64, f64)>) -> Line {
        Line { measure, value: value.as_secs_f64(), unit: "s", goal }
    }

    /// Something that must not happen at all.
    pub fn none(measure: &'static str, count: u64) -> Line {
        Line { measure, value: count as f64, unit: "", goal: Some((0.0, 0.0)) }
    }

    /// A figure that has no goal.
    pub fn told(measure: &'static str, value: f64, unit: &'static str) -> Line {
        Line { measure, value, unit, goal: None }
    }

    fn verdict(&self) -> &'static str {
        match self.goal {
            None => "",
            Some((_, aim)) if self.value <= aim => "aim",
            Some((must, _)) if self.value <= must => "must",
            Some(_) => "missed",
        }
    }
}

/// For people.
pub fn text(lines: &[Line]) -> String {
    let columns = [
        Column::Text("MEASURE"),
        Column::Number("VALUE"),
        Column::Text("UNIT"),
        Column::Number("MUST"),
        Column::Number("AIM"),
        Column::Text("REACHED"),
    ];
    let rows = lines.iter().map(|line| {
        let goal = |number: Option<f64>| number.map_or_else(String::new, shown);
        vec![
            line.measure.to_owned(),
            shown(line.value),
            line.unit.to_owned(),
            goal(line.goal.map(|(must, _)| must)),
            goal(line.goal.map(|(_, aim)| aim)),
            line.verdict().to_owned(),
        ]
    });
    table(&columns, rows)
}

/// For programs.
pub fn to_json(lines: &[Line]) -> Value {
    let values = lines.iter().map(|line| {
        json!({
            "measure": line.measure,
            "value": line.value,
            "unit": line.unit,
            "must": line.goal.map(|(must, _)| must),
            "aim": line.goal.map(|(_, aim)| aim),
            "reached": line.verdict(),
        })
    });
    values.collect()
}

/// A figure for people.
pub fn shown(number: f64) -> String {
    if number >= 100.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_held_against_its_goal() {
        let line = |value| Line { measure: "time", value, unit: "s", goal: Some((10.0, 3.0)) };
        assert_eq!([2.0, 3.0, 9.5, 11.0].map(|value| line(value).verdict()), ["aim", "aim", "must", "missed"]);
        assert_eq!(Line { goal: None, ..line(1.0) }.verdict(), "");
        let text = text(&[line(9.5)]);
        assert!(text.contains("time") && text.contains("9.50") && text.contains("must"), "{text}");
        assert_eq!(to_json(&[line(11.0)])[0]["reached"], "missed");
    }
}
