//! How far something has come that a person waits for, on stderr: a line that is drawn again and
//! again on a terminal, elsewhere a line every five seconds and at each change of phase.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is printed where no terminal is, when the phase stays.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Where progress is shown.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    printed: Option<(String, Instant)>,
}

impl Default for Progress {
    fn default() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:24} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, printed: None }
    }
}

impl Progress {
    /// So much is done of so much, in this phase; `text` says it all.
    pub fn draw(&mut self, done: u64, total: u64, phase: &str, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(text);
            return;
        }
        let now = Instant::now();
        let due = self.printed.as_ref().is_none_or(|(printed, at)| {
            printed != phase || now.duration_since(*at) >= LINE_INTERVAL
        });
        if due {
            self.printed = Some((phase.to_owned(), now));
            eprintln!("{text}");
        }
    }

    /// The terminal is as it was.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
