//! What a contest has found: tables for people, values for programs, and whether bars are met.

use std::fmt::Write;

use serde_json::{Value, json};

/// What must hold, and what was found.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What is asked for.
    pub(super) what: String,
    /// What was found.
    pub(super) found: String,
    /// Whether it is met.
    pub(super) is_met: bool,
}

/// What one contest has found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was done.
    pub(super) title: String,
    /// The table, its head first; the first column is text, all others are numbers.
    pub(super) rows: Vec<Vec<String>>,
    /// What must hold.
    pub(super) bars: Vec<Bar>,
    /// What went wrong.
    pub(super) troubles: Vec<String>,
    /// Every figure.
    pub(super) figures: Value,
}

impl Bar {
    /// A bar that `found` must reach.
    pub(super) fn at_least(what: impl Into<String>, aim: f64, found: f64) -> Self {
        Self { what: what.into(), found: format!("{found:.2}"), is_met: found >= aim }
    }

    /// A bar that `found` must not exceed.
    pub(super) fn at_most(what: impl Into<String>, aim: f64, found: f64) -> Self {
        Self { what: what.into(), found: format!("{found:.2}"), is_met: found <= aim }
    }

    /// A bar that could not be measured, which is not met either.
    pub(super) fn unknown(what: impl Into<String>) -> Self {
        Self { what: what.into(), found: "not measured".to_owned(), is_met: false }
    }
}

impl Report {
    /// A contest that came to nothing.
    pub(super) fn failed(title: &str, error: &anyhow::Error) -> Self {
        Self { title: title.to_owned(), troubles: vec![format!("{error:#}")], ..Self::default() }
    }

    /// Whether nothing went wrong and every bar is met.
    pub fn is_well(&self) -> bool {
        self.troubles.is_empty() && self.bars.iter().all(|bar| bar.is_met)
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        for (number, row) in self.rows.iter().enumerate() {
            line(&mut text, row);
            if number == 0 {
                let rule = |column| if column == 0 { "---" } else { "---:" }.to_owned();
                line(&mut text, &(0..row.len()).map(rule).collect::<Vec<_>>());
            }
        }
        for (number, bar) in self.bars.iter().enumerate() {
            let gap = if number == 0 { "\n" } else { "" };
            let verdict = if bar.is_met { "pass" } else { "FAIL" };
            let Bar { what, found, .. } = bar;
            writeln!(text, "{gap}- {verdict}: {what}: {found}").expect("memory takes it");
        }
        for trouble in &self.troubles {
            writeln!(text, "\nTROUBLE: {trouble}").expect("memory takes it");
        }
        text
    }

    /// For programs.
    pub fn value(&self) -> Value {
        let bars = self
            .bars
            .iter()
            .map(|bar| json!({ "what": bar.what, "found": bar.found, "met": bar.is_met }));
        json!({
            "contest": self.title,
            "figures": self.figures,
            "bars": bars.collect::<Vec<_>>(),
            "troubles": self.troubles,
        })
    }
}

fn line(text: &mut String, cells: &[String]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("memory takes it");
}

/// The middle one; of an even number the mean of the two in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(values[low], values[high]))
}

/// A number of seconds, short enough for a table.
pub(super) fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_bar_that_is_not_met_shows() {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut report = Report {
            title: "wc".to_owned(),
            rows: vec![cells(["who", "s"]), cells(["P", "1.00"])],
            bars: vec![Bar::at_least("of P, at least 0.85", 0.85, 0.9)],
            ..Report::default()
        };
        assert!(report.is_well());
        report.bars.push(Bar::at_most("ms, at most 150", 150.0, 151.0));
        assert!(!report.is_well());
        let expected = "### wc\n\n| who | s |\n| --- | ---: |\n| P | 1.00 |\n\n\
                        - pass: of P, at least 0.85: 0.90\n- FAIL: ms, at most 150: 151.00\n";
        assert_eq!(report.markdown(), expected);
    }
}
