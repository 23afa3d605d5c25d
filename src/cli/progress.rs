//! Progress of work whose end is known: a bar where stderr is a terminal, else a log line now and then.
//!
//! Whatever else goes to that terminal is written through [`Above`], so that bar and text do not mix.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

use crate::engine::Watcher;

/// As often as an eye follows.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Rare enough for a log that is kept.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

const TEMPLATE: &str = "{prefix} [{wide_bar}] {pos}/{len} {msg}";

/// The bar on the terminal, while there is one. Of the process, as the terminal and the log are.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows how far something is. The bar goes when this is dropped.
pub struct Progress {
    label: &'static str,
    total: u64,
    /// When the total was first known: what had to be waited for before says nothing about the rate.
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of work that is called `label`. Nothing is shown before there is a total.
    pub fn new(label: &'static str) -> Self {
        let now = Instant::now();
        Self { label, total: 0, started: now, told: now, bar: None }
    }

    /// One bar for several that work side by side.
    pub fn shared(label: &'static str, count: usize) -> Vec<Box<dyn Watcher>> {
        let all = Arc::new(Mutex::new(All { progress: Self::new(label), parts: vec![(0, 0); count] }));
        let each = (0..count).map(|place| Box::new(Share { all: all.clone(), place }) as Box<dyn Watcher>);
        each.collect()
    }
}

/// What several tell of one work.
struct All {
    progress: Progress,
    /// Total and done of each.
    parts: Vec<(u64, u64)>,
}

/// One of several that work side by side.
struct Share {
    all: Arc<Mutex<All>>,
    place: usize,
}

impl Share {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for Share {
    fn expect(&mut self, total: u64) {
        let mut all = self.all();
        all.parts[self.place].0 = total;
        let total: u64 = all.parts.iter().map(|(total, _)| total).sum();
        all.progress.expect(total);
    }

    fn reached(&mut self, done: u64) {
        let mut all = self.all();
        all.parts[self.place].1 = done;
        let done: u64 = all.parts.iter().map(|(_, done)| done).sum();
        all.progress.reached(done);
    }
}

impl Watcher for Progress {
    fn expect(&mut self, total: u64) {
        if self.total == 0 && total > 0 {
            self.started = Instant::now();
            self.told = self.started;
            self.bar = bar(self.label, total);
            *shown() = self.bar.clone();
        }
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    fn reached(&mut self, done: u64) {
        let now = Instant::now();
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
        if self.total == 0 || now.duration_since(self.told) < interval {
            return;
        }
        self.told = now;
        let numbers = Numbers { done, total: self.total, elapsed: now.duration_since(self.started) };
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(numbers.text());
            }
            None => info!(
                work = self.label,
                done,
                total = self.total,
                per_second = numbers.per_second(),
                seconds_left = numbers.left().map(|left| left.as_secs()),
                "progress"
            ),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            *shown() = None;
        }
    }
}

/// `None` where stderr is no terminal, or one that cannot take a drawn line back.
fn bar(label: &'static str, total: u64) -> Option<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    (!bar.is_hidden()).then(|| bar.with_style(style()).with_prefix(label))
}

fn style() -> ProgressStyle {
    // A template that is refused, which a test rules out, is no reason to fail.
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// How far the work is, for bar and log alike.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    done: u64,
    total: u64,
    elapsed: Duration,
}

impl Numbers {
    /// Since the beginning: what is durable grows in jumps, and a rate of the last seconds would jump too.
    fn per_second(self) -> u64 {
        let per_second = u128::from(self.done) * 1000 / self.elapsed.as_millis().max(1);
        u64::try_from(per_second).unwrap_or(u64::MAX)
    }

    /// At this rate; `None` as long as there is none.
    fn left(self) -> Option<Duration> {
        let left = u128::from(self.total.saturating_sub(self.done));
        let millis = self.elapsed.as_millis().saturating_mul(left).checked_div(u128::from(self.done))?;
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    fn text(self) -> String {
        match self.left() {
            Some(left) => format!("{}/s, {:#} left", self.per_second(), HumanDuration(left)),
            None => format!("{}/s", self.per_second()),
        }
    }
}

/// A stream to the terminal that takes the bar away while it writes.
#[derive(Debug)]
pub struct Above<W>(pub W);

impl<W: Write> Write for Above<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = shown().clone();
        above(bar.as_ref(), || {
            self.0.write_all(bytes)?;
            // Not later, over the bar.
            self.0.flush()
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn above<R>(bar: Option<&ProgressBar>, write: impl FnOnce() -> R) -> R {
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;

    fn numbers(done: u64, total: u64, seconds: u64) -> Numbers {
        Numbers { done, total, elapsed: Duration::from_secs(seconds) }
    }

    #[test]
    fn rate_and_rest_are_those_of_the_whole_run() {
        assert_eq!(numbers(500, 2000, 10).text(), "50/s, 30s left");
        assert_eq!(numbers(2000, 2000, 40).text(), "50/s, 0s left");
        // Nothing yet, no time yet, and more than was expected.
        assert_eq!(numbers(0, 2000, 10).text(), "0/s");
        assert_eq!(numbers(5, 5, 0).text(), "5000/s, 0s left");
        assert_eq!(numbers(3000, 2000, 10).left(), Some(Duration::ZERO));
        let huge = Numbers { done: 1, total: u64::MAX, elapsed: Duration::MAX };
        assert_eq!(huge.left(), Some(Duration::from_millis(u64::MAX)));
    }

    #[test]
    fn the_bar_is_drawn_as_its_template_says() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    /// What a terminal is told, in order.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<String>>>);

    impl Terminal {
        fn hear(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(())
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            80
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.hear(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.hear(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            self.hear("cleared")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_takes_the_place_of_the_bar_which_comes_back_below() {
        let terminal = Terminal::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(10), target).with_style(style()).with_prefix("reading");
        bar.tick();
        assert!(terminal.take()[0].starts_with("reading ["));

        above(Some(&bar), || terminal.hear("a line\n")).unwrap();
        let heard = terminal.take();
        assert_eq!(heard[..2], ["cleared", "a line\n"]);
        assert!(heard[2].starts_with("reading ["), "{heard:?}");

        bar.finish_and_clear();
        assert_eq!(terminal.take(), ["cleared"]);
        above(Some(&bar), || terminal.hear("a line\n")).unwrap();
        assert_eq!(terminal.take(), ["a line\n"]);
    }
}
