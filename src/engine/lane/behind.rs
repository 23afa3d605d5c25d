//! Sinks of a lane that catch up (PROTOCOL §4): what is read for them alone, and what follows when they fail.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::info;

use crate::engine::batching::Taken;
use crate::engine::catching::{Reader, Stand};
use crate::engine::message::{Assigned, Report};
use crate::engine::retry;
use crate::model::{SinkSet, TopicPartition};

use super::{Lane, State};

/// Sinks that have to tell their positions again before more is read for those that catch up.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    pub sinks: SinkSet,
    pub attempt: u32,
    pub at: Instant,
}

impl Lane {
    /// Expects chunks of these assignments. A sink may have been thrown back since the lane said where it
    /// stands: then the partition is asked for again.
    pub(super) async fn assigned(&mut self, assigned: Vec<Assigned>) {
        let (mut rewound, mut behind) = (Vec::new(), Vec::new());
        let mut is_news = false;
        let beside = self.optional.beside();
        for Assigned { source, apart, front, catch_up } in assigned {
            let Some(key) = self.keys.get(&source).copied() else {
                continue;
            };
            // What was told before one came back does not know of it.
            let all = beside.iter().fold(apart, SinkSet::with);
            is_news |= self.ledger.set_apart(key, all);
            for (reader, reading) in [(Reader::Front, front), (Reader::CatchUp, catch_up)] {
                let lowest = self.ledger.lowest(&key, reader);
                let (buffer, stale) = match reader {
                    Reader::Front => (&mut self.buffer, &mut rewound),
                    Reader::CatchUp => (&mut self.behind, &mut behind),
                };
                match (lowest, reading) {
                    (Some(lowest), Some(reading)) if lowest < reading.from => {
                        buffer.remove(&key);
                        stale.push(source.clone());
                    }
                    (Some(_), Some(reading)) => {
                        buffer.restart(key, reading.number, reading.from, reading.end);
                    }
                    // It goes on as it does.
                    (Some(_), None) => {
                        if reader == Reader::CatchUp && all != apart {
                            stale.push(source.clone());
                        }
                    }
                    // Nobody reads there any more.
                    (None, reading) => {
                        buffer.remove(&key);
                        if reader == Reader::CatchUp && reading.is_some() {
                            stale.push(source.clone());
                        }
                    }
                }
            }
        }
        self.give_way();
        if let Some(Recovery { sinks, attempt, .. }) = self.apart
            && !self.are_apart(sinks)
        {
            // One of them is at the front now: what it failed with holds that up.
            self.apart = None;
            self.recover_at(sinks, attempt, Instant::now());
        }
        if is_news {
            self.report_progress().await;
        }
        if !rewound.is_empty() {
            self.report(Report::Rewind(rewound)).await;
        }
        let behind = self.stands(behind.iter());
        if !behind.is_empty() {
            self.report(Report::CatchUp(behind)).await;
        }
    }

    /// Asks for these partitions again, for each reader from where its sinks stand.
    pub(super) async fn read_again(&mut self, sources: &[TopicPartition]) {
        let front: Vec<TopicPartition> =
            sources.iter().filter(|source| self.is_served(source, Reader::Front)).cloned().collect();
        let behind = self.stands(sources.iter().filter(|source| self.is_served(source, Reader::CatchUp)));
        if !front.is_empty() {
            self.report(Report::Rewind(front)).await;
        }
        if !behind.is_empty() {
            self.report(Report::CatchUp(behind)).await;
        }
    }

    fn is_served(&self, source: &TopicPartition, reader: Reader) -> bool {
        self.keys.get(source).is_some_and(|key| !self.ledger.served(key, reader).is_empty())
    }

    /// The next batch that is due. The readers take turns: a backfill neither starves nor holds up what is new.
    pub(super) fn next_batch(&mut self) -> Option<Taken> {
        let now = Instant::now();
        let turns = match self.was_behind {
            true => [Reader::Front, Reader::CatchUp],
            false => [Reader::CatchUp, Reader::Front],
        };
        for reader in turns {
            let (buffer, gauge) = match reader {
                Reader::Front => (&mut self.buffer, &self.gauge),
                Reader::CatchUp if self.apart.is_some() || self.awaits_late() => continue,
                Reader::CatchUp => (&mut self.behind, &self.behind_gauge),
            };
            if (buffer.is_ready(now) || gauge.is_full() || !self.failed.is_empty())
                && let Some(taken) = buffer.take(&self.ledger)
            {
                self.was_behind = reader == Reader::CatchUp;
                return Some(taken);
            }
        }
        None
    }

    /// Do these sinks catch up in all partitions, while others are at the front of some?
    fn are_apart(&self, sinks: SinkSet) -> bool {
        let is_shared = self.keys.values().any(|key| !self.ledger.served(key, Reader::Front).is_empty());
        let is_behind = |key| sinks.minus(self.ledger.served(key, Reader::CatchUp)).is_empty();
        is_shared && self.keys.values().all(is_behind)
    }

    /// Pauses what catches up, if nobody at the front needs these sinks; `false` if somebody does.
    pub(super) fn recover_apart_at(&mut self, failed: SinkSet, attempt: u32, now: Instant) -> bool {
        // A batch that waits for its schemas may have been taken before they were set apart.
        let is_awaited = self.staged.as_ref().is_some_and(|taken| {
            taken.reader == Reader::Front && taken.sinks.iter().any(|sink| failed.contains(sink))
        });
        if is_awaited || !matches!(self.state, State::Running) || !self.are_apart(failed) {
            return false;
        }
        let (sinks, attempt) = self.apart.map_or((failed, attempt), |recovery| {
            (failed.iter().fold(recovery.sinks, SinkSet::with), recovery.attempt.max(attempt))
        });
        if self.staged.as_ref().is_some_and(|taken| taken.reader == Reader::CatchUp) {
            self.staged = None;
            self.lookup = None;
        }
        for key in self.keys.values() {
            self.behind.remove(key);
        }
        self.apart = Some(Recovery { sinks, attempt: attempt + 1, at: now + retry::pause(attempt + 1) });
        true
    }

    /// Tries to read the positions of sinks that failed while they caught up, and goes on where they are.
    pub(super) async fn recover_apart(&mut self) {
        let Some(Recovery { sinks, at, .. }) = self.apart else {
            return;
        };
        if at > Instant::now() {
            return;
        }
        if !self.reset_positions(sinks, 0).await {
            return;
        }
        self.apart = None;
        if std::mem::take(&mut self.is_pause_said) {
            info!(route = self.parts.route, "catching up goes on");
        }
        self.report_progress().await;
        self.abandon_account();
        for key in self.keys.values() {
            self.behind.remove(key);
        }
        let sources = self.keys.iter().filter(|(_, key)| !self.ledger.apart(key).is_empty());
        let stands = self.stands(sources.map(|(source, _)| source));
        if !stands.is_empty() {
            self.report(Report::CatchUp(stands)).await;
        }
    }

    /// Where the sinks stand in these partitions.
    pub(super) fn stands<'a>(
        &self,
        sources: impl Iterator<Item = &'a TopicPartition>,
    ) -> BTreeMap<TopicPartition, Stand> {
        let letters: SinkSet = self.letter_sinks().collect();
        let rows_max = self.parts.limits.rows_max;
        let (away, beside) = (self.ledger.away(), self.optional.beside());
        sources
            .filter_map(|source| {
                let accepted = self.ledger.accepted(self.keys.get(source)?)?;
                Some((source.clone(), Stand { accepted, letters, rows_max, away, beside }))
            })
            .collect()
    }
}
