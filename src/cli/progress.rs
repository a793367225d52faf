//! How long work shows that it goes on.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

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

    /// Shows what there is to do now, of which nothing is done yet.
    pub(crate) fn start(&self, length: u64, template: &str) {
        self.0.reset();
        self.0.set_length(length);
        self.style(template);
    }

    /// Shows something else.
    pub(crate) fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
    }

    /// So much more is done.
    pub(crate) fn inc(&self, more: u64) {
        self.0.inc(more);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
