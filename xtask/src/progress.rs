//! What a long step does, how far it is and how long it takes: a line that changes at a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Away from a terminal, a line at most that often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A step that is going on. Dropping it without [`Progress::done`] says that it was not finished.
pub(crate) struct Progress {
    what: String,
    begin: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
    finished: bool,
}

impl Progress {
    /// Begins the step `what`.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        let now = Instant::now();
        Self { what, begin: now, bar, last_line: now, finished: false }
    }

    /// Says how far it is.
    pub(crate) fn at(&mut self, detail: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(detail.to_owned()),
            None if self.last_line.elapsed() >= LINE_INTERVAL => {
                eprintln!("{} ... {detail}, {}", self.what, seconds(self.begin.elapsed()));
                self.last_line = Instant::now();
            }
            None => {}
        }
    }

    /// Ends it with what came of it.
    pub(crate) fn done(mut self, result: &str) {
        self.end(result);
    }

    fn end(&mut self, result: &str) {
        self.finished = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        eprintln!("{}: {result}, {}", self.what, seconds(self.begin.elapsed()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.finished {
            self.end("not finished");
        }
    }
}

/// A duration in seconds, as people read it.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
