//! The progress of long work.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// A progress bar on stderr, if that is a terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::no_length();
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self(bar)
    }

    /// Shows nothing, for a command that is to be quiet.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows new work, none of it done yet.
    pub(crate) fn start(&self, length: u64, template: &str) {
        self.0.reset();
        self.0.set_length(length);
        self.style(template);
    }

    /// Shows another style. `{speed}` stands for the bytes per second, `{left}` for the time left, each with a
    /// comma before it. Both stay empty until they are known.
    pub(crate) fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style.with_key("speed", write_speed).with_key("left", write_left));
        }
    }

    /// Adds work that is done.
    pub(crate) fn inc(&self, more: u64) {
        self.0.inc(more);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Below this number per second, speed and time left are not shown.
const SLOWEST: f64 = 0.01;

/// Returns the work done per second, once it is known.
fn speed(done: u64, per_second: f64) -> Option<f64> {
    (done > 0 && per_second >= SLOWEST).then_some(per_second)
}

fn write_speed(state: &ProgressState, out: &mut dyn Write) {
    if let Some(speed) = speed(state.pos(), state.per_sec()) {
        let _ = write!(out, ", {}/s", HumanBytes(speed as u64));
    }
}

fn write_left(state: &ProgressState, out: &mut dyn Write) {
    if speed(state.pos(), state.per_sec()).is_some() {
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_speed_is_shown_before_anything_is_done() {
        assert_eq!(speed(0, 0.0), None);
        assert_eq!(speed(0, 5.0), None, "the speed of what was done before");
        assert_eq!(speed(7, 0.0), None);
        assert_eq!(speed(7, 5.0), Some(5.0));
    }
}
