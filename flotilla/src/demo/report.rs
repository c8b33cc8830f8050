//! What the demo tells: a story while it happens, and at the end a report of what was checked.

use std::time::Duration;

use daemon::{Code, Failure};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::output::{Output, line};
use crate::units;

/// The story so far.
#[derive(Debug)]
pub(super) struct Story {
    output: Output,
    began: Instant,
    chapters: u32,
    checks: Vec<Check>,
    figures: Vec<Figure>,
}

/// Something that must hold.
#[derive(Debug)]
struct Check {
    what: String,
    holds: bool,
}

/// Something that was measured.
#[derive(Debug)]
struct Figure {
    /// Its name for programs.
    name: &'static str,
    value: Value,
    /// What people read; none if it is only for programs.
    text: Option<String>,
}

impl Story {
    /// Begins to tell, and to measure the time.
    pub(super) fn begin(output: Output) -> Self {
        let (checks, figures) = (Vec::new(), Vec::new());
        Self { output, began: Instant::now(), chapters: 0, checks, figures }
    }

    /// A headline.
    pub(super) fn chapter(&mut self, title: &str) -> Result<(), Failure> {
        self.chapters += 1;
        self.tell(&format!("\n{}. {title}", self.chapters))
    }

    /// A sentence, with what it took if that matters.
    pub(super) fn say(&self, text: &str) -> Result<(), Failure> {
        text.lines().try_for_each(|text| self.tell(&format!("   {text}")))
    }

    /// Something that must hold, told at the end too.
    pub(super) fn check(&mut self, what: String, holds: bool) -> Result<(), Failure> {
        self.tell(&format!("   {} {what}", mark(holds)))?;
        self.checks.push(Check { what, holds });
        Ok(())
    }

    /// A duration for the report.
    pub(super) fn duration(&mut self, name: &'static str, what: &str, duration: Duration) {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let text = Some(format!("{:>9}  {what}", units::duration(duration)));
        self.figures.push(Figure { name, value: milliseconds.into(), text });
    }

    /// A number, for programs.
    pub(super) fn number(&mut self, name: &'static str, number: u64) {
        self.figures.push(Figure { name, value: number.into(), text: None });
    }

    /// The report.
    ///
    /// # Errors
    /// Failed, when a check did not hold.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        self.duration("total_ms", "the whole demo", self.began.elapsed());
        let failed = self.checks.iter().filter(|check| !check.holds).count();
        if self.output.is_json() {
            self.output.result("", &self.value(failed == 0))?;
        } else {
            line("\nReport")?;
            for check in &self.checks {
                line(&format!("   {} {}", mark(check.holds), check.what))?;
            }
            for text in self.figures.iter().filter_map(|figure| figure.text.as_ref()) {
                line(&format!("   {text}"))?;
            }
        }
        if failed > 0 {
            let message = format!("{failed} of {} checks do not hold", self.checks.len());
            return Err(Failure::new(Code::Failed, message));
        }
        self.tell("\nEverything was stopped. Next: flotilla up")
    }

    fn value(&self, holds: bool) -> Value {
        let checks: Vec<Value> = self
            .checks
            .iter()
            .map(|check| json!({ "what": check.what, "holds": check.holds }))
            .collect();
        let figures: Map<String, Value> = self
            .figures
            .iter()
            .map(|figure| (figure.name.to_owned(), figure.value.clone()))
            .collect();
        json!({ "holds": holds, "checks": checks, "figures": figures })
    }

    /// People read along; programs wait for the report.
    fn tell(&self, text: &str) -> Result<(), Failure> {
        if self.output.is_json() { Ok(()) } else { line(text) }
    }
}

fn mark(holds: bool) -> &'static str {
    if holds { "[ok]" } else { "[FAILED]" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_that_does_not_hold_fails_the_demo() {
        let mut story = Story::begin(Output::new(crate::NAME, true));
        story.check("one".to_owned(), true).unwrap();
        story.check("two".to_owned(), false).unwrap();
        let failure = story.end().unwrap_err();
        assert_eq!(failure.code(), Code::Failed);
        assert_eq!(failure.to_string(), "1 of 2 checks do not hold");
    }
}
