//! The suite's progress: a bar with the time left, or plain lines.

use indicatif::{ProgressBar, ProgressStyle};

use crate::job::Outcome;

/// A bar with the time left; plain lines where there is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    total: std::cell::Cell<usize>,
    done: std::cell::Cell<usize>,
    /// Finished by this process, for the time left.
    ran: std::cell::Cell<(usize, f64)>,
    /// The revision that runs now.
    revision: String,
    /// Whether older runs were pointed out.
    warned: std::cell::Cell<bool>,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let bar = ProgressBar::new(total as u64 * 1000);
        let style = ProgressStyle::with_template("{prefix:>7} [{bar:24}] {wide_msg}");
        bar.set_style(
            style
                .expect("the template is constant")
                .progress_chars("=> "),
        );
        bar.set_prefix(format!("0/{total}"));
        Self {
            bar,
            total: std::cell::Cell::new(total),
            done: std::cell::Cell::new(0),
            ran: std::cell::Cell::new((0, 0.0)),
            revision: crate::environment::git().revision,
            warned: std::cell::Cell::new(false),
        }
    }

    pub(crate) fn done(&self) -> usize {
        self.done.get()
    }

    pub(crate) fn total(&self) -> usize {
        self.total.get()
    }

    /// There are more runs than was known.
    pub(crate) fn more(&self, runs: usize) {
        self.total.set(self.total() + runs);
        self.bar.set_length(self.total() as u64 * 1000);
    }

    pub(crate) fn advance(&self) {
        self.done.set(self.done() + 1);
        self.bar.set_position(self.done() as u64 * 1000);
        self.bar
            .set_prefix(format!("{}/{}", self.done(), self.total()));
    }

    pub(crate) fn known(&self, outcome: &Outcome) {
        self.advance();
        let now = &self.revision;
        if outcome.git.revision != *now && !self.warned.replace(true) {
            let then = &outcome.git.revision;
            self.say(&format!(
                "note: some runs here are from revision {then}, this is {now}; give another --out to run all anew"
            ));
        }
    }

    pub(crate) fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    pub(crate) fn left(&self) -> String {
        let (runs, seconds) = self.ran.get();
        if runs == 0 {
            return String::new();
        }
        let left = seconds / runs as f64 * (self.total() - self.done()) as f64;
        let left = std::time::Duration::from_secs(left.round() as u64);
        format!(", about {} left", humantime::format_duration(left))
    }

    pub(crate) fn start(&self, label: &str) {
        self.bar.set_message(label.to_string());
        if self.bar.is_hidden() {
            eprintln!("[{}/{}] {label}", self.done() + 1, self.total());
        }
    }

    pub(crate) fn step(&self, step: u64, steps: u64, loss: f64) {
        let label = self.bar.message();
        let label = label.split(" — ").next().unwrap_or_default().to_string();
        self.bar
            .set_position(self.done() as u64 * 1000 + 1000 * step / steps.max(1));
        let left = self.left();
        self.bar.set_message(format!(
            "{label} — step {step}/{steps}, loss {loss:.3}{left}"
        ));
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        let (runs, seconds) = self.ran.get();
        self.ran.set((runs + 1, seconds + outcome.wall_s));
        self.advance();
        if self.bar.is_hidden() {
            eprintln!(
                "[{}/{}] dev {:.3} in {:.1} s{}",
                self.done(),
                self.total(),
                outcome.dev,
                outcome.wall_s,
                self.left(),
            );
        }
    }

    /// A run failed; the others go on.
    pub(crate) fn fail(&self, line: &str) {
        self.advance();
        self.say(&format!(
            "[{}/{}] FAILED: {line}",
            self.done(),
            self.total()
        ));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
