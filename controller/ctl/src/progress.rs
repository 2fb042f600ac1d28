//! Progress on standard error, on a terminal only.

use crate::output::bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{sync::Arc, time::Duration};

/// How often a ticker looks.
const TICK: Duration = Duration::from_millis(250);

/// A line that shows how far something is; silent where standard error is no terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A fresh line.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Shows a state; `total` 0 means unknown.
    pub(crate) fn show(&self, phase: &str, files: u64, done: u64, total: u64) {
        self.show_of(phase, (files, 0), done, total);
    }

    /// The same where the number of files in all may be known.
    pub(crate) fn show_of(&self, phase: &str, files: (u64, u64), done: u64, total: u64) {
        let seconds = self.0.elapsed().as_secs_f64();
        self.0.set_message(line(phase, files, done, total, seconds));
        self.0.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Shows counters that others move, until it is dropped.
pub(crate) struct Ticker(tokio::task::JoinHandle<()>);

impl Ticker {
    /// Begins to show; must run within the runtime.
    pub(crate) fn start(phase: &'static str, counters: Arc<holdfast_restore::Progress>) -> Self {
        Self(tokio::spawn(async move {
            let line = Progress::new();
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                let ((files, files_total), (done, total)) = (counters.files(), counters.bytes());
                line.show_of(phase, (files, files_total), done, total);
            }
        }))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn line(phase: &str, (files, of): (u64, u64), done: u64, total: u64, seconds: f64) -> String {
    let all = if of > files {
        format!(" of {of}")
    } else {
        String::new()
    };
    let mut text = format!("{phase}: {files}{all} files, {}", bytes(done));
    if total > done {
        text.push_str(&format!(" of about {}", bytes(total)));
    }
    if seconds >= 1.0 && done > 0 {
        let rate = done as f64 / seconds;
        text.push_str(&format!(", {}/s", bytes(rate as u64)));
        if total > done {
            text.push_str(&format!(", {} left", left((total - done) as f64 / rate)));
        }
    }
    text
}

/// A time to wait, as exact as an estimate is.
fn left(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_estimate_come_once_they_mean_something() {
        assert_eq!(line("walk", (3, 0), 0, 0, 10.0), "walk: 3 files, 0 B");
        let text = line("upload", (3, 0), 1 << 20, 3 << 20, 2.0);
        assert_eq!(
            text,
            "upload: 3 files, 1.0 MiB of about 3.0 MiB, 512.0 KiB/s, 4 s left"
        );
        assert_eq!(
            line("upload", (3, 0), 2048, 1024, 0.5),
            "upload: 3 files, 2.0 KiB"
        );
        assert_eq!(line("restore", (3, 9), 0, 0, 0.5), "restore: 3 of 9 files, 0 B");
        assert_eq!(
            (left(59.7), left(125.0), left(7384.0)),
            ("59 s".into(), "2 min".into(), "2 h 3 min".into())
        );
    }
}
