//! Progress on a terminal: a bar, or plain lines where there is none.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::event::{Event, StepReport};

/// Seconds between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows [`Event`]s: a bar on a terminal, a line every ten seconds elsewhere, both on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    last_line: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// An empty bar.
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{pos}/{len} [{bar:24}] {wide_msg} {eta:>4}");
        let style = style.expect("the template is constant");
        bar.set_style(style.progress_chars("=> "));
        Self {
            bar,
            last_line: None,
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Start { steps, done } => {
                self.bar.set_length(*steps as u64);
                self.bar.set_position(*done as u64);
                self.bar.reset_eta();
                if *done > 0 {
                    self.say(&format!("going on after step {done} of {steps}"));
                }
            }
            Event::Step(report) => self.step(report),
            Event::Evaluated { evaluation, best } => {
                let mark = if *best { ", the best so far" } else { "" };
                self.say(&format!(
                    "step {}: held-out loss {:.4}, perplexity {:.2}{mark}",
                    evaluation.step,
                    evaluation.nll,
                    evaluation.perplexity(),
                ));
            }
            Event::Saved { path } => self.say(&format!("saved {}", path.display())),
            Event::SaveFailed { step, reason } => {
                self.say(&format!(
                    "step {step} could not be saved, going on: {reason}"
                ));
            }
        }
    }

    fn step(&mut self, report: &StepReport) {
        self.bar.set_position(report.step as u64);
        let text = describe(report);
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if self.bar.is_hidden() && (due || report.step == report.steps) {
            eprintln!("step {}/{}: {text}", report.step, report.steps);
            self.last_line = Some(Instant::now());
        }
        self.bar.set_message(text);
    }

    /// Says something above the bar.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn describe(report: &StepReport) -> String {
    let rate = report.tokens as f64 / report.seconds.max(1e-9);
    let memory = if report.resident == 0 {
        String::new()
    } else {
        format!(", {} MiB", report.resident >> 20)
    };
    format!(
        "loss {:.4}, rate {:.2e}, norm {:.2}, {rate:.0} tokens/s{memory}",
        report.loss, report.learning_rate, report.gradient_norm,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_loss_speed_and_memory() {
        let report = StepReport {
            step: 3,
            steps: 10,
            epoch: 1,
            loss: 2.5,
            learning_rate: 2e-4,
            gradient_norm: 0.5,
            tokens: 512,
            seconds: 0.5,
            resident: 3 << 20,
        };
        let text = describe(&report);
        for part in ["2.5000", "2.00e-4", "1024 tokens/s", "3 MiB"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let silent = StepReport {
            resident: 0,
            ..report
        };
        assert!(!describe(&silent).contains("MiB"));
    }
}
